"""The boundary questions of one kind of device: which probes to run next, and what their attempts answer."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.boundary.question import Question
from orchestrator.boundary.search import Probe, Search
from orchestrator.sweep.work.item import Key
from workers.attempt import Attempt
from workers.cell import Cell


@dataclass(slots=True)
class _Inquiry:
    question: Question
    search: Search
    abandoned: bool = False

    @property
    def active(self) -> bool:
        return not self.abandoned and not self.search.done


class Searching:
    """`questions`: settled on this kind, each with its search. `finals`: final attempts of probes, which may grow."""

    def __init__(
        self,
        kind: str,
        questions: Iterable[tuple[Question, Search]],
        finals: Mapping[Key, Attempt],
    ) -> None:
        self._kind = kind
        self._finals = finals
        self._inquiries = [_Inquiry(question, search) for question, search in questions]
        self._asked: dict[Key, list[tuple[_Inquiry, Probe]]] = defaultdict(list)
        for key, attempt in finals.items():
            if key.device_kind == kind:
                for inquiry in self._inquiries:
                    if (probe := inquiry.question.match(attempt.cell)) is not None:
                        self._answer(inquiry, probe, attempt)

    def active(self) -> int:
        """Questions that still lack their answer."""
        return sum(inquiry.active for inquiry in self._inquiries)

    def next(self, devices: int, *, spread: bool) -> list[Cell]:
        """At most `devices` probes to run now: one for each question in turn; with `spread`, idle devices cut a
        question's interval in more parts."""
        cells: list[Cell] = []
        for inquiry in self._inquiries:
            if len(cells) < devices and inquiry.active and not inquiry.search.pending:
                cells += self._ask(inquiry, 1)
        if spread:
            for left, inquiry in zip(range(len(self._inquiries), 0, -1), self._inquiries, strict=True):
                share = -(-(devices - len(cells)) // left)
                if share > 0 and inquiry.active:
                    cells += self._ask(inquiry, share)
        return cells

    def settle(self, key: Key, attempt: Attempt) -> None:
        """The final attempt of a probe that `next` handed out."""
        for inquiry, probe in self._asked.pop(key, ()):
            self._answer(inquiry, probe, attempt)

    def _ask(self, inquiry: _Inquiry, k: int) -> list[Cell]:
        """New cells for `k` probes; probes that another question asked already, or a past run, cost nothing."""
        cells: list[Cell] = []
        while inquiry.active and k > len(cells) and (probes := inquiry.search.next_probes(k - len(cells))):
            for probe in probes:
                cell = inquiry.question.probe(probe.value, probe.confirmation)
                key = Key(cell.cell_id, self._kind)
                if (known := self._finals.get(key)) is not None:
                    self._answer(inquiry, probe, known)
                    continue
                if key not in self._asked:
                    cells.append(cell)
                self._asked[key].append((inquiry, probe))
        return cells

    def _answer(self, inquiry: _Inquiry, probe: Probe, attempt: Attempt) -> None:
        reading = inquiry.question.read(attempt)
        if reading is None:
            # It ended, and not over memory (it does not load, it crashes, it is too slow): so would the next one.
            inquiry.search.observe_lost(probe)
            inquiry.abandoned = True
        else:
            inquiry.search.observe(probe, reading.passed, reading.reached, reading.fails_from)
