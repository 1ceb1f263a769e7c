"""Tiny random models of both families, and cells."""

from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from workers.cell import Cell, ModelRef
from workers.models.load import LoadedModel
from workers.modes import MODES, Speculation, Streaming

VOCABULARY = 97
EOS = 3
FAMILIES = ("neox", "neox-sequential", "llama", "llama-tied-yarn")


def build(family: str, dtype: torch.dtype, *, seed: int = 0, layers: int = 3) -> LoadedModel:
    """Weights large enough that greedy output does not repeat one token."""
    torch.manual_seed(seed)
    model: PreTrainedModel
    if family.startswith("neox"):
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=VOCABULARY,
                hidden_size=48,
                num_hidden_layers=layers,
                num_attention_heads=4,
                intermediate_size=80,
                rotary_pct=0.5,
                initializer_range=0.3,
                use_parallel_residual=family == "neox",
            )
        )
    else:
        tied = family == "llama-tied-yarn"
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        if tied:
            rope = {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=48,
                num_hidden_layers=layers,
                num_attention_heads=6,
                num_key_value_heads=2,
                head_dim=12,
                intermediate_size=64,
                initializer_range=0.3,
                attention_bias=not tied,
                tie_word_embeddings=tied,
                rope_parameters=rope,
            )
        )
    model = model.to(dtype).eval()
    if dtype == torch.float64:
        _exact_norms(model)
    return LoadedModel(
        model=model,
        name=family,
        eos_ids=frozenset({EOS}),
        max_positions=2048,
        vocab_size=VOCABULARY,
        weights_bytes=0,
        load_s=0.0,
        load_was_warm=None,
    )


def _exact_norms(model: PreTrainedModel) -> None:
    """transformers' RMSNorm goes through float32, which hides everything below 1e-7."""
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):

            def forward(x: torch.Tensor, norm: LlamaRMSNorm = module) -> torch.Tensor:
                return (
                    norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
                )

            module.forward = forward  # type: ignore[method-assign]


def cell(mode: str, *, sinks: int = 4, window: int = 12, **fields: Any) -> Cell:
    asked = MODES[mode]
    streaming = Streaming(sinks=sinks, window=window) if asked.policy.parameters is Streaming else None
    speculation = Speculation(gamma=4) if asked.decoder.parameters is Speculation else None
    defaults = {
        "model": ModelRef(target="tiny", draft="tiny"),
        "engine": "graph",
        "prompt_tokens": 9,
        "length": 60,
        "streaming": streaming,
        "speculation": speculation,
    }
    return Cell(mode=mode, **{**defaults, **fields})


def tokens(count: int, *, batch: int = 1, seed: int = 7) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, count), generator=torch.Generator().manual_seed(seed))
