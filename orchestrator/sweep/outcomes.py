"""What has come of each work item so far, in this run and in those it resumes. Holds no samples: it must stay small."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable

from orchestrator.sweep.retry_policy import Limits, RetryHistory, recall
from orchestrator.sweep.work.item import Key
from workers.attempt import Attempt
from workers.outcome import Outcome


class Ledger:
    """RetryHistory and final outcome by work item; the final attempts of probes, for the searches to read again."""

    def __init__(self, attempts: Iterable[Attempt], limits: Limits) -> None:
        by_key: dict[Key, list[Attempt]] = defaultdict(list)
        for attempt in attempts:
            if attempt.device is not None:
                by_key[Key(attempt.cell.cell_id, attempt.device.kind)].append(attempt)
        self._histories: dict[Key, RetryHistory] = {}
        self.finals: dict[Key, Outcome] = {}
        self.outcomes: Counter[Outcome] = Counter()
        self.probes: dict[Key, Attempt] = {}
        for key, known in by_key.items():
            self._histories[key], final = recall(known, limits)
            if final is not None:
                self._settle(key, final)
        self.reused = len(self.finals)

    def history(self, key: Key) -> RetryHistory:
        return self._histories.get(key, _NEW)

    def note(self, key: Key, history: RetryHistory, final: Attempt | None) -> None:
        self._histories[key] = history
        if final is not None:
            self._settle(key, final)

    def forget(self, key: Key) -> None:
        """Its final outcome never came on record."""
        self.outcomes -= Counter([self.finals.pop(key)])
        self.probes.pop(key, None)

    @property
    def computed(self) -> int:
        return len(self.finals) - self.reused

    def _settle(self, key: Key, final: Attempt) -> None:
        self.finals[key] = final.outcome
        self.outcomes[final.outcome] += 1
        if final.cell.purpose == "probe":
            self.probes[key] = dataclasses.replace(final, samples=(), steps=(), output_ids=(), scores=())


_NEW = RetryHistory()
