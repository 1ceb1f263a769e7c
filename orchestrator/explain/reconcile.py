"""Measured growth of memory beside the growth that the model's config implies over the same tokens. Where they part, the
ratio usually names the culprit.
"""

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.explain.slope import theil_sen
from orchestrator.predict.memory import cache_bytes, copied_bytes
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.attempt import Attempt
from workers.cell import Cell
from workers.engines.sizes import BLOCK
from workers.modes import Layout
from workers.units import size_text

#: kv_cache: counted from the cache's tensors. allocated: torch. device: NVML, or a CPU process's data.
Source = Literal["kv_cache", "allocated", "device"]

#: Ratios within this of a tell-tale count as it.
_CLOSE = 0.04
#: Where memory should be constant, growth above this share of what a full cache would take is a leak. Token ids
#: and mask grow by 32 bytes in transformers, which is below it for every model of note.
_LEAK = 0.01
#: Nothing is said of a run over fewer tokens than this, nor of one in which a full cache grows by fewer of a meter's
#: steps than that.
_FEWEST_TOKENS, _FEWEST_STEPS = 32, 8
#: By what the device's meter moves. CUDA: torch takes segments of 20 MiB. CPU: the heap grows by blocks, and what was
#: freed before is used first.
_DEVICE_STEP = {"cuda": 20 * 2**20, "cpu": 2**18}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """`measured`: bytes per token of all sequences together. `implied`: by the config, over the same tokens: 0 where
    windows are full. Both None where the run is too short to tell. `ratio` None: too short, or `implied` is 0.
    """

    cell_id: str
    source: Source
    measured: float | None
    implied: float | None
    ratio: float | None
    points: int
    diagnosis: str
    agrees: bool


def reconcile(
    attempt: Attempt, shape: ModelShape, draft_shape: ModelShape | None = None
) -> list[Reconciliation]:
    """One entry for each source of which the attempt kept at least two points: its steps, and samples if it
    has any.
    """
    found: list[Reconciliation] = []
    for source, points in _points(attempt).items():
        slope = theil_sen(points)
        if slope is not None:
            run = _Run(attempt, shape, draft_shape, source, points)
            cache = next((entry for entry in found if entry.source == "kv_cache"), None)
            found.append(_entry(run, slope, cache))
    return found


class _Run:
    """What one meter saw along one attempt, and what the config implies for these very tokens."""

    def __init__(
        self,
        attempt: Attempt,
        shape: ModelShape,
        draft_shape: ModelShape | None,
        source: Source,
        points: Sequence[tuple[float, float]],
    ) -> None:
        self.attempt, self.cell, self.shape, self.source = attempt, attempt.cell, shape, source
        drafts = self.cell.mode_spec.decoder.needs_draft and draft_shape is not None
        self._shapes = (shape, draft_shape) if drafts and draft_shape is not None else (shape,)
        self.indices = [index for index, _ in points]
        self.tokens = int(max(self.indices) - min(self.indices))
        self.unbounded = sum(
            s.kv_bytes_per_token(self.cell.model.dtype) * self.cell.batch_size for s in self._shapes
        )
        """Growth of full caches without windows, bytes per token."""

    def slope_of(self, law: Callable[[Cell, ModelShape, int], int], shapes: Iterable[ModelShape]) -> float:
        """By `law` at the measured tokens; a token is read one step after it is known."""
        at = [
            (index, sum(law(self.cell, shape, self.cell.prompt_tokens + int(index)) for shape in shapes))
            for index in self.indices
        ]
        return theil_sen(at) or 0.0

    @property
    def implied(self) -> float:
        return self.slope_of(cache_bytes, self._shapes)

    def with_copies(self) -> list[float]:
        """Growth where memory that copies take once stays taken: of the target, of the target and the draft."""

        def law(cell: Cell, shape: ModelShape, tokens: int) -> int:
            return cache_bytes(cell, shape, tokens) + copied_bytes(cell, shape, tokens)

        target, *draft = self._shapes
        alone = self.slope_of(law, [target]) + (self.slope_of(cache_bytes, draft) if draft else 0.0)
        return [alone, self.slope_of(law, self._shapes)] if draft else [alone]

    @property
    def step_bytes(self) -> int:
        """By how much this meter moves at a time."""
        grows_by = BLOCK if self.cell.engine == "graph" else self.cell.rows
        cache = self.unbounded * grows_by
        if self.source != "device":
            return cache
        device = self.attempt.device
        return max(cache, _DEVICE_STEP["cpu" if device is None or device.kind == "cpu" else "cuda"])


def _entry(run: _Run, slope: float, cache: Reconciliation | None) -> Reconciliation:
    short = _too_short(run)
    implied = run.implied if short is None else None
    diagnosis, agrees = (short or "", True) if implied is None else _diagnose(run, slope, implied, cache)
    return Reconciliation(
        cell_id=run.cell.cell_id,
        source=run.source,
        measured=None if implied is None else slope,
        implied=implied,
        ratio=slope / implied if implied else None,
        points=len(run.indices),
        diagnosis=diagnosis,
        agrees=agrees,
    )


