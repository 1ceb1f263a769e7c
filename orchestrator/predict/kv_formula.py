"""The bytes of a cache by arithmetic on a config's fields: a second source beside the rehearsal (`workers.rehearsal.kv_law`).

Nothing is built. As transformers' `DynamicCache` stores them: a sliding window of W keeps W - 1 tokens between two passes,
recurrent states are float32 whatever the dtype. b: bytes of the dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_FLOAT32 = 4
_FULL = frozenset(("full_attention", "indexed_attention", "attention", "hybrid"))
_SLIDING = frozenset(("sliding_attention", "chunked_attention"))
_NOTHING = frozenset(("moe", "mlp"))


class FormulaError(ValueError):
    """The fields of a config do not tell what its cache takes. One line."""


@dataclass(frozen=True, slots=True)
class LayerLaw:
    """Bytes of one sequence in one layer: with each token, and once."""

    per_token: int = 0
    constant: int = 0

    def __add__(self, other: "LayerLaw") -> "LayerLaw":
        return LayerLaw(self.per_token + other.per_token, self.constant + other.constant)


def formula_law(config: Any, b: int) -> LayerLaw:
    """Of all layers. `config`: a transformers PreTrainedConfig. Raises `FormulaError` where its fields do not tell."""
    text = config.get_text_config(decoder=True)
    kinds = _kinds(text)
    shared = read_field(text, "num_kv_shared_layers") or 0
    total = LayerLaw()
    for index, kind in enumerate(kinds[: len(kinds) - shared]):
        total += _layer(_of_layer(text, index), index, kind, b)
    return total


def _of_layer(config: Any, index: int) -> Any:
    """A layer's own config, where layers differ."""
    try:
        return config.per_layer_config[index]
    except Exception:  # a field that not every transformers has, and not every config
        return config


def _layer(config: Any, index: int, kind: str, b: int) -> LayerLaw:
    if kind in _NOTHING:
        return LayerLaw()
    if kind in _FULL:
        mixed = _mamba(config, b) if kind == "hybrid" else LayerLaw()
        return LayerLaw(_token(config, index, kind, b)) + mixed
    if kind in _SLIDING:
        window = read_field(config, "sliding_window", "attention_chunk_size")
        if window is None:
            raise FormulaError(f"layers of kind {kind!r} without a window")
        return LayerLaw(0, (window - 1) * _token(config, index, kind, b))
    if kind == "linear_attention":
        return _linear(config, b)
    if kind == "mamba":
        return _mamba(config, b)
    if kind == "conv":
        length = read_field(config, "conv_L_cache")
        if length is not None:
            return LayerLaw(0, config.hidden_size * length * b)
    raise FormulaError(f"layers of kind {kind!r} keep what no formula here tells")


def _kinds(config: Any) -> Sequence[str]:
    layers = read_field(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    kinds = read_field(config, "layer_types", "layers_block_type")
    if kinds:
        return list(kinds)
    if layers is None:
        raise FormulaError("the config names no layers")
    if read_field(config, "use_sliding_window") is not False and read_field(
        config, "sliding_window", "attention_chunk_size"
    ):
        return ["sliding_attention"] * layers
    return ["full_attention"] * layers


def _token(config: Any, index: int, kind: str, b: int) -> int:
    """One token's keys and values, or its latent, in one attention layer."""
    indexer = (read_field(config, "index_head_dim") or 0) * b if _has_indexer(config, index) else 0
    latent = read_field(config, "kv_lora_rank")
    if latent is not None:
        return int((latent + (read_field(config, "qk_rope_head_dim") or 0)) * b + indexer)
    heads = read_field(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    hidden = read_field(config, "hidden_size", "n_embd", "d_model")
    if not isinstance(heads, int) or not isinstance(hidden, int):
        raise FormulaError("the config names no heads or hidden size")
    kv_heads, key = heads_and_size(config, hidden, heads)
    value = read_field(config, "v_head_dim") or key
    key, value, kv_heads = _of_kind(config, kind, (key, value, kv_heads))
    return int(kv_heads * (key + value) * b + indexer)


def heads_and_size(config: Any, hidden: int, heads: int) -> tuple[int, int]:
    """(heads whose keys are cached, elements of one) of usual attention."""
    kv_heads = (
        read_field(config, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
        or heads
    )
    if read_field(config, "new_decoder_architecture"):
        kv_heads = heads  # Falcon-40B repeats its key heads before it caches them
    elif read_field(config, "multi_query"):
        kv_heads = 1
    return kv_heads, read_field(config, "head_dim", "kv_channels", "attention_head_dim") or hidden // heads


def _of_kind(config: Any, kind: str, usual: tuple[int, int, int]) -> tuple[int, int, int]:
    """(key elements, value elements, heads), where kinds of layers have their own."""
    key, value, heads = usual
    if kind in _SLIDING:
        key = read_field(config, "swa_head_dim") or key
        value = read_field(config, "swa_v_head_dim") or read_field(config, "swa_head_dim") or value
        return key, value, read_field(config, "swa_num_key_value_heads") or heads
    if (wide := read_field(config, "global_head_dim")) is not None:
        key = value = wide
    heads = read_field(config, "num_global_key_value_heads") or heads
    return key, value, heads


def _has_indexer(config: Any, index: int) -> bool:
    kinds = read_field(config, "indexer_types")
    return kinds is None or kinds[index] == "full"


def _linear(config: Any, b: int) -> LayerLaw:
    """Gated DeltaNet (arXiv:2412.06464): a convolution's inputs, and a matrix for each value head."""
    keys, values = (
        read_field(config, "linear_num_key_heads", "linear_num_heads"),
        read_field(config, "linear_num_value_heads", "linear_num_heads"),
    )
    key = read_field(config, "linear_key_head_dim", "linear_head_dim")
    value = read_field(config, "linear_value_head_dim", "linear_head_dim")
    kernel = read_field(config, "linear_conv_kernel_dim")
    if None not in (keys, values, key, value, kernel):
        channels = 2 * keys * key + values * value
        return LayerLaw(0, channels * kernel * b + values * key * value * _FLOAT32)
    own = read_field(config, "linear_attn_config")
    if isinstance(own, dict) and {"num_heads", "head_dim", "short_conv_kernel_size"} <= own.keys():
        heads, size, kernel = own["num_heads"], own["head_dim"], own["short_conv_kernel_size"]
        return LayerLaw(0, 3 * heads * size * kernel * b + heads * size * size * _FLOAT32)
    return _mamba(config, b)


def _mamba(config: Any, b: int) -> LayerLaw:
    """Mamba-2 (arXiv:2405.21060): a convolution's inputs, and a matrix for each head."""
    heads = read_field(config, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
    size = read_field(config, "mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim")
    state = read_field(config, "mamba_d_state", "ssm_state_size", "state_size")
    groups = read_field(config, "mamba_n_groups", "mamba_ngroups", "n_groups")
    kernel = read_field(config, "mamba_d_conv", "conv_kernel")
    if None in (heads, size, state, groups, kernel):
        raise FormulaError("a recurrent state whose sizes the config does not name")
    channels = heads * size + 2 * groups * state
    return LayerLaw(0, channels * kernel * b + heads * size * state * _FLOAT32)


def read_field(config: Any, *names: str) -> Any:
    """The first of `names` that the config holds, else None. `config`: of transformers, which raises for what differs from
    layer to layer, or the content of a config.json.
    """
    for name in names:
        try:
            value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
        except Exception:
            continue
        if value is not None:
            return value
    return None
