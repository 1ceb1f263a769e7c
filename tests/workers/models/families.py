"""Tiny random models of current families: each family's own config class at shrunken sizes, all else as it comes.

What a family is about stays: its kinds of layers, at least one of each, its windows, experts, latents and states.
"""

import contextlib
import functools
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from workers.models.build import from_config

VOCAB = 320
WINDOW = 16
_DEPTH = 4

#: Where a config has none by default, none is set.
_WINDOWS = (
    *(
        "sliding_window",
        "sliding_window_size",
        "attention_window_size",
        "attention_chunk_size",
        "window_size",
    ),
)
#: Sizes by the names that configs give them. A name that a config lacks is left out.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "lru_width", "embed_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "intermediate_size_mlp", "ffn_dim"), 96),
    **dict.fromkeys(("dense_intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "num_blocks"), _DEPTH),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 16,
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 256),
    **dict.fromkeys(_WINDOWS, WINDOW),
    # experts
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_experts_intermediate_size"), 32),
    "moe_shared_expert_intermediate_size": 32,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        ("zero_expert_num", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2
    ),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    # latents and their indexer
    **dict.fromkeys(("kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "index_head_dim", "o_lora_rank"), 16),
    "qk_rope_head_dim": 8,
    "index_topk": 64,  # below it nothing is left out; above it a random indexer's choice is one between equals
    **dict.fromkeys(("index_n_heads", "o_groups"), 2),
    "q_lora_rank": 24,
    # linear attention, state spaces, short convolutions
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    "linear_num_heads": 4,
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "mamba_d_state", "state_size"), 8),
    **dict.fromkeys(("mamba_dt_rank", "ssm_state_size", "time_step_rank"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    "mamba_d_ssm": 128,
    **dict.fromkeys(("mamba_ngroups", "mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "block_size"), 16),
    # ids within the vocabulary
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HYBRID = ["linear_attention", "full_attention"] * 2
#: Latents keep the heads of the keys as many as those of the queries, and their `head_dim` is the rotated part's.
_LATENT = {"num_key_value_heads": 4, "head_dim": 8}

#: Encoders by default.
_DECODERS = (
    *(
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "megatron-bert",
    ),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
)
#: What makes a shrunken model one of its kind.
_DETAILS: dict[str, dict[str, Any]] = {
    **{family: {"is_decoder": True} for family in _DECODERS},
    "bamba": {"attn_layer_indices": [1, 3]},
    "bailing_hybrid": {"num_expert_group": 1},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    # V2-Lite's queries of one matrix; V3's of two; both choose experts within groups
    "deepseek_v2": {
        "q_lora_rank": None,
        "topk_method": "group_limited_greedy",
        **dict.fromkeys(("n_group", "num_experts_per_tok"), 2),
        "n_routed_experts": 8,
        "routed_scaling_factor": 1.5,
    },
    "deepseek_v3": {"n_group": 4, "topk_group": 2, "n_routed_experts": 12},
    "dots1": {"n_routed_experts": 4},
    "gemma3n_text": {
        "num_kv_shared_layers": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": 96,
        "activation_sparsity_pattern": None,
        "hidden_size_per_layer_input": 16,
    },
    "gemma4_text": {
        "hidden_size_per_layer_input": 16,
        "per_layer_config": {"01": {"head_dim": 32}, "03": {"head_dim": 32}},
    },
    "granite": {  # by default they are all 1
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
        "attention_multiplier": 0.125,
    },
    "granitemoehybrid": {"layer_types": _HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "full_attn_idxs": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "gemma4_assistant": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": _DEPTH,
        }
    },
    "glm4v_moe_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 2],
        }
    },
    "dots3_note_vision_encoder": {"adapter_in_dim": 64, "adapter_out_dim": 64},
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "adapter_out_dim": 64},
    "kyutai_speech_to_text": {"audio_pad_token_id": 3, "audio_bos_token_id": 4},
    **{family: {"vision_start_token_id": 5} for family in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": {"moe_layers": [1, 3], "no_rope_layers": [1, 0, 1, 0]},
    "longcat_flash": {"head_dim": 8, "num_key_value_heads": 4},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "ministral3": {  # so that queries are scaled within a short text
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "ple_embed_dim": 64,
        "hc_lowrank": 16,
    },
    **{
        family: {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
        for family in (
            *("qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text", "glm_ocr_text", "paddleocr_vl_text"),
            *("qwen2_5_omni_text", "hunyuan_vl_text"),
        )
    },
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": (16, 48),
        "axial_pos_shape": (32, 32),
        "max_position_embeddings": 1024,
    },
    "xlm": {"causal": True, "emb_dim": 64},
    "xmod": {"is_decoder": True, "languages": ["en_XX"], "default_language": "en_XX"},
    "xlstm": {"embedding_dim": 64, "qk_dim_factor": 1.0},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}

#: Of the families whose own defaults do not go together.
_VALID: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": 30,
        }
    },
    "step3p7": {"text_config": {"model_type": "step3p7_text", "sliding_window": 512}},
}


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """The config of `family` (a `model_type`), shrunken. `changes`: fields of its own."""
    content, kind = _defaults(family), CONFIG_MAPPING[family]
    try:
        return kind(**_shrunken(family, content) | changes)
    except Exception as error:
        if not isinstance(content.get("text_config"), dict):
            raise
        with contextlib.suppress(
            Exception
        ):  # the parts of a wrapper may have to agree; then its text alone shrinks
            return kind(**_shrunken(family, {"text_config": content["text_config"]}) | changes)
        raise error


def tiny_model(family: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """Random weights, always the same ones."""
    torch.manual_seed(0)
    model = from_config(tiny_config(family, **changes), dtype)
    return model.eval().requires_grad_(False)


@functools.cache
def _defaults(family: str) -> dict[str, Any]:
    """What the family's config says by default, configs in it as dicts."""
    content: dict[str, Any] = CONFIG_MAPPING[family](**_VALID.get(family, {})).to_dict()
    return content


def _shrunken(family: str, content: dict[str, Any]) -> dict[str, Any]:
    """Every size that `content` names, also of configs within; each kind of layer at least once."""
    fields = {
        name: size
        for name, size in _SIZES.items()
        if name in content and not (name in _WINDOWS and content[name] is None)
    }
    if content.get("kv_lora_rank"):
        fields |= _LATENT
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        if kinds := content.get(name):
            distinct = list(dict.fromkeys(kinds))
            fields[name] = (distinct * _DEPTH)[: max(_DEPTH, len(distinct))]
    for name, value in content.items():
        if isinstance(value, dict) and "model_type" in value:
            inner = str(value["model_type"])
            fields[name] = {"model_type": inner, **_shrunken(inner, value)}
    for name, value in _DETAILS.get(family, {}).items():
        inner = fields.get(name)
        is_config = isinstance(inner, dict) and "model_type" in inner
        fields[name] = {**inner, **value} if is_config else value
    return fields