def _too_short(run: _Run) -> str | None:
    if run.tokens < _FEWEST_TOKENS:
        return f"too short to tell: {run.tokens} tokens"
    if run.unbounded * run.tokens < _FEWEST_STEPS * run.step_bytes:
        return (
            f"too short to tell: {run.tokens:,} tokens are {size_text(run.unbounded * run.tokens)} of a full cache, "
            f"measured in steps of {size_text(run.step_bytes)}"
        )
    return None


def _diagnose(run: _Run, slope: float, implied: float, cache: Reconciliation | None) -> tuple[str, bool]:
    """(what the slope says, whether it is as the config implies)."""
    if implied < _LEAK * run.unbounded:
        return _constant(run, slope)
    ratio = slope / implied
    if _near(ratio, 1.0):
        return "as the config implies" + _windows(run), True
    if run.source == "device" and any(_near(slope, value) for value in run.with_copies()):
        return "as the engine implies: while it makes a layer's longer keys or values, both are alive", True
    for value, text in _tell_tales(run, cache):
        if _near(ratio, value):
            return text, False
    return _odd(run, slope, ratio, cache), False


def _constant(run: _Run, slope: float) -> tuple[str, bool]:
    leaked = slope > _LEAK * run.unbounded
    if run.source == "device":
        leaked = leaked and slope * run.tokens > 2 * run.step_bytes
    if leaked:
        mode = (
            "although its windows are full"
            if run.cell.mode_spec.policy.grows
            else "in a mode of constant memory"
        )
        return f"a leak: {slope / run.unbounded:.0%} of a full cache's growth {mode}", False
    if run.cell.mode_spec.policy.layout is Layout.FIXED:
        return "constant: all of it was taken at once", True
    if run.cell.mode_spec.policy.grows:
        return "constant, as its sliding windows are full", True
    return "constant, as it should be", True


def _windows(run: _Run) -> str:
    """Where the model has sliding windows and this run did not fill them."""
    windows = [window for window in run.shape.windows if window is not None]
    last = run.cell.prompt_tokens + max(run.indices)
    if not windows or not run.cell.mode_spec.policy.grows or last >= min(windows):
        return ""
    return f", below its window of {min(windows):,} tokens"


def _tell_tales(run: _Run, cache: Reconciliation | None) -> list[tuple[float, str]]:
    """`cache`: of the cache's own tensors: where they are as they should be, another meter's surprise is not in them."""
    tales: list[tuple[float, str]] = []
    cell, cache_is_right = run.cell, cache is not None and cache.agrees
    repeated = run.shape.heads / run.shape.kv_heads
    if repeated > 1 and not cache_is_right:
        tales.append(
            (repeated, f"key and value heads are expanded {repeated:g} times before they are cached")
        )
    if dtype_bytes(cell.model.dtype) == 2 and not cache_is_right:
        tales += [
            (1.5, "keys (or values) are kept in float32"),
            (2.0, "the cache is kept in float32"),
        ]
    if run.source != "kv_cache" and cell.mode_spec.policy.layout is Layout.APPENDED:
        tales.append((2.0, "the cache is alive twice: concatenation copies that are not given back"))
    return tales


def _odd(run: _Run, slope: float, ratio: float, cache: Reconciliation | None) -> str:
    if run.source == "device" and cache is not None and cache.agrees and ratio < 1:
        return f"{ratio:.2f} of what the cache grew by: it took memory that the process already held"
    reserved = [(s.token_index, s.reserved_bytes) for s in run.attempt.steps if s.reserved_bytes is not None]
    kept = theil_sen(reserved)
    if (
        run.source == "device"
        and ratio > 1
        and kept
        and cache is not None
        and cache.agrees
        and _near(kept, slope)
    ):
        return f"{ratio:.2f} times what the cache grew by: memory that torch freed and could not use again"
    if ratio < 1:
        return f"{ratio:.2f} of what the config implies: something evicts, or a window is in effect"
    return f"{ratio:.2f} times what the config implies: unexplained"


def _near(one: float, other: float) -> bool:
    return abs(one / other - 1) <= _CLOSE


def _points(attempt: Attempt) -> dict[Source, list[tuple[float, float]]]:
    steps = attempt.steps
    points: dict[Source, list[tuple[float, float]]] = {
        "kv_cache": [(s.token_index, s.kv_cache_bytes) for s in steps if s.kv_cache_bytes is not None],
        "allocated": [(s.token_index, s.allocated_bytes) for s in steps if s.allocated_bytes is not None],
        "device": [],
    }
    times = [sample.t_s for sample in attempt.samples]
    for step in steps:
        used = _at(attempt, times, step.t_s)
        if used is not None:
            points["device"].append((step.token_index, used))
    return points


def _at(attempt: Attempt, times: Sequence[float], t_s: float) -> int | None:
    """The meter's value at a time: that of the last change before it."""
    index = bisect.bisect_right(times, t_s) - 1
    return attempt.samples[index].device_used_bytes if index >= 0 else None
