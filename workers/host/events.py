"""Defines the messages between a child and its host, as lines of JSON: nothing that a child sends can run code.

The host sends one `Request`, through the fork server. The child answers with events. The last one is `Finished`,
unless the process dies first. Times are `time.monotonic()`, which all processes of a machine share.
"""

import base64
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from workers.attempt import Failure, InEffect, Measured, Phase, Step
from workers.cell import Lease, from_json, to_json
from workers.modes import GENERATE, WORKLOADS
from workers.outcome import Outcome
from workers.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`total_bytes`, `reserve_bytes`: the device's. `idle_bytes`: what others hold of the card. `threads`: for torch.
    `ranks`: which of the processes of its cell this one is."""

    lease: Lease
    total_bytes: int
    reserve_bytes: int
    idle_bytes: int
    threads: int
    started_s: float
    ranks: Ranks = ALONE


@dataclass(frozen=True, slots=True)
class Limited:
    """The limits are in force: what the process holds above `data_bytes` counts against its budget."""

    at_s: float
    data_bytes: int


@dataclass(frozen=True, slots=True)
class ContextReady:
    """The libraries are set up on the device, and nothing is loaded. `context_bytes`: what they hold of the device."""

    context_bytes: int


@dataclass(frozen=True, slots=True)
class Entered:
    phase: Phase
    at_s: float


@dataclass(frozen=True, slots=True)
class Opened:
    """Everything is loaded and set up: the model's first call comes next."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Produced:
    """Progress: new tokens known so far, per sequence."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """`ended_s`: when the run was over. `results`: of the type that `workload` names. `data_peak_bytes`: exact, above the start; None where unknown or on a GPU."""

    outcome: Outcome
    ended_s: float
    measured: Measured
    failure: Failure | None = None
    data_peak_bytes: int | None = None
    workload: str = GENERATE.name
    results: tuple[Any, ...] = ()
    output_ids: tuple[int, ...] = ()


Event = Limited | ContextReady | Entered | Opened | Produced | Checkpoint | Finished

_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (Limited, ContextReady, Entered, Opened, Produced, Checkpoint, Finished)
}


class BadLine(Exception):
    """A line that is no event. A faulty child may write to any descriptor."""


def encode(event: Event) -> bytes:
    """Return one line, with its newline."""
    return (
        json.dumps([type(event).__name__, dataclasses.asdict(event)], default=_bytes_to_text).encode() + b"\n"
    )


def decode(line: bytes) -> Event:
    """Return the event of a line. Raises `BadLine`."""
    try:
        name, fields = json.loads(line)
        return _build(_KINDS[name], fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadLine(repr(line[:200])) from error


def encode_request(request: Request) -> bytes:
    fields = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    lease = {f.name: getattr(request.lease, f.name) for f in dataclasses.fields(request.lease)}
    lease["cell"] = to_json(request.lease.cell)
    return json.dumps({**fields, "lease": lease, "ranks": dataclasses.asdict(request.ranks)}).encode()


def decode_request(text: bytes) -> Request:
    fields = json.loads(text)
    lease, ranks = fields.pop("lease"), Ranks(**fields.pop("ranks"))
    return Request(lease=Lease(**{**lease, "cell": from_json(lease["cell"])}), ranks=ranks, **fields)


def _build(kind: type, fields: dict[str, Any]) -> Any:
    if kind is Entered:
        fields["phase"] = Phase(fields["phase"])
    elif kind is Checkpoint:
        fields["step"] = Step(**fields["step"])
    elif kind is Finished:
        fields["outcome"] = Outcome(fields["outcome"])
        fields["measured"] = _measured(fields["measured"])
        fields["failure"] = _failure(fields["failure"])
        result = WORKLOADS[fields["workload"]].result
        fields["results"] = tuple(result(**item) for item in fields["results"]) if result else ()
        fields["output_ids"] = tuple(fields["output_ids"])
    return kind(**fields)


def _measured(fields: dict[str, Any]) -> Measured:
    in_effect = fields.pop("in_effect")
    return Measured(in_effect=InEffect(**in_effect) if in_effect else None, **fields)


def _failure(fields: dict[str, Any] | None) -> Failure | None:
    if fields is None:
        return None
    snapshot = fields.pop("memory_snapshot")
    return Failure(memory_snapshot=base64.b64decode(snapshot) if snapshot else None, **fields)


def _bytes_to_text(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} has no place in an event")
