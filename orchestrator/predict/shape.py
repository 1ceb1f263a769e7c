"""What of a model's config decides its memory: layers, heads, windows, and the exact size of its weights."""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.predict.kv_formula import FormulaError, formula_law, heads_and_size, read_field
from orchestrator.predict.rehearsed.kv_law import rehearsed_law
from workers.cell import ModelRef
from workers.models.config import one_line
from workers.models.source import RANDOM
from workers.rehearsal.passes import NotRehearsable

#: mha: as many key heads as query heads. gqa: fewer. mqa: one. mla: one latent per token (DeepSeek-V2,
#: arXiv:2405.04434).
AttentionKind = Literal["mha", "gqa", "mqa", "mla"]

#: Those that a cell may ask for, and those that files are stored in.
_DTYPE_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
    "uint8": 1,
}
#: No number of a model is larger; a config that says so is damaged.
_LARGEST = 2**40
#: Building a model on the meta device takes 40 ms to 2 s; a config that takes longer describes none.
_BUILD_LIMIT_S = 8.0
_FULL = ("full_attention", "attention")
_SLIDING = ("sliding_attention", "chunked_attention")
_NO_CACHE = ("moe", "mlp")


class ShapeError(ValueError):
    """The config does not say what memory the model's cache takes (e.g. recurrent layers); the message names
    why.
    """


@dataclass(frozen=True, slots=True)
class OtherCache:
    """What one sequence's cache holds beside the keys and values of `ModelShape.windows`: states, indexers, latents of other
    sizes. Elements that take the model's dtype, with each token and once, and bytes of states with a dtype of their own.
    """

    numels_per_token: int = 0
    numels: int = 0
    fixed_bytes: int = 0

    def bytes(self, tokens: int, dtype: str) -> int:
        """After `tokens` tokens."""
        return (tokens * self.numels_per_token + self.numels) * dtype_bytes(dtype) + self.fixed_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """`windows`: per caching layer, the sliding window in tokens, None = every token is kept.

    `weight_numels`: (elements, tensors of that many) of the tensors that take the model's dtype, shared
    storage once; `fixed_bytes`: tensors with a dtype of their own (the rotary frequencies stay float32). Both
    None when transformers cannot build the model from its config (remote code): only the KV arithmetic is
    known then.
    """

    model_type: str
    attention: AttentionKind
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    key_dim: int  # elements of one key head; mla: the latent
    value_dim: int  # elements of one value head; mla: the rotary part
    windows: tuple[int | None, ...]
    intermediate: int
    gated_mlp: bool
    parallel_residual: bool  # attention and MLP read the same residual
    vocab: int
    tied_embeddings: bool
    max_positions: int | None
    learned_positions: bool  # a table of positions: nothing runs beyond `max_positions`
    weight_numels: tuple[tuple[int, int], ...] | None
    fixed_bytes: int | None
    stored_dtype: str | None  # of the weight files, by the config's own word
    chosen_attention: str = "sdpa"  # what transformers takes where the sweep file leaves it to `auto`
    other_cache: OtherCache = OtherCache()
    is_quantised: bool = False  # its files hold other numbers than `weight_numels`
    expanded: tuple[int, int] | None = (
        None  # mla: elements of all heads' keys, and of their values, made of one latent
    )
    stored_tensors: tuple[tuple[int, int], ...] | None = (
        None  # quantised: (bytes, tensors of that many) of its files
    )

    @property
    def parameters(self) -> int | None:
        return (
            None if self.weight_numels is None else sum(numel * count for numel, count in self.weight_numels)
        )

    def weights_bytes(self, dtype: str) -> int | None:
        """Bytes of all parameters and buffers, each storage once. None: the config alone does not tell.

        Quantised weights are counted as they are stored, whatever `dtype` is asked for.
        """
        if self.is_quantised:
            stored = self.stored_tensors
            return None if stored is None else sum(size * count for size, count in stored)
        if self.parameters is None or self.fixed_bytes is None:
            return None
        return self.parameters * dtype_bytes(dtype) + self.fixed_bytes

    def key_bytes(self, dtype: str) -> int:
        """Bytes of one token's keys in one layer."""
        return self.kv_heads * self.key_dim * dtype_bytes(dtype)

    def value_bytes(self, dtype: str) -> int:
        return self.kv_heads * self.value_dim * dtype_bytes(dtype)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of one token's keys and values in all layers (within the window, where layers have one)."""
        other = self.other_cache.numels_per_token * dtype_bytes(dtype)
        return len(self.windows) * (self.key_bytes(dtype) + self.value_bytes(dtype)) + other


def dtype_bytes(dtype: str) -> int:
    return _DTYPE_BYTES[dtype]


