"""The journal: what was appended is durable; what cannot be trusted is set aside; twice is once."""

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import polars as pl

from orchestrator.journal.errors import JournalFull, LockLost, StoreError, StoreFull
from orchestrator.journal.kept import Kept
from orchestrator.journal.lock import Lock
from orchestrator.journal.object_store import open_store
from orchestrator.journal.parts import BadPart, Part, check, encode, fenced_off, name_of, scan, sequence_of
from orchestrator.journal.record import LIGHT_SCHEMA, Record, to_attempts, to_frame_of_what_fits
from orchestrator.journal.store import Store
from workers.attempt import Attempt

_log = logging.getLogger(__name__)
FOLDER, ASIDE = "journal", "journal/set-aside"
_PASSED = "its writer had been passed by another driver"
_TRY_AGAIN_S = 15.0  # a driver that waits for a store that is away does nothing else


#: How an attempt ended and where, without what it measured.
_HISTORY = (
    *("cell_json", "lease_id", "attempt", "outcome", "phase", "started_at", "duration_s"),
    *("device_kind", "device_uuid", "node", "device_total_bytes", "device_reserve_bytes", "driver_version"),
    "per_process_memory_visible",
)


@dataclass(frozen=True, slots=True)
class View:
    """Each attempt once, in the order of appending. Valid while the context that gave it lasts.

    `light`: in memory, the columns asked for and `row`; `rows`: on disk, `SCHEMA` and `row`.
    `duplicates`: attempts of which an equal one came earlier (the same lease, or the same attempt at the same
    cell on the same kind of device, as when the result of a lost node turns up late): in no table but their own.
    """

    light: pl.DataFrame
    rows: pl.LazyFrame
    duplicates: pl.DataFrame
    _parts: Mapping[int, Part]  # by the row that each begins with

    def beside(self, chosen: Sequence[int]) -> pl.LazyFrame:
        """`rows`, but only of the parts that hold the chosen ones: of a large journal most stay closed."""
        starts = list(self._by_part(chosen))
        rows = [start + index for start in starts for index in range(self._parts[start].rows)]
        numbers = pl.LazyFrame({"row": rows}, schema={"row": self.light.schema["row"]}).with_row_index("at")
        opened = scan([self._parts[start] for start in starts]).with_row_index("at")
        return opened.join(numbers, on="at", maintain_order="left").drop("at")

    def whole(self, chosen: Sequence[int]) -> dict[int, Attempt]:
        """The attempts of these rows with all their series. Only the parts that hold them are read."""
        found: dict[int, Attempt] = {}
        for start, rows in self._by_part(chosen).items():
            frame = scan([self._parts[start]]).collect()[[row - start for row in rows]]
            found |= zip(rows, to_attempts(frame), strict=True)
        return found

    def history(self) -> list[Attempt]:
        """How every attempt ended and where, without what it measured."""
        return to_attempts(self.light.select(_HISTORY))

    def _by_part(self, chosen: Sequence[int]) -> dict[int, list[int]]:
        """The chosen rows in ascending order, by the row that their part begins with."""
        starts = sorted(self._parts)
        wanted: dict[int, list[int]] = {}
        for row in sorted(set(chosen)):
            wanted.setdefault(starts[bisect_right(starts, row) - 1], []).append(row)
        return wanted


_IDENTITY = (
    *(
        "run_id",
        "lease_id",
        "cell_id",
        "device_kind",
        "attempt",
        "outcome",
        "device_uuid",
        "node",
        "started_at",
    ),
)


