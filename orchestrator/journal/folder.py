"""A run folder: the resolved sweep file, the manifest, the journal, and what is derived from it.

`open_run` is the driver's way in (locked, resumable); `read_run` is everybody else's, while a driver runs too.
"""

import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from orchestrator.journal.errors import FolderError, SchemaTooNew
from orchestrator.journal.journal import Journal
from orchestrator.journal.kept import Kept
from orchestrator.journal.lock import Lock
from orchestrator.journal.manifest import DriverSession, Manifest, environment
from orchestrator.journal.object_store import open_store
from orchestrator.journal.record import SCHEMA_VERSION
from orchestrator.journal.same_sweep import EXTENSIBLE, differences, is_extension
from orchestrator.journal.storable import unicode
from orchestrator.journal.store import LocalStore, Store
from orchestrator.local_files import fingerprints
from orchestrator.spec import SweepSpec, dump_spec, load_spec
from orchestrator.spec_error import SpecError
from workers.attempt import Device

_SPEC, _MANIFEST = "spec.yaml", "manifest.json"


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run folder to read; its journal suffices: `spec`, `manifest` are None where the file cannot be read."""

    store: Store
    spec: SweepSpec | None
    manifest: Manifest | None
    journal: Journal


class RunFolder:
    """A run folder held by this driver. Close it: `with open_run(out, spec) as folder: ...`."""

    def __init__(self, store: Store, lock: Lock, journal: Journal, manifest: Manifest, resumed: bool) -> None:
        self.store, self.journal, self.manifest, self.resumed = store, journal, manifest, resumed
        self._lock = lock

    @property
    def run_id(self) -> str:
        return self.manifest.run_id

    @property
    def lost(self) -> str | None:
        """Why this driver must end now: another one took the folder over."""
        return self._lock.lost

    def plan(self, cells: int) -> None:
        """How many cells the sweep has, so that a partial report can say how far it is."""
        self._update(cells=cells)

    def devices(self, devices: Sequence[Device]) -> None:
        """Devices that joined; known ones are kept once."""
        known = {device.uuid: device for device in self.manifest.devices}
        merged = known | {device.uuid: device for device in devices}
        if merged != known:
            self._update(devices=tuple(merged.values()))

    def finish(self, state: str, note: str = "") -> None:
        """`state`: finished | stopped | failed; `note`: one line a person reads, e.g. why it stopped."""
        *earlier, last = self.manifest.sessions
        ended = last.model_copy(update={"finished_at": time.time(), "state": state, "note": note})
        self._update(sessions=(*earlier, ended))

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _update(self, **changes: object) -> None:
        self._lock.check()
        self.manifest = self.manifest.model_copy(update=changes)
        text = json.dumps(self.manifest.model_dump(), indent=1, ensure_ascii=False)
        self.store.write(_MANIFEST, unicode(text).encode())


def open_run(out: str | Path, spec: SweepSpec, *, extend: bool = False) -> RunFolder:
    """Lock `out` and make it this sweep's folder, or go on with the one it holds. `extend`: with more cells than that
    one had, which stay as they are.

    Raises `FolderInUse` (another driver), `FolderError` (another sweep), `SchemaTooNew`, `StoreError`.
    """
    store = open_store(out)
    lock = store.lock()
    try:
        stored = _read(store, _SPEC)
        manifest = _manifest(store)
        resumed = stored is not None
        if stored is None:
            if store.names("journal"):
                raise FolderError(
                    f"{store.url} holds a journal but no {_SPEC}: put it back, or give another --out"
                )
            store.write(_SPEC, dump_spec(spec).encode())
        else:
            _refuse_another_sweep(store, stored, spec, extend=extend)
        files = fingerprints(spec)
        if manifest is not None:
            _refuse_other_files(store, manifest.files, files)
        if stored is not None and extend:
            store.write(_SPEC, dump_spec(spec).encode())
        run_id = manifest.run_id if manifest else f"{spec.name}-{secrets.token_hex(4)}"
        here = environment()
        session = DriverSession(started_at=time.time(), pid=os.getpid(), environment=here)
        fresh = Manifest(
            schema_version=SCHEMA_VERSION,
            run_id=run_id,
            name=spec.name,
            cells=manifest.cells if manifest else None,
            devices=manifest.devices if manifest else (),
            files=(manifest.files if manifest else {}) | files,
            sessions=(*(_ended(manifest.sessions) if manifest else ()), session),
            environment=here,
        )
        kept = None if isinstance(store, LocalStore) else Kept(run_id, store.url)
        journal = Journal(store, writable=True, lock=lock, kept=kept)
        folder = RunFolder(store, lock, journal, fresh, resumed)
        folder._update()
    except BaseException:
        lock.release()
        raise
    return folder


def read_run(out: str | Path) -> RecordedRun:
    """A run folder as it is. Raises `FolderError` where there is none, `SchemaTooNew`, `StoreError`."""
    store = open_store(out)
    names = store.names(".")
    if not {_SPEC, _MANIFEST} & {*names} and not store.names("journal"):
        raise FolderError(f"{store.url} is no run folder: there is no {_SPEC} and no journal in it")
    stored = _read(store, _SPEC)
    try:
        spec = load_spec(stored) if stored is not None else None
    except SpecError:
        spec = None
    return RecordedRun(store, spec, _manifest(store), Journal(store, writable=False))


def _refuse_another_sweep(store: Store, stored: str, spec: SweepSpec, *, extend: bool) -> None:
    try:
        old = load_spec(stored)
    except SpecError as error:
        raise FolderError(f"{store.url}/{_SPEC} cannot be read ({error}): give another --out") from None
    extends = is_extension(old, spec)
    if old == spec or (extend and extends):
        return
    found = "; ".join(differences(old, spec))
    if extends:
        raise FolderError(
            f"{store.url} holds a part of this sweep ({found}): add --extend, or give another --out"
        )
    more = f" (--extend adds to {', '.join(EXTENSIBLE)}, and changes limits)" if extend else ""
    raise FolderError(
        f"{store.url} holds another sweep ({found}): give another --out, or the same sweep file{more}"
    )


def _refuse_other_files(store: Store, then: dict[str, str], now: dict[str, str]) -> None:
    """Cells on record are compared by the names of their models: those names must mean the same files."""
    changed = [path for path, digest in now.items() if then.get(path, digest) != digest]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise FolderError(
            f"{store.url} holds results of other files: {', '.join(changed[:3])}{more} changed since: give another "
            "--out, or put the files back"
        )


def _ended(sessions: tuple[DriverSession, ...]) -> tuple[DriverSession, ...]:
    """A session that is still marked as running died: we hold the lock."""
    return tuple(
        session.model_copy(update={"state": "died"}) if session.state == "running" else session
        for session in sessions
    )


def _manifest(store: Store) -> Manifest | None:
    text = _read(store, _MANIFEST)
    if text is None:
        return None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValueError:
        return None
    if manifest.schema_version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{store.url} was written with schema version {manifest.schema_version}, this oomline reads up "
            f"to {SCHEMA_VERSION}: use the newer oomline"
        )
    return manifest


def _read(store: Store, name: str) -> str | None:
    try:
        return store.read(name).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
