"""Against a real S3 server (moto's), as a driver uses it."""

import json
from collections.abc import Iterator

import polars as pl
import pytest

from orchestrator.journal.errors import FolderError, FolderInUse, LockLost, StoreError
from orchestrator.journal.folder import open_run, read_run
from orchestrator.journal.lock import LeaseLock
from orchestrator.journal.object_store import ObjectStore, open_store
from orchestrator.journal.record import Record
from orchestrator.report import render
from tests.orchestrator.fake_run import demo_attempts, demo_spec
from tests.orchestrator.journal.s3 import new_bucket, s3_server, until, use

ATTEMPTS = demo_attempts()[:3]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    use(server, monkeypatch)
    return new_bucket(server)


def test_a_run_in_a_bucket_is_written_resumed_and_read(bucket: str) -> None:
    with open_run(bucket, demo_spec()) as folder:
        folder.journal.append([Record(folder.run_id, ATTEMPTS[0])])
        with pytest.raises(FolderInUse, match="pid "):
            open_run(bucket, demo_spec())
    with open_run(bucket, demo_spec()) as folder:
        assert folder.resumed
        assert [past.lease_id for past in folder.journal.history()] == [ATTEMPTS[0].lease_id]
        folder.journal.append([Record(folder.run_id, attempt) for attempt in ATTEMPTS[1:]])
        folder.finish("finished")

    run = read_run(bucket)
    assert render(bucket) == f"{bucket}/report.md"
    store = ObjectStore(bucket)
    assert b"finished: 3" in store.read("report.md")
    assert pl.read_parquet(store.read("tables/attempts.parquet")).height == 3
    assert len(store.names("plots")) >= 2
    assert run.journal.whole(ATTEMPTS[2].lease_id) == ATTEMPTS[2]
    assert len(run.journal.history()) == 3
    with pytest.raises(FolderError, match="another sweep"):
        open_run(bucket, demo_spec(seed=5))


def test_a_torn_object_is_set_aside(bucket: str) -> None:
    with open_run(bucket, demo_spec()) as folder:
        for attempt in ATTEMPTS[:2]:
            folder.journal.append([Record(folder.run_id, attempt)])
    store = ObjectStore(bucket)
    torn = store.names("journal")[0]
    store.write(f"journal/{torn}", store.read(f"journal/{torn}")[:-9])

    with open_run(bucket, demo_spec()) as folder:
        assert [past.lease_id for past in folder.journal.history()] == [ATTEMPTS[1].lease_id]
    assert store.names("journal/set-aside") == [torn]
    assert torn not in store.names("journal")


def test_a_silent_holder_is_passed_once_and_may_write_no_more(bucket: str) -> None:
    clock = [1000.0]
    store = ObjectStore(bucket)
    silent = LeaseLock(store, beat_s=0.2, stale_s=60, now=lambda: clock[0])
    silent.check()

    with pytest.raises(FolderInUse):
        LeaseLock(store, stale_s=60, now=lambda: clock[0] + 59)
    successor = LeaseLock(store, stale_s=60, now=lambda: clock[0] + 61)
    with pytest.raises(FolderInUse):
        LeaseLock(store, stale_s=60, now=lambda: clock[0] + 62)

    until(lambda: silent.lost)
    with pytest.raises(LockLost):
        silent.check()
    successor.check()
    successor.release()
    silent.release()
    LeaseLock(store).release()
    assert store.names("lock") == ["lock-000003"], "its number goes on; nobody holds it"


def test_a_dead_holder_on_this_machine_is_passed_at_once(bucket: str) -> None:
    store = ObjectStore(bucket)
    lock = LeaseLock(store)
    held = store.read("lock/lock-000001")
    lock.release()
    store.write("lock/lock-000001", held.replace(f'"pid": {_pid(held)}'.encode(), b'"pid": 4194999'))

    LeaseLock(store).release()


def test_an_unknown_kind_of_store_is_a_message() -> None:
    with pytest.raises(StoreError, match="nosuch"):
        open_store("nosuch://bucket/run")


def _pid(lease: bytes) -> int:
    return int(json.loads(lease)["pid"])
