"""Holds what has come of each work item so far, in this run and in those that it resumes. Keeps no samples."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from orchestrator.sweep.retry_policy import Limits, RetryHistory, history_and_final, reopened
from orchestrator.sweep.work.item import Key
from workers.attempt import Attempt
from workers.cell import ModelRef
from workers.outcome import Outcome


class Outcomes:
    """The retry history and the final outcome of each work item, and the final attempts of probes, which a search
    observes again. `speeds`: tokens per second of what ended. `counts`: how many items ended with each outcome. `retry`: items on record with these outcomes are
    open again."""

    def __init__(
        self, attempts: Iterable[Attempt], limits: Limits, retry: Collection[Outcome] = frozenset()
    ) -> None:
        by_key: dict[Key, list[Attempt]] = defaultdict(list)
        for attempt in attempts:
            if attempt.device is not None:
                by_key[Key(attempt.cell.cell_id, attempt.device.kind)].append(attempt)
        self._histories: dict[Key, RetryHistory] = {}
        self.finals: dict[Key, Outcome] = {}
        self.counts: Counter[Outcome] = Counter()
        self.probes: dict[Key, Attempt] = {}
        self.speeds: dict[Key, float | None] = {}
        self._models: dict[Key, ModelRef] = {}
        self._lacking: dict[Key, str] = {}
        for key, known in by_key.items():
            history, final = history_and_final(known, limits)
            if final is not None and final.outcome in retry:
                history, final = reopened(history), None
            self.note(key, history, final)
        self.reused = len(self.finals)

    def history(self, key: Key) -> RetryHistory:
        return self._histories.get(key, _NEW)

    def note(self, key: Key, history: RetryHistory, final: Attempt | None) -> None:
        """`final`: the attempt that closes the item, None while it is open."""
        self._histories[key] = history
        if final is None:
            return
        self.finals[key] = final.outcome
        self.counts[final.outcome] += 1
        self._models[key] = final.cell.model
        self.speeds[key] = final.measured.tokens_per_s
        if final.outcome is Outcome.UNAVAILABLE and final.failure is not None:
            self._lacking[key] = final.failure.error_message
        if final.cell.purpose == "probe":
            self.probes[key] = dataclasses.replace(final, samples=(), steps=(), output_ids=(), results=())

    def forget(self, key: Key) -> None:
        """Forget the final outcome of an item: it could not be journalled."""
        self.counts -= Counter([self.finals.pop(key)])
        self.probes.pop(key, None)
        self._lacking.pop(key, None)

    def lacks(self) -> list[str]:
        """Return what cells of this run could not have, in the words of their errors."""
        return [
            f"{count} cell{'' if count == 1 else 's'} could not have what a cell needs: {reason}"
            for reason, count in Counter(self._lacking.values()).most_common(_REASONS)
        ]

    def unloadable(self) -> list[str]:
        """Return the models that could not be loaded for any cell."""
        ends: dict[ModelRef, set[Outcome]] = defaultdict(set)
        for key, outcome in self.finals.items():
            ends[self._models[key]].add(outcome)
        return sorted({model.target for model, found in ends.items() if found == {Outcome.LOAD_ERROR}})

    @property
    def computed(self) -> int:
        return len(self.finals) - self.reused


_NEW = RetryHistory()
_REASONS = 3  # that are told at the end of a run; every cell's own stands in its line and in the report