def shape_for(name: str, ref: ModelRef) -> ModelShape:
    """The shape of a model by its name in a sweep file. Raises `LoadError`, `ShapeError`."""
    from workers.models.load import read_config
    from workers.models.stored_weights import stored_tensors

    config = read_config(name, ref)
    try:
        shape = shape_of(config)
        if name.startswith(RANDOM):  # built from the config in the dtype that the sweep asks for
            return dataclasses.replace(shape, is_quantised=False)
        return (
            dataclasses.replace(shape, stored_tensors=stored_tensors(name, ref))
            if shape.is_quantised
            else shape
        )
    except ShapeError:
        raise
    except Exception as error:  # anything may be wrong with a file that a person names
        raise ShapeError(one_line(error)) from error


def shape_of(config: Any) -> ModelShape:
    """`config`: a transformers PreTrainedConfig, or the plain content of a config.json. Raises
    `ShapeError`.
    """
    if isinstance(config, dict):
        config = _as_config(config)
    text = config if isinstance(config, dict) else config.get_text_config(decoder=True)
    hidden = read_field(text, "hidden_size", "n_embd", "d_model")
    heads = read_field(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    layers = read_field(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if hidden is None or heads is None or layers is None:
        raise ShapeError("the config names no hidden size, heads or layers")
    attention, kv_heads, key_dim, value_dim = _attention(text, hidden, heads)
    built = _built(config)
    shape = ModelShape(
        model_type=read_field(text, "model_type") or "unknown",
        attention=attention,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        windows=_windows(text, layers),
        intermediate=read_field(text, "intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")
        or 4 * hidden,
        gated_mlp=_gated(text),
        parallel_residual=bool(read_field(text, "use_parallel_residual", "parallel_attn")),
        vocab=read_field(text, "vocab_size", "padded_vocab_size") or 0,
        tied_embeddings=bool(read_field(text, "tie_word_embeddings")),
        max_positions=read_field(text, "max_position_embeddings", "n_positions", "seq_length", "max_seq_len"),
        learned_positions=built.learned_positions,
        weight_numels=built.weight_numels,
        fixed_bytes=built.fixed_bytes,
        stored_dtype=_stored_dtype(config),
        chosen_attention=built.chosen_attention,
        is_quantised=read_field(config, "quantization_config") is not None,
        expanded=_expanded(text, heads) if attention == "mla" else None,
    )
    _check_numbers(shape)
    return shape if isinstance(config, dict) else _with_other_cache(shape, config, built.is_stateful)


def _with_other_cache(shape: ModelShape, config: Any, is_stateful: bool) -> ModelShape:
    """The shape with what its layers keep beside keys and values, or instead. Raises `ShapeError` where nothing tells.

    Asked of the model itself, by rehearsal, unless it is plain and the formulas say so.
    """
    try:
        told: FormulaError | None = None
        laws = [formula_law(config, width) for width in (2, 4)]
        formula = [(law.per_token, law.constant) for law in laws]
    except FormulaError as error:
        told, formula = error, []
    arithmetic = [_keys_and_values(shape, dtype) for dtype in ("bfloat16", "float32")]
    if formula == arithmetic and not is_stateful:
        return shape
    try:
        found = [rehearsed_law(config, dtype) for dtype in ("bfloat16", "float32")]
    except NotRehearsable as error:
        if told is not None:
            raise ShapeError(f"{told}; it cannot be rehearsed: {error}") from None
        found = formula
    windows = shape.windows
    if found[0][0] != arithmetic[0][0] or found[0][1] < arithmetic[0][1]:
        windows, arithmetic = (), [(0, 0)] * 2  # keys and values are not as the usual fields say
    growing = (found[1][0] - found[0][0]) // 2 if not windows else 0
    (_, half), (_, whole) = ((f[0], f[1] - a[1]) for f, a in zip(found, arithmetic, strict=True))
    numels = (whole - half) // 2
    other = OtherCache(growing, numels, half - 2 * numels)
    return dataclasses.replace(shape, windows=windows, other_cache=other)


def _keys_and_values(shape: ModelShape, dtype: str) -> tuple[int, int]:
    """(bytes with each token, bytes once): a window keeps one token less than it shows, the query itself."""
    token = shape.key_bytes(dtype) + shape.value_bytes(dtype)
    sizes = [window for window in shape.windows if window is not None]
    return token * (len(shape.windows) - len(sizes)), token * sum(window - 1 for window in sizes)


def _check_numbers(shape: ModelShape) -> None:
    """Refuses what no arithmetic can be done with. Raises `ShapeError` that names the number."""
    sizes = ("layers", "hidden", "heads", "kv_heads", "key_dim", "value_dim", "intermediate", "vocab")
    numbers = {name: getattr(shape, name) for name in sizes} | {
        "sliding window": next((window for window in shape.windows if window is not None), 1),
        "trained positions": 1 if shape.max_positions is None else shape.max_positions,
    }
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < _LARGEST:
            raise ShapeError(f"{name.replace('_', ' ')}: the config says {number!r}")


def _as_config(content: dict[str, Any]) -> Any:
    """A transformers config, with its defaults and aliases; the dict itself where the type is remote code."""
    from transformers import CONFIG_MAPPING, AutoConfig

    fields = dict(content)
    model_type = fields.pop("model_type", None)
    return AutoConfig.for_model(model_type, **fields) if model_type in CONFIG_MAPPING else content


def _attention(config: Any, hidden: int, heads: int) -> tuple[AttentionKind, int, int, int]:
    """(kind, cached heads, key elements, value elements) of what transformers writes into the cache."""
    latent = read_field(config, "kv_lora_rank")
    if latent is not None:
        return "mla", 1, latent, read_field(config, "qk_rope_head_dim")
    kv_heads, head_dim = heads_and_size(config, hidden, heads)
    kind: AttentionKind = "mha" if kv_heads == heads else "mqa" if kv_heads == 1 else "gqa"
    return kind, kv_heads, head_dim, head_dim


def _expanded(config: Any, heads: int) -> tuple[int, int] | None:
    sizes = [read_field(config, name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return heads * (sizes[0] + sizes[1]), heads * sizes[2]


def _windows(config: Any, layers: int) -> tuple[int | None, ...]:
    """As `transformers.DynamicCache` decides: `layer_types` rules, else one window for every layer."""
    sliding = (
        read_field(config, "sliding_window")
        if read_field(config, "use_sliding_window") is not False
        else None
    )
    window = sliding or read_field(config, "attention_chunk_size")
    kinds = read_field(config, "layer_types") or [_SLIDING[0] if window else _FULL[0]] * layers
    if isinstance(config, dict):
        for kind in kinds:
            if kind not in (*_FULL, *_SLIDING, *_NO_CACHE):
                raise ShapeError(f"layers of kind {kind!r} keep a state whose size the config does not tell")
    return tuple(None if kind in _FULL else window for kind in kinds if kind in (*_FULL, *_SLIDING))


def _gated(config: Any) -> bool:
    """Whether the MLP multiplies two projections of `intermediate` elements (SwiGLU) instead of using one."""
    activation = read_field(config, "hidden_act", "hidden_activation") or ""
    family = read_field(config, "model_type") or ""
    return activation in ("silu", "swish") or family.startswith("gemma") or family == "qwen"


def _stored_dtype(config: Any) -> str | None:
    dtype = read_field(config, *(("dtype", "torch_dtype") if isinstance(config, dict) else ("dtype",)))
    name = str(dtype).removeprefix("torch.")
    return name if name in _DTYPE_BYTES else None


@dataclass(frozen=True, slots=True)
class _Built:
    """What only the built model tells. None: transformers has no class for it."""

    weight_numels: tuple[tuple[int, int], ...] | None = None
    fixed_bytes: int | None = None
    learned_positions: bool = False
    chosen_attention: str = "sdpa"
    is_stateful: bool = False


#: By the config's content: to build a model again takes 40 ms and more.
_BUILT: dict[str, _Built] = {}


def _built(config: Any) -> _Built:
    from workers.models import LoadError
    from workers.models.build import model_class

    if isinstance(config, dict):
        return _Built()
    try:
        if model_class(config) is None:
            return _Built()
    except LoadError:
        return _Built()
    content = f"{type(config).__name__} {config.to_json_string(use_diff=False)}"
    if content not in _BUILT:
        _BUILT[content] = _count(config)
    return _BUILT[content]


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """Raises `ShapeError` at the first module that is built too late."""
    from torch.nn.modules import module

    deadline = time.monotonic() + _BUILD_LIMIT_S

    def check(*built: object) -> None:
        if time.monotonic() > deadline:
            raise ShapeError(f"the model is not built within {_BUILD_LIMIT_S:.0f} s")

    hook = module.register_module_module_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _keeps_own_state(built: Any) -> bool:
    from workers.engines.eager.policies import takes_dynamic_cache

    return bool(built._is_stateful) or not takes_dynamic_cache(built)


def _count(config: Any) -> _Built:
    """Builds the model on the meta device, where tensors have a shape and no bytes: about 40 ms."""
    import torch

    from workers.models.build import from_config

    with torch.device("meta"), _in_time():
        model = from_config(copy.deepcopy(config), torch.bfloat16)
    numels: dict[int, int] = {}
    fixed = 0
    for tensor in {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}.values():
        if tensor.dtype == torch.bfloat16:
            numels[tensor.numel()] = numels.get(tensor.numel(), 0) + 1
        else:
            fixed += tensor.numel() * tensor.element_size()
    learned = any(
        isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in ("wpe", "embed_positions")
        for name, module in model.named_modules()
    )
    attention = model.config.get_text_config(decoder=True)._attn_implementation
    return _Built(tuple(sorted(numels.items())), fixed, learned, attention, _keeps_own_state(type(model)))
