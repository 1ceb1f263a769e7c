"""What transformers leaves out of a GGUF file's header: read here, or refused where it cannot be.

A key that is left out changes no shape and raises nothing: the logits are other ones, and nobody is told.
Rotary scaling in GGUF: the format by its authors, ggml-org, "Rotary embedding scaling".
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.models import LoadError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Keys without the architecture in front. Sizes: a wrong one does not fit the tensors, which is refused elsewhere.
_SIZES = frozenset(
    (
        *("context_length", "block_count", "embedding_length", "feed_forward_length", "vocab_size"),
        *(
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
        ),
        *("attention.key_length_swa", "attention.value_length_swa", "attention.shared_kv_layers"),
        *("expert_count", "expert_feed_forward_length", "expert_shared_feed_forward_length"),
        *("expert_shared_count", "leading_dense_block_count", "nextn_predict_layers"),
        "embedding_length_per_layer_input",
    )
)
#: Keys that say nothing of how a token is computed.
_REMARKS = frozenset(("tensor_data_layout", "pooling_type", "attention.causal", "rope.scaling.finetuned"))
#: Keys that are a field of the config, where it has that field.
_FIELDS = {
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention.sliding_window": ("sliding_window",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "expert_used_count": ("num_experts_per_tok",),
    "use_parallel_residual": ("use_parallel_residual",),
}
#: Llama 3's scaling as its files have it; GGUF keeps the factors that follow from it.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_LONGROPE = ("rope_factors_long.weight", "rope_factors_short.weight")


def complete(name: str, config: "PreTrainedConfig", path: Path) -> None:
    """Put into `config`, as transformers read it of `path`, what it left out. Raises `LoadError` naming what cannot be."""
    import gguf  # an extra of the package

    reader = gguf.GGUFReader(path)
    architecture = str(reader.fields["general.architecture"].contents())
    prefix = f"{architecture}."
    header = {
        key.removeprefix(prefix): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(prefix)
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    left = [key for key in header if not _is_read(architecture, key) and key not in _SIZES | _REMARKS]
    left = [key for key in left if not _set_field(config, key, header[key])]
    left = [key for key in left if not key.startswith("rope.")]
    left += _rotary(config, header)
    if "rope_freqs.weight" in tensors and not _llama3(config, tensors["rope_freqs.weight"].data):
        left.append("tensor rope_freqs.weight")
    left += [f"tensor {tensor}" for tensor in _LONGROPE if tensor in tensors]
    if left:
        raise LoadError(
            f"{name}: its header says {', '.join(left)}, which transformers leaves out of {architecture} models: "
            "its tokens would be others; use the same model in safetensors"
        )


def _is_read(architecture: str, key: str) -> bool:
    from transformers.integrations import ggml

    names = {
        "qwen2moe": "qwen2_moe",
        "qwen3moe": "qwen3_moe",
        "gpt-oss": "gpt_oss",
        "minimax-m2": "minimax_m2",
    }
    read: dict[str, Any] = ggml.GGUF_CONFIG_MAPPING.get(names.get(architecture, architecture), {})
    return read.get(key) is not None


def _set_field(config: "PreTrainedConfig", key: str, value: Any) -> bool:
    """Whether the config has a field for it, which has that value now."""
    if key == "attention.sliding_window_pattern" and isinstance(value, list):
        kinds = ["sliding_attention" if is_local else "full_attention" for is_local in value]
        return list(getattr(config, "layer_types", None) or ()) == kinds
    for field in _FIELDS.get(key, ()):
        if hasattr(config, field):
            setattr(config, field, value)
            return True
    return False


def _rotary(config: "PreTrainedConfig", header: dict[str, Any]) -> list[str]:
    """Set what the header says of the rotation; the keys that could not be."""
    keys = {key: value for key, value in header.items() if key.startswith("rope.")}
    left: list[str] = []
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    whole = rope.get(
        "full_attention", rope
    )  # where local layers have a rotation of their own, it is not scaled
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear"))
    kind = keys.get("rope.scaling.type", "linear" if factor is not None else "none")
    if kind == "linear" and factor is not None:
        if factor != 1.0:
            whole |= {"rope_type": "linear", "factor": float(factor)}
    elif kind == "yarn" and factor is not None and "rope.scaling.original_context_length" in keys:
        original = int(keys["rope.scaling.original_context_length"])
        whole |= {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
        for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if f"rope.scaling.{theirs}" in keys:
                whole[ours] = float(keys[f"rope.scaling.{theirs}"])
    elif kind != "none":
        left.append(f"rope.scaling.type {kind}")
    neutral = {"attn_factor": 1.0, "alpha": 0.0, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0}
    left += [
        f"rope.scaling.{key}"
        for key, value in neutral.items()
        if keys.get(f"rope.scaling.{key}", value) != value
    ]
    if "rope.scaling.yarn_log_multiplier" in keys and kind == "yarn":
        left.append("rope.scaling.yarn_log_multiplier")
    if "rope.freq_base_swa" in keys and "sliding_attention" in rope:
        rope["sliding_attention"]["rope_theta"] = float(keys["rope.freq_base_swa"])
    if "rope.dimension_count" in keys and not _set_rotated(config, whole, int(keys["rope.dimension_count"])):
        left.append(f"rope.dimension_count {keys['rope.dimension_count']}")
    return left


def _set_rotated(config: "PreTrainedConfig", rope: dict[str, Any], rotated: int) -> bool:
    """How many numbers of a head are rotated, where not all are."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not rope or rotated == int(head_dim * rope.get("partial_rotary_factor", 1.0)):
        return True
    if "partial_rotary_factor" not in rope and not hasattr(config, "partial_rotary_factor"):
        return False
    rope["partial_rotary_factor"] = rotated / head_dim
    return True


def _llama3(config: "PreTrainedConfig", factors: Any) -> bool:
    """Whether the factors of the frequencies are all 1, or those of Llama 3's scaling, which is set then."""
    found = [float(factor) for factor in factors]
    largest = round(max(found))
    if largest == 1 and min(found) == 1.0:
        return True
    rope: dict[str, Any] = config.rope_parameters
    expected = []
    for index in range(len(found)):
        turns = _LLAMA3["original_max_position_embeddings"] / (
            2 * math.pi * rope["rope_theta"] ** (index / len(found))
        )
        low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        expected.append(1 / ((1 - share) / largest + share))
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(found, expected, strict=True)):
        return False
    rope |= {"rope_type": "llama3", "factor": float(largest), **_LLAMA3}
    return True
