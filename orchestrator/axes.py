"""The axes of a sweep: what sets one cell apart from another. Columns, keys, groupings and captions follow from `AXES`.

A new axis is a field of `Cell`, a key of the sweep file, a line of `plan.expand`, and a line here. Boundary searches
take it over from `plan.expand`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from workers.allocator import DEFAULT
from workers.cell import Cell
from workers.kv_dtype import AUTO as AUTO_KV
from workers.kv_dtype import DEVICE
from workers.modes import BASELINE, GENERATE, MODES


class Role(Enum):
    """What an axis does in the key of a table."""

    KIND = auto()  # says which tables a cell goes into
    SETTING = auto()  # together, what a section of the report is about
    CONDITION = auto()  # has to be equal before two modes are compared
    LENGTH = auto()  # grows along a curve
    MODE = auto()  # names the curve; POLICY and DECODER tell curves of one mode apart
    POLICY = auto()  # how the past is kept
    DECODER = auto()  # how tokens are found; a speculative cell's plain twin differs in these
    REPEAT = auto()  # tells equal runs apart


#: The roles that tell the curves of one setting and condition apart.
VARIANT = (Role.MODE, Role.POLICY, Role.DECODER)
#: Everything that sets measured cells apart but their repeats.
IDENTITY = (Role.SETTING, Role.CONDITION, Role.LENGTH, *VARIANT)
#: The one part of a key that no cell has: the kind of device that ran it.
DEVICE_KIND = "device_kind"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """`hint`: type of the values; the column's type follows from it. `usual`: the value that a caption leaves out, and
    that of cells which were recorded before there was the axis.

    `words`: how a caption says any other value; default: the axis's name and the value. `changes_tokens`: whether
    equal prompts may give other tokens at another value. `of_mode`: the mode brings the value with it, so a caption
    says it only where curves of one mode differ in it.
    """

    name: str
    hint: Any
    role: Role
    read: Callable[[Cell], Any]
    usual: Any = None
    words: Callable[[Any], str] | None = None
    changes_tokens: bool = True
    of_mode: bool = False

    def caption(self, value: Any) -> str:
        return self.words(value) if self.words is not None else f"{self.name.replace('_', ' ')} {value}"


def _field(name: str, hint: Any, role: Role, **about: Any) -> Axis:
    """An axis that is a field of `Cell` under its own name."""
    return Axis(name=name, hint=hint, role=role, read=lambda cell: getattr(cell, name), **about)


def _injected(cell: Cell) -> float | None:
    """The acceptance that an oracle draft forces, the mean of several rates; None: the draft's own."""
    rate = cell.speculation.acceptance if cell.speculation else None
    return sum(rate) / len(rate) if isinstance(rate, tuple) else rate


