"""Listens to the attention of a model: what it is given, and how that was turned.

A few tokens are read once, with attention that adds nothing, so that each layer is given the same in every row of the batch,
and with angles of our own, which tell the numbers of a head apart. What comes out says how queries and keys are turned.
R rows of the probe, V numbers: of each query and key head of each token, D of them in a head.
"""

import copy
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from workers.engines.eager.first_passes import blames_the_code
from workers.engines.eager.rerouted import Rotation, rerouted, rotary_of, turned_at_once
from workers.engines.eager.rope import Rope
from workers.engines.eager.weigh import weigh
from workers.engines.session import ModeUnsupported
from workers.engines.shared.rope import working
from workers.models.config import one_line

_PROBE = "probe"
_TOKENS = 4
#: Angles: no rotation, here and far away; cos 0 and sin 1; cos that names its column, in two digits.
_HERE, _FAR_AWAY, _SINE, _LOW, _HIGH = range(5)
_DIGIT = 16
_FAR = 2**20
_POSITIONS = (0, 1, 2, 5, 17, 50)


@dataclass(frozen=True, slots=True)
class LayerRule:
    """How one layer of attention streams.

    `window`: its own, in tokens with the query's; None: the cache policy decides. `rope`: None where nothing is rotated.
    `rotary`: which of the model's angles it is given, as further arguments of its rotary embedding. `scaled`: the model
    multiplies its queries by a number that depends on their position, here the one relative to the cache.
    """

    window: int | None
    rope: Rope | None
    rotary: tuple[Any, ...]
    scaled: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of attention. `rotary`: None where nothing was rotated."""

    module: Any
    rows_RVD: torch.Tensor
    heads: tuple[int, int]
    rotary: tuple[Any, ...] | None
    scaling: float | None
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Listened:
    """`layers`: those that attend. `columns`: of each kind of angles the size of cos. `movers`: the model's functions of
    rotation that also put the numbers of a head into another order (interleaved pairs, side by side). `is_complex`: its
    angles are complex numbers."""

    layers: dict[int, LayerRule]
    columns: dict[tuple[Any, ...], int]
    movers: frozenset[Rotation]
    is_complex: bool


class _Angles(nn.Module):
    """In the place of a rotary embedding: for each row of the batch its own angles. Listens to what follows."""

    def __init__(self, own: Any, rows: int) -> None:
        super().__init__()
        self.own = own
        self.row_B = torch.arange(5).repeat_interleave(rows // 5)
        self.turned: tuple[Any, ...] | None = None
        self.columns: dict[tuple[Any, ...], int] = {}
        self.calls: dict[int, _Call] = {}
        self.movers: set[Rotation] = set()
        self.is_complex = False

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor, *which: Any, **named: Any) -> Any:
        found = self.own(x, position_ids[:1] * 0, *which, **named)
        self.is_complex = isinstance(found, torch.Tensor)
        like, _ = _cos_sin(found)
        which = (*which, *named.values())
        size = like.shape[-1]
        self.columns[which] = size
        column_C = torch.arange(size, device=like.device)
        one_C = torch.ones(size, device=like.device)
        cos_RC = torch.stack([one_C, one_C, 0 * one_C, 1 + column_C % _DIGIT, 1 + column_C // _DIGIT])
        sin_RC = torch.stack([one_C if row == _SINE else 0 * one_C for row in range(5)])
        at_B = self.row_B.to(like.device)
        cos: Any = cos_RC[at_B][:, None].to(like.dtype)
        sin = sin_RC[at_B][:, None].to(like.dtype)
        if not self.is_complex:
            cos.which = which
            return cos, sin
        angles: Any = torch.complex(cos, sin)
        angles.which = which
        return angles

    def noting(self, own: Rotation) -> Rotation:
        count = turned_at_once(own)
        bind = inspect.signature(own).bind

        def rotate(*arguments: Any, **named: Any) -> Any:
            given = list(bind(*arguments, **named).arguments.values())
            self.turned = getattr(given[count], "which", None)
            if self.turned is None:
                raise ModeUnsupported("its angles are changed on their way to the rotation")
            turned = own(*arguments, **named)
            first = turned if count == 1 else turned[0]
            here_B = self.row_B.to(first.device) == _HERE
            if not torch.equal(first[here_B], given[0][here_B]):
                self.movers.add(own)
            return turned

        return rotate


def _cos_sin(angles: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a rotary embedding gives: cos and sin, or complex numbers of both."""
    return (angles.real, angles.imag) if isinstance(angles, torch.Tensor) else angles


