"""What is asked of one device, once. A cell goes down through the rooms as a plain value."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from workers.allocator import DEFAULT as DEFAULT_ALLOCATOR
from workers.kv_dtype import AUTO as AUTO_KV
from workers.kv_dtype import DEVICE
from workers.modes import GENERATE, MODES, WORKLOADS, Mode, Retrieve, Speculation, Streaming, Workload

#: A measured cell is warmed up at its own shape and may be repeated; a probe of the boundary search gets no
#: warm-up (it would change fragmentation) and its speed enters no table.
Purpose = Literal["measure", "probe"]
Engine = Literal["eager", "graph"]
_LATER = "later"
#: `ModelRef.attn_implementation` that leaves the choice to transformers.
AUTO = "auto"


def later(default: Any) -> Any:
    """Declare a field that came after version 0.1. At its default it is no part of the `cell_id`, so that cells keep
    the ids under which earlier runs recorded them.
    """
    return dataclasses.field(default=default, metadata={_LATER: True})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """One target, with its draft where the mode needs one.

    `target`, `draft`: hub id | local folder | file.gguf | `pocket`, `pocket-draft` | `random:NAME` or `random:FOLDER`.
    `attn_implementation`: of the eager engine, by transformers' name; `auto` leaves the choice to transformers.
    """

    target: str
    draft: str | None = None
    dtype: str = "bfloat16"
    attn_implementation: str = AUTO
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of one model in one mode at one length on one (possibly emulated) card.

    Fields that a mode does not read are None, so that equal work has an equal `cell_id` everywhere.
    `length`: new tokens (generate), scored tokens (score) or tokens of the prompt (retrieve). `budget`: bytes of the emulated card, None = the
    whole device. `prefill_chunk`: tokens per prefill pass, None = the whole prompt in one pass.
    `allocator`: settings of torch's CUDA allocator (`workers.allocator`). `synthetic`: only the first and the last pass over
    the prompt are made, the caches hold noise for what lies between (graph engine). `kv_dtype`, `kv_placement`: how keys and values
    are stored, and where (`workers.kv_dtype`). `devices`: of one node, that hold the model together; budget and batch are
    those of each.
    """

    model: ModelRef
    mode: str
    engine: Engine
    workload: str = GENERATE.name
    purpose: Purpose = "measure"
    prompt_tokens: int
    length: int
    batch_size: int = 1
    prefill_chunk: int | None = None
    streaming: Streaming | None = None
    speculation: Speculation | None = None
    repetition_penalty: float = 1.0
    corpus: str = "builtin"
    budget: int | None = None
    allocator: str = later(DEFAULT_ALLOCATOR)
    synthetic: bool = later(False)
    retrieve: Retrieve | None = later(None)  # noqa: RUF009
    kv_dtype: str = later(AUTO_KV)
    kv_placement: str = later(DEVICE)
    devices: int = later(1)
    repeat: int = 0
    seed: int = 0

    @property
    def mode_spec(self) -> Mode:
        return MODES[self.mode]

    @property
    def workload_spec(self) -> Workload:
        return WORKLOADS[self.workload]

    @property
    def rows(self) -> int:
        """Tokens that one pass of the target reads while it decodes."""
        return self.mode_spec.decoder.rows(self.speculation)

    @property
    def cell_id(self) -> str:
        """16 hex digits: the hash of the canonical content."""
        return _hash(self)


@functools.lru_cache(maxsize=2**17)  # asked for many times over, and ten times the price of looking it up
def _hash(cell: Cell) -> str:
    return hashlib.sha256(json.dumps(_plain(cell, _hashed), sort_keys=True).encode()).hexdigest()[:16]


def to_json(cell: Cell) -> dict[str, Any]:
    """The cell as plain values, nested as its dataclasses are."""
    return cast(dict[str, Any], _plain(cell, lambda field, value: True))


def _plain(value: Any, keep: Callable[[Any, Any], bool]) -> Any:
    # `dataclasses.asdict` copies every value deeply: three times the price, and a sweep hashes 100,000 cells.
    if not dataclasses.is_dataclass(value):
        return value
    return {
        name: _plain(inner, keep)
        for name, field in value.__dataclass_fields__.items()
        if keep(field, inner := getattr(value, name))
    }


def _hashed(field: Any, value: Any) -> bool:
    return not (_LATER in field.metadata and value == field.default)


def from_json(value: dict[str, Any]) -> Cell:
    """The inverse of `to_json`, also after a trip through JSON (which turns tuples into lists)."""
    fields = dict(value)
    fields["model"] = ModelRef(**fields["model"])
    if fields["streaming"] is not None:
        fields["streaming"] = Streaming(**fields["streaming"])
    if fields["speculation"] is not None:
        speculation = dict(fields["speculation"])
        if isinstance(speculation["acceptance"], list):
            speculation["acceptance"] = tuple(speculation["acceptance"])
        fields["speculation"] = Speculation(**speculation)
    if fields.get("retrieve") is not None:
        fields["retrieve"] = Retrieve(**fields["retrieve"])
    return Cell(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A cell on loan to one device. The first valid final attempt of a lease wins; a late one is a duplicate."""

    lease_id: str
    cell: Cell
    attempt: int
    time_limit_s: float
    stall_timeout_s: float
    memory_snapshot: bool = False