class Journal:
    """Open one with `Journal.open`; only the holder of the run folder's lock may append.

    `kept`: takes what a remote store does not, until it does. What an earlier driver left there is appended first.
    """

    def __init__(
        self,
        store: Store,
        *,
        writable: bool,
        lock: Lock | None = None,
        kept: Kept | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._writable, self._lock = store, writable, lock
        self._kept, self._clock, self._try_again_at = kept, clock, 0.0
        self._checked: dict[str, Part | BadPart] = {}
        self.set_aside = [BadPart(name, "set aside by an earlier run") for name in store.names(ASIDE)]
        """Parts that could not be trusted, found by this journal or by an earlier one."""
        if writable:
            store.clear_leftovers(FOLDER)
        names = [*store.names(FOLDER), *store.names(ASIDE)]
        self._next = 1 + max(map(sequence_of, names), default=0)
        if kept is not None:
            self._send(kept)

    @classmethod
    def open(cls, out: str | Path, *, writable: bool = True) -> "Journal":
        """The journal of the run folder `out` (a path or an object-store URL)."""
        return cls(open_store(out), writable=writable)

    def append(self, records: Sequence[Record]) -> None:
        """All of `records` become durable as one part, or none does; in `kept` while a remote store takes nothing.

        Raises `JournalFull`; `LockLost` when another driver took the folder over.
        """
        if not records:
            return
        frame = to_frame_of_what_fits(records)
        for said in frame["left_out"].drop_nulls():
            _log.warning("a value that no journal can hold was left out: %s", said)
        data = encode(frame)
        if self._kept is None:
            try:
                self._put(data)
            except StoreFull as error:
                raise JournalFull(
                    f"{error}; everything journalled before is kept: make room and run again"
                ) from error
            return
        try:
            if self._clock() >= self._try_again_at and self._send(self._kept):
                self._put(data)
                return
        except StoreError as error:
            self._wait(self._kept, error)
        except LockLost:
            self._kept.add(data)
            raise
        self._kept.add(data)

    def send_kept(self) -> str | None:
        """Try once more to write what is kept into the store. Where it lies and how to go on, where that fails."""
        if self._kept is None:
            return None
        with suppress(LockLost):
            self._send(self._kept)
        return self._kept.says()

    def _send(self, kept: Kept) -> bool:
        """Whether nothing is kept any more. Raises `LockLost`."""
        try:
            for name in kept.names():
                self._put(kept.read(name))
                kept.drop(name)
        except StoreError as error:
            self._wait(kept, error)
            return False
        self._try_again_at = 0.0
        return True

    def _wait(self, kept: Kept, error: StoreError) -> None:
        if not self._try_again_at:
            _log.warning("%s; results are kept in %s until it takes them", error, kept.folder)
        self._try_again_at = self._clock() + _TRY_AGAIN_S

    def _put(self, data: bytes) -> None:
        lease = 0
        if self._lock is not None:
            self._lock.check()
            lease = self._lock.lease
        self._store.write(f"{FOLDER}/{name_of(data, self._next, lease)}", data)
        self._next += 1

    @contextmanager
    def view(self, columns: Sequence[str] = tuple(LIGHT_SCHEMA)) -> Iterator[View]:
        """What is on record, while the context lasts. Raises `SchemaTooNew`."""
        with self._store.local(FOLDER) as folder:
            yield _view(self._trusted(folder), columns)

    def history(self) -> list[Attempt]:
        """Every attempt on record once, oldest first, without what it measured."""
        with self.view(_HISTORY) as view:
            return view.history()

    def attempts(self) -> list[Attempt]:
        """Every attempt on record once, oldest first, without samples, steps, scores, ids and snapshot."""
        with self.view() as view:
            return to_attempts(view.light)

    def whole(self, lease_id: str) -> Attempt | None:
        """The attempt of one lease with all its series; None when there is none on record."""
        with self.view(_IDENTITY) as view:
            rows = view.light.filter(lease_id=lease_id)["row"].to_list()
            return next(iter(view.whole(rows).values()), None)

    def _trusted(self, folder: Path) -> list[Part]:
        """Each part is read and checked once in this journal's life."""
        parts: list[Part] = []
        names = self._store.names(FOLDER)
        fenced = fenced_off(names)
        for name in sorted(names, key=lambda name: (sequence_of(name), name)):
            found = self._checked.get(name)
            if found is None or (name in fenced and isinstance(found, Part)):
                found = BadPart(name, _PASSED) if name in fenced else check(name, folder / name)
                self._checked[name] = found
                self._leave_out(found)
            if isinstance(found, Part):
                parts.append(replace(found, path=folder / name))
        return parts

    def _leave_out(self, found: Part | BadPart) -> None:
        if isinstance(found, Part):
            return
        self.set_aside.append(found)
        _log.warning("%s: journal part %s is left out: %s", self._store.url, found.name, found.reason)
        if self._writable:
            self._store.move(f"{FOLDER}/{found.name}", f"{ASIDE}/{found.name}")


def _view(parts: Sequence[Part], columns: Sequence[str]) -> View:
    """The first of equal leases wins, then the first of equal attempts at a cell on a kind of device."""
    parts = sorted(parts, key=lambda part: part.version)  # as `scan` orders them
    rows = scan(parts).with_row_index("row")
    # One chunk per column: everything that follows would go through a chunk per part.
    light = rows.select("row", *dict.fromkeys((*_IDENTITY, *columns))).collect().rechunk()
    identity = light.select("row", *_IDENTITY)
    first = identity.unique("lease_id", keep="first", maintain_order=True).unique(
        ["cell_id", "device_kind", "attempt"], keep="first", maintain_order=True
    )
    late = identity.join(first, on="row", how="anti")
    if late.height:
        light = light.filter(pl.col("row").is_in(first["row"].implode()))
        rows = rows.filter(~pl.col("row").is_in(late["row"].implode()))
    starts = accumulate((part.rows for part in parts), initial=0)
    return View(light, rows, late.drop("row"), dict(zip(starts, parts, strict=False)))
