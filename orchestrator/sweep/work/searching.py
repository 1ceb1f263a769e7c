"""Holds the boundary questions of one kind of device: which probes to run next, and what their attempts answer."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.boundary.question import Question
from orchestrator.boundary.replay import observe, replay
from orchestrator.boundary.search import Probe, Search
from orchestrator.sweep.work.item import Key
from workers.attempt import Attempt
from workers.cell import Cell


@dataclass(slots=True)
class _Inquiry:
    """`abandoned`: one of its probes ended, and not over memory."""

    question: Question
    search: Search
    abandoned: bool = False

    @property
    def active(self) -> bool:
        return not self.abandoned and not self.search.done

    def observe(self, probe: Probe, attempt: Attempt) -> None:
        if not observe(self.question, self.search, probe, attempt):
            self.abandoned = True


class Searching:
    """`start`: a question as this kind of device asks it, with its search; None as long as that is not known.
    `finals`: final attempts of probes. It may grow."""

    def __init__(
        self,
        kind: str,
        questions: Iterable[Question],
        start: Callable[[Question], tuple[Question, Search] | None],
        finals: Mapping[Key, Attempt],
    ) -> None:
        self._kind = kind
        self._start = start
        self._finals = finals
        self._asked: dict[Key, list[tuple[_Inquiry, Probe]]] = defaultdict(list)
        self._inquiries: dict[Question, _Inquiry | None] = dict.fromkeys(questions)
        self._open()

    def active(self) -> int:
        """Return how many questions still lack their answer."""
        return sum(inquiry is None or inquiry.active for inquiry in self._inquiries.values())

    def sizes(self) -> set[int]:
        """Return how many devices the probes of open questions ask for: each number that occurs."""
        return {
            question.cell.devices
            for question, inquiry in self._inquiries.items()
            if inquiry is None or inquiry.active
        }

    def next(self, devices: int, *, spread: bool) -> list[Cell]:
        """Return probes to run now, on `devices` devices: one for each question in turn. With `spread`, idle devices cut
        a question's interval in more parts."""
        self._open()
        cells: list[Cell] = []
        inquiries = [inquiry for inquiry in self._inquiries.values() if inquiry is not None]
        for inquiry in inquiries:
            if _devices_of(cells) < devices and inquiry.active and not inquiry.search.pending:
                cells += self._ask(inquiry, 1)
        if spread:
            for left, inquiry in zip(range(len(inquiries), 0, -1), inquiries, strict=True):
                share = -(-(devices - _devices_of(cells)) // left) // inquiry.question.cell.devices
                if share > 0 and inquiry.active:
                    cells += self._ask(inquiry, share)
        return cells

    def note_final(self, key: Key, attempt: Attempt) -> None:
        """Take the final attempt of a probe that `next` handed out."""
        for inquiry, probe in self._asked.pop(key, ()):
            inquiry.observe(probe, attempt)

    def _open(self) -> None:
        """Start the searches whose predictions are known by now."""
        waiting = [question for question, inquiry in self._inquiries.items() if inquiry is None]
        started = [(asked, self._start(asked)) for asked in waiting]
        if all(start is None for _, start in started):
            return
        known = [attempt for key, attempt in self._finals.items() if key.device_kind == self._kind]
        for asked, start in started:
            if start is None:
                continue
            question, search = start
            _, complete = replay(question, search, known)
            self._inquiries[asked] = _Inquiry(question, search, abandoned=not complete)

    def _ask(self, inquiry: _Inquiry, k: int) -> list[Cell]:
        """Return new cells for `k` probes. A probe that another question asked already, or a past run, costs none."""
        cells: list[Cell] = []
        while inquiry.active and k > len(cells) and (probes := inquiry.search.next_probes(k - len(cells))):
            for probe in probes:
                cell = inquiry.question.probe(probe.value, probe.confirmation)
                key = Key(cell.cell_id, self._kind)
                if (known := self._finals.get(key)) is not None:
                    inquiry.observe(probe, known)
                    continue
                if key not in self._asked:
                    cells.append(cell)
                self._asked[key].append((inquiry, probe))
        return cells


def _devices_of(cells: Iterable[Cell]) -> int:
    return sum(cell.devices for cell in cells)