def _listening(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Attention that adds nothing. `query` [B, H, 1, D]."""
    probe: _Angles = module.streaming
    rows_RVD = torch.cat([query[:, :, 0], key[:, :, 0]], 1).unflatten(0, (5, -1)).flatten(1, 2)
    heads = query.shape[1], key.shape[1]
    probe.calls[module.layer_idx] = _Call(module, rows_RVD, heads, probe.turned, scaling, arguments)
    probe.turned = None
    shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[3])
    return query.new_zeros(shape), None


AttentionInterface.register(_PROBE, _listening)


@torch.no_grad()
def listen(model: PreTrainedModel) -> Listened:
    """Raises `ModeUnsupported` where the rule of streaming does not hold."""
    own = rotary_of(model)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids_B1 = (torch.arange(_TOKENS) + vocabulary // 2).repeat(5)[:, None].to(model.device)
    probe = _Angles(own, len(ids_B1))
    position_B1 = (torch.where(probe.row_B == _FAR_AWAY, _FAR, 0))[:, None].to(model.device)
    try:
        with rerouted(model, probe, probe.noting, _PROBE, probe):
            model.base_model(input_ids=ids_B1, position_ids=position_B1, use_cache=False)
    except ModeUnsupported:
        raise
    except Exception as error:  # an architecture's own code may need anything
        if not blames_the_code(error, model.device):
            raise
        raise ModeUnsupported(f"it does not run on other angles than its own: {one_line(error)}") from error
    if not probe.columns:
        raise ModeUnsupported("its rotary embedding is never asked")
    columns = {which: _columns(own, which, size) for which, size in probe.columns.items()}
    layers = {layer: _heard(call, columns) for layer, call in probe.calls.items()}
    return Listened(layers, probe.columns, frozenset(probe.movers), probe.is_complex)


def _heard(call: _Call, columns: "dict[tuple[Any, ...], _Columns]") -> LayerRule:
    here_VD = call.rows_RVD[_HERE]
    scaled = not _same(call.rows_RVD[_FAR_AWAY], here_VD).all()
    if scaled and not _is_scaled(call):
        raise ModeUnsupported("its queries or keys depend on their position beside the rotation")
    _check_attention(call)
    window = call.arguments.get("sliding_window")
    if call.rotary is None:
        if not all(_same(row_VD, here_VD).all() for row_VD in call.rows_RVD):
            raise ModeUnsupported("it rotates in a way of its own")
        return LayerRule(window, None, next(iter(columns)), scaled)
    return LayerRule(window, _rope(call.rows_RVD, columns[call.rotary]), call.rotary, scaled)


def _is_scaled(call: _Call) -> bool:
    """Whether all queries far away are those here times one number, and keys are the same."""
    here_VD, away_VD = call.rows_RVD[_HERE], call.rows_RVD[_FAR_AWAY]
    heads, kv_heads = call.heads
    is_query_V = torch.arange(len(here_VD), device=here_VD.device) % (heads + kv_heads) < heads
    here_QD, away_QD = here_VD[is_query_V], away_VD[is_query_V]
    factor = (here_QD * away_QD).sum() / here_QD.square().sum()
    keys_alike = _same(away_VD[~is_query_V], here_VD[~is_query_V]).all()
    return bool(keys_alike and _same(away_QD, here_QD * factor).all())


@dataclass(frozen=True, slots=True)
class _Columns:
    """The frequency of each column of cos and sin, and what multiplies both."""

    frequency_C: torch.Tensor
    scaling: float


def _columns(own: Any, which: tuple[Any, ...], size: int) -> _Columns:
    """Of a rotary embedding: angle = position * frequency, now and when the text is long."""
    rotary = copy.deepcopy(own)
    prefix = f"{which[0]}_" if which and hasattr(rotary, f"{which[0]}_inv_freq") else ""
    inv_freq_F = getattr(rotary, f"{prefix}inv_freq", None)
    if inv_freq_F is None:
        raise ModeUnsupported("its rotary embedding has no frequencies (`inv_freq`)")
    scaling = float(getattr(rotary, f"{prefix}attention_scaling", 1.0))
    frequency_F = inv_freq_F.double()
    column_C = torch.arange(size, device=frequency_F.device)
    position_P = torch.tensor(_POSITIONS, device=frequency_F.device)
    x = torch.zeros(1, 1, 1, dtype=torch.float32, device=frequency_F.device)
    found = [table[0] for table in _cos_sin(rotary(x, position_P[None], *which))]
    for frequency_C in (
        frequency_F[column_C % len(frequency_F)],
        frequency_F[column_C * len(frequency_F) // size],
    ):
        angle_PC = position_P[:, None] * frequency_C
        true = angle_PC.cos() * scaling, angle_PC.sin() * scaling
        if all(torch.allclose(a.double(), b, atol=1e-3) for a, b in zip(found, true, strict=True)):
            break
    else:
        raise ModeUnsupported("its angles are not position times frequency")
    longer = _cos_sin(rotary(x, torch.cat([position_P, position_P.new_tensor([_FAR])])[None], *which))
    if not all(torch.allclose(a, b[0, :-1], atol=1e-3) for a, b in zip(found, longer, strict=True)):
        raise ModeUnsupported("a key is rotated once, but its frequencies change with the length of the text")
    return _Columns(frequency_C, scaling)


def _rope(rows_RVD: torch.Tensor, columns: _Columns) -> Rope:
    """From what came out of angles that tell numbers of a head apart."""
    here_VD, sine_VD = rows_RVD[_HERE], rows_RVD[_SINE]
    same_DD = _same(sine_VD[:, :, None], here_VD[:, None])
    minus_DD = _same(sine_VD[:, :, None], -here_VD[:, None])
    rotated_R = (~same_DD.diagonal()).nonzero().flatten()
    size, first = len(rotated_R), int(rotated_R[0]) if len(rotated_R) else 0
    pairs_RD = (same_DD | minus_DD)[rotated_R]
    if not size or int(rotated_R[-1]) - first + 1 != size or not (pairs_RD.sum(1) == 1).all():
        raise ModeUnsupported("what it rotates are no pairs of neighbouring numbers of a head")
    partner_R = pairs_RD.int().argmax(1) - first
    sign_R = torch.where(minus_DD[rotated_R, partner_R + first], -1.0, 1.0).double()
    column_R = _digit(rows_RVD, _LOW)[rotated_R] + _DIGIT * _digit(rows_RVD, _HIGH)[rotated_R]
    if not ((column_R >= 0) & (column_R < len(columns.frequency_C))).all():
        raise ModeUnsupported("it multiplies cos with something else than a query or a key")
    frequency_R = sign_R * columns.frequency_C[column_R]
    half_split_R = torch.arange(size, device=partner_R.device).roll(size // 2)
    is_half_split = torch.equal(partner_R, half_split_R)
    return Rope(first, frequency_R, None if is_half_split else partner_R, columns.scaling)


def _same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Which places hold the same numbers throughout the first axis. Rows of one product may be rounded differently."""
    bound = 1e-4 if a.dtype in (torch.float32, torch.float64) else 2e-2
    return (a - b).float().norm(dim=0) <= bound * b.float().norm(dim=0)


def _digit(rows_RVD: torch.Tensor, row: int) -> torch.Tensor:
    """[D] of each number of a head: by what it was multiplied, less one."""
    here_VD, there_VD = rows_RVD[_HERE].double(), rows_RVD[row].double()
    return ((here_VD * there_VD).sum(0) / here_VD.square().sum(0)).round().long() - 1


def _check_attention(call: _Call) -> None:
    """The model's own attention on random input is a softmax as `weigh` computes it, whatever else it is told."""
    function: Callable[..., Any] | None = getattr(
        sys.modules[type(call.module).__module__], "eager_attention_forward", None
    )
    if function is None:
        raise ModeUnsupported("its attention does not show how it attends (`eager_attention_forward`)")
    (heads, kv_heads), count = call.heads, 6
    device, size = call.rows_RVD.device, call.rows_RVD.shape[2]
    draw = torch.Generator().manual_seed(0)
    like = torch.empty(0, dtype=working(call.rows_RVD.dtype), device=device)
    q, k, v = (
        2 * torch.randn(1, h, count, size, generator=draw).to(like) for h in (heads, kv_heads, kv_heads)
    )
    bias = like.new_full((count, count), -torch.inf).triu(1)
    scaling = size**-0.5 if call.scaling is None else call.scaling
    try:
        expected = function(call.module, q, k, v, bias[None, None], scaling=scaling, **call.arguments)[0]
    except Exception as error:  # an architecture's own code may need anything
        if not blames_the_code(error, device):
            raise
        raise ModeUnsupported(f"its attention cannot be tried: {one_line(error)}") from error
    groups = heads // kv_heads
    products = q.reshape(kv_heads, -1, size) @ k[0].transpose(1, 2)
    told = {
        name: call.arguments[name] for name in ("softcap", "s_aux") if call.arguments.get(name) is not None
    }
    weights = weigh(products, bias.repeat(groups, 1), 1, scaling, **told)
    found = (weights @ v[0]).view(1, heads, count, size).transpose(1, 2)
    if not torch.allclose(found, expected.to(found.dtype).reshape(found.shape), atol=2e-4):
        raise ModeUnsupported("its attention is not a softmax over scores of queries and keys")
