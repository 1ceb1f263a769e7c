"""Decides when a sweep is over, and tells why work is left undone."""

from collections.abc import Callable, Collection, Mapping

from orchestrator.fleet import Fleet
from orchestrator.spec import SweepSpec
from orchestrator.sweep.roster import Roster
from orchestrator.sweep.work.kind_queue import KindWork
from workers.units import duration_text


class Ending:
    """`say`: called with each reason that is found. `began`: when the sweep began."""

    def __init__(
        self,
        spec: SweepSpec,
        kinds: Mapping[str, KindWork],
        roster: Roster,
        fleet: Fleet,
        began: float,
        say: Callable[[str], None],
    ) -> None:
        self._spec, self._kinds, self._roster, self._fleet = spec, kinds, roster, fleet
        self._began, self._say = began, say
        self._given_up: set[str] = set()
        self._broken_starts = 0
        self._short_since: dict[str, float] = {}
        self.troubles: list[str] = []

    def has_come(self, now: float) -> bool:
        """Whether nothing is left to do or to wait for. Ask only while no cell is in flight."""
        busy = [kind for kind in self._kinds.values() if self._is_busy(kind, now)]
        if busy or self._fleet.undescribed():
            return False
        missing = self.missing_kinds()
        waited_s = now - self._began
        none_starts = not self._kinds and self._broken_starts and not self._fleet.starting()
        if missing and waited_s < self._spec.device_timeout_s and not none_starts:
            return False
        if missing:
            lack = self._fleet.waiting_for() or "no device named " + ", ".join(missing)
            self._tell(f"waited {duration_text(waited_s)}: {lack}")
        return True

    def is_short_for_good(self, kind: str, sizes: Collection[int], now: float) -> bool:
        """Whether no node has had as many devices of `kind` as `sizes` say, for as long as a sweep waits for a device. While
        some start it may still come to have them."""
        if not sizes:
            self._short_since.pop(kind, None)
            return False
        if self._fleet.starting():
            return False
        return now - self._short_since.setdefault(kind, now) > self._spec.device_timeout_s

    def note_broken_start(self) -> None:
        """A device failed to start so often that the fleet gave it up."""
        self._broken_starts += 1

    def note_return(self, kind: str) -> None:
        """A device of `kind` is ready: the kind is no longer given up."""
        self._given_up.discard(kind)

    def missing_kinds(self) -> list[str]:
        """Return the names in the sweep file's `devices` that no device has had yet."""
        if self._spec.devices is None:
            return [] if self._kinds else ["any kind"]
        return [
            name
            for name in self._spec.devices
            if not any(name.lower() in kind.lower() for kind in self._kinds)
        ]

    def _is_busy(self, kind: KindWork, now: float) -> bool:
        if kind.kind in self._given_up or not kind.has_work:
            return False
        if self._roster.live(kind.kind) or self._fleet.starting() or not self._is_hopeless(kind, now):
            return True
        self._given_up.add(kind.kind)
        self._tell(f"no {kind.kind} device is left: {len(kind.queue)} cells without an outcome")
        return False

    def _is_hopeless(self, kind: KindWork, now: float) -> bool:
        since = self._roster.absent_since(kind.kind)
        if since is None:
            return False
        all_retired = (
            self._roster.any_retired and self._fleet.waiting_for() is not None and not self._fleet.starting()
        )
        return all_retired or now - since > self._spec.device_timeout_s

    def _tell(self, text: str) -> None:
        self.troubles.append(text)
        self._say(text)
