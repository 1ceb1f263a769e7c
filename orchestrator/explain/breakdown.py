"""What filled the card just before an out-of-memory, and one sentence that reads it."""

from dataclasses import dataclass

from workers.attempt import Attempt
from workers.outcome import Outcome
from workers.units import size_text

#: Cached-but-free memory above this share of the card is worth a word.
_NOTABLE = 0.02

_PHASES = {
    Outcome.OOM_LOAD: "while loading",
    Outcome.OOM_PREFILL: "in the prompt",
    Outcome.OOM_DECODE: "while generating",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """`of_budget`: 0 to 1, of the budget."""

    name: str
    bytes: int
    of_budget: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """`parts` add up to what was in use; a part that was not measured is left out. `reading`: one
    sentence.
    """

    cell_id: str
    outcome: Outcome
    token_index: int | None
    budget_bytes: int
    parts: tuple[Share, ...]
    requested_bytes: int | None
    free_bytes: int | None
    alloc_retries: int | None
    reading: str


def explain(attempt: Attempt) -> Explanation | None:
    """None for an attempt that did not run out of device memory, or has no device."""
    failure, device = attempt.failure, attempt.device
    if not attempt.outcome.is_device_oom or failure is None or device is None:
        return None
    budget = device.total_bytes if attempt.cell.budget is None else attempt.cell.budget
    parts = tuple(
        Share(name=name, bytes=size, of_budget=size / budget) for name, size in _parts(attempt) if size > 0
    )
    return Explanation(
        cell_id=attempt.cell.cell_id,
        outcome=attempt.outcome,
        token_index=failure.oom_token_index,
        budget_bytes=budget,
        parts=parts,
        requested_bytes=failure.oom_requested_bytes,
        free_bytes=failure.oom_free_bytes,
        alloc_retries=attempt.measured.num_alloc_retries,
        reading=_reading(attempt, parts, budget),
    )


def allocator_moves(default_last_ok: int, expandable_last_ok: int) -> str:
    """What two boundaries measured with and without `expandable_segments` say."""
    if default_last_ok == expandable_last_ok:
        return f"expandable_segments leaves the boundary at {default_last_ok:,}"
    return f"expandable_segments moves the boundary from {default_last_ok:,} to {expandable_last_ok:,}"


def kv_cache_bytes(attempt: Attempt) -> int | None:
    """Of the caches at the end, or at the last step that was counted."""
    if attempt.measured.kv_cache_bytes:
        return attempt.measured.kv_cache_bytes
    return next((step.kv_cache_bytes for step in reversed(attempt.steps) if step.kv_cache_bytes), None)


def _parts(attempt: Attempt) -> list[tuple[str, int]]:
    """Weights and caches as counted; the rest by difference: of torch's own two figures, beside which the context stands,
    or of the use of a device or of a CPU's process, which holds the context too.
    """
    measured, failure, device = attempt.measured, attempt.failure, attempt.device
    assert failure is not None
    assert device is not None
    weights = measured.weights_bytes or 0
    kv = kv_cache_bytes(attempt) or 0
    context = attempt.context_bytes or 0
    parts = [("weights", weights), ("KV cache", kv)]
    if failure.oom_allocated_bytes is not None:
        is_torchs = failure.oom_reserved_bytes is not None
        counted = weights + kv + (0 if is_torchs else context)
        parts.append(("activations and workspace", max(failure.oom_allocated_bytes - counted, 0)))
        if failure.oom_reserved_bytes is not None:
            cached = failure.oom_reserved_bytes - failure.oom_allocated_bytes
            parts.append(("allocator: cached, but free", cached))
    elif attempt.peak_device_bytes is not None:
        parts.append(("everything else", max(attempt.peak_device_bytes - weights - kv - context, 0)))
    parts.append(("context", context))
    parts.append(("driver's reserve", device.reserve_bytes))
    return parts


def _reading(attempt: Attempt, parts: tuple[Share, ...], budget: int) -> str:
    where = _PHASES[attempt.outcome]
    failure = attempt.failure
    assert failure is not None
    if failure.oom_token_index is not None:
        where = f"at new token {failure.oom_token_index:,}"
    if not parts:
        return f"Memory ran out {where}; what filled the {size_text(budget)} was not measured."
    largest = max(parts, key=lambda part: part.bytes)
    text = f"Memory ran out {where}: {_named(largest.name)} took {largest.of_budget:.0%} of the {size_text(budget)}"
    cached = next((part for part in parts if part.name.startswith("allocator")), None)
    if cached is not None and cached is not largest and cached.of_budget >= _NOTABLE:
        text += f"; {cached.of_budget:.0%} was fragmentation, cached by the allocator but of no use to this request"
    if failure.oom_requested_bytes is not None:
        text += f"; it failed at a request of {size_text(failure.oom_requested_bytes)}"
        if failure.oom_free_bytes is not None:
            text += f" with {size_text(failure.oom_free_bytes)} free"
    return text + "."


def _named(part: str) -> str:
    return {"weights": "the weights", "KV cache": "the KV cache"}.get(part, part)