AXES: tuple[Axis, ...] = (
    _field("purpose", str, Role.KIND, usual="measure"),
    _field("workload", str, Role.KIND, usual=GENERATE.name),
    _field("synthetic", bool, Role.KIND, usual=False),
    Axis(name="model", hint=str, role=Role.SETTING, read=lambda cell: cell.model.target),
    Axis(name="dtype", hint=str, role=Role.SETTING, read=lambda cell: cell.model.dtype),
    Axis(
        name="budget_bytes",
        hint=int | None,
        role=Role.SETTING,
        read=lambda cell: cell.budget,
        changes_tokens=False,
    ),
    _field("engine", str, Role.SETTING),
    _field(
        "allocator",
        str,
        Role.CONDITION,
        usual=DEFAULT,
        words=lambda text: f"allocator {text}",
        changes_tokens=False,
    ),
    _field("prompt_tokens", int, Role.CONDITION, words=lambda count: f"prompt {count:,}"),
    _field("batch_size", int, Role.CONDITION, usual=1, words=lambda size: f"batch {size}"),
    _field("repetition_penalty", float, Role.CONDITION, usual=1.0, words=lambda rate: f"penalty {rate:g}"),
    Axis(
        name="attn_implementation",
        hint=str,
        role=Role.CONDITION,
        read=lambda cell: cell.model.attn_implementation,
        usual="auto",
        words=lambda name: f"{name} attention",
    ),
    Axis(
        name="devices_per_cell",
        hint=int,
        role=Role.CONDITION,
        read=lambda cell: cell.devices,
        usual=1,
        words=lambda count: f"{count} devices",
    ),
    # What a corpus and a prompt's cut change is in the prompt, and divergence compares equal prompts.
    _field("corpus", str, Role.CONDITION, usual="builtin", changes_tokens=False),
    _field(
        "prefill_chunk",
        int | None,
        Role.CONDITION,
        words=lambda size: f"prompt in chunks of {size:,}",
        changes_tokens=False,
    ),
    Axis(
        name="trust_remote_code",
        hint=bool,
        role=Role.CONDITION,
        read=lambda cell: cell.model.trust_remote_code,
        usual=False,
        words=lambda _: "the model's own code",
    ),
    Axis(
        name="task",
        hint=str | None,
        role=Role.CONDITION,
        read=lambda cell: cell.retrieve.task if cell.retrieve else None,
        words=lambda name: f"task {name}",
    ),
    _field("length", int, Role.LENGTH),
    _field("mode", str, Role.MODE, usual=BASELINE),
    Axis(
        name="cache_policy",
        hint=str,
        role=Role.POLICY,
        read=lambda cell: cell.mode_spec.policy.name,
        usual=MODES[BASELINE].policy.name,
        of_mode=True,
    ),
    Axis(
        name="sinks",
        hint=int | None,
        role=Role.POLICY,
        read=lambda cell: cell.streaming.sinks if cell.streaming else None,
        of_mode=True,
    ),
    Axis(
        name="window",
        hint=int | None,
        role=Role.POLICY,
        read=lambda cell: cell.streaming.window if cell.streaming else None,
        of_mode=True,
    ),
    _field("kv_dtype", str, Role.POLICY, usual=AUTO_KV, words=lambda name: f"{name} KV"),
    _field("kv_placement", str, Role.POLICY, usual=DEVICE, words=lambda place: f"KV on the {place}"),
    Axis(
        name="decoder",
        hint=str,
        role=Role.DECODER,
        read=lambda cell: cell.mode_spec.decoder.name,
        usual=MODES[BASELINE].decoder.name,
        of_mode=True,
    ),
    Axis(name="draft", hint=str | None, role=Role.DECODER, read=lambda cell: cell.model.draft, of_mode=True),
    Axis(
        name="gamma",
        hint=int | None,
        role=Role.DECODER,
        read=lambda cell: cell.speculation.gamma if cell.speculation else None,
        of_mode=True,
    ),
    Axis(
        name="acceptance_injected",
        hint=float | None,
        role=Role.DECODER,
        read=_injected,
        words=lambda rate: f"injected {rate:.2g}",
    ),
    Axis(
        name="needle_depths",
        hint=int | None,
        role=Role.REPEAT,
        read=lambda cell: cell.retrieve.depths if cell.retrieve else None,
    ),
    Axis(
        name="needle_samples",
        hint=int | None,
        role=Role.REPEAT,
        read=lambda cell: cell.retrieve.samples if cell.retrieve else None,
    ),
    _field("repeat", int, Role.REPEAT, usual=0),
    _field("seed", int, Role.REPEAT, usual=0),
)


def axes(*roles: Role) -> tuple[Axis, ...]:
    """The axes of these roles, role by role; all of them, in the order of `AXES`, without any."""
    return tuple(axis for role in roles for axis in AXES if axis.role is role) if roles else AXES


def names(*roles: Role) -> tuple[str, ...]:
    return tuple(axis.name for axis in axes(*roles))


def same_tokens(*roles: Role) -> tuple[str, ...]:
    """Names of the axes of these roles that have to be equal before two outputs can be."""
    return tuple(axis.name for axis in axes(*roles) if axis.changes_tokens)


def usual(*roles: Role) -> dict[str, Any]:
    return {axis.name: axis.usual for axis in axes(*roles)}


def read(cell: Cell, *roles: Role) -> dict[str, Any]:
    """The cell's values by axis name."""
    return {axis.name: axis.read(cell) for axis in axes(*roles)}


def unusual(values: Mapping[str, Any], *roles: Role, but: Iterable[str] = ()) -> list[str]:
    """Caption words for those of `values` that are not the usual ones. `but`: axes that the caption tells otherwise."""
    return [
        axis.caption(value)
        for axis in axes(*roles)
        if not (axis.of_mode or axis.name in but)
        and (value := values.get(axis.name)) is not None
        and value != axis.usual
    ]
