"""Tiny models with sharp logits, drafts that are right now and then."""

import copy

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from workers.cell import Cell, ModelRef
from workers.models.load import LoadedModel
from workers.modes import MODES, Speculation, Streaming

VOCAB = 97
SINKS, WINDOW = 4, 24
FAMILIES = ("gpt_neox", "llama")


def tiny(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **config: object) -> PreTrainedModel:
    """Two layers of four heads; Llama's share two key/value heads and scale their frequencies."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    if family == "gpt_neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**(shape | config)))
    else:
        gqa = {"num_key_value_heads": 2, "rope_parameters": llama3}
        model = LlamaForCausalLM(LlamaConfig(**(shape | gqa | config)))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    return model.to(dtype).eval().requires_grad_(False)


def noisy(model: PreTrainedModel, noise: float = 0.15) -> PreTrainedModel:
    """A draft that agrees with `model` some of the time."""
    torch.manual_seed(7)
    draft = copy.deepcopy(model)
    for parameter in draft.parameters():
        parameter.data.add_(torch.randn_like(parameter) * parameter.std() * noise)
    return draft


def loaded(model: PreTrainedModel, eos: tuple[int, ...] = ()) -> LoadedModel:
    return LoadedModel(
        model=model,
        name="tiny",
        eos_ids=frozenset(eos),
        max_positions=64,
        vocab_size=model.config.get_text_config(decoder=True).vocab_size,
        weights_bytes=sum(p.nbytes for p in model.parameters()),
        load_s=0.0,
        load_was_warm=None,
    )


def text(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def cell(
    mode: str,
    *,
    workload: str = "generate",
    prompt: int = 10,
    length: int = 100,
    gamma: int | None = None,
    acceptance: float | tuple[float, ...] | None = None,
    penalty: float = 1.0,
    chunk: int | None = None,
    batch: int = 1,
    sinks: int = SINKS,
    window: int = WINDOW,
) -> Cell:
    return Cell(
        model=ModelRef(target="tiny", draft="tiny" if gamma else None, dtype="float32"),
        mode=mode,
        engine="eager",
        workload=workload,  # type: ignore[arg-type]
        prompt_tokens=prompt,
        length=length,
        batch_size=batch,
        prefill_chunk=chunk,
        streaming=Streaming(sinks=sinks, window=window)
        if MODES[mode].policy.parameters is Streaming
        else None,
        speculation=Speculation(gamma=gamma, acceptance=acceptance) if gamma else None,
        repetition_penalty=penalty,
    )
