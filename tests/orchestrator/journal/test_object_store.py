"""Against a real S3 server (moto's), as a driver uses it."""

import json
import time
from collections.abc import Iterator

import boto3
import polars as pl
import pytest
from moto.server import ThreadedMotoServer

from orchestrator.journal.folder import FolderError, open_run, read_run
from orchestrator.journal.lock import FolderInUse, LeaseLock, LockLost
from orchestrator.journal.record import Record
from orchestrator.journal.store import ObjectStore, StoreError, open_store
from orchestrator.report import render
from tests.orchestrator.fake_run import demo_attempts, demo_spec

ATTEMPTS = demo_attempts()[:3]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"runs-{time.monotonic_ns()}"
    boto3.client("s3", endpoint_url=server).create_bucket(Bucket=name)
    return f"s3://{name}/sweeps/demo"


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

    silent._thread.join(20)
    with pytest.raises(LockLost):
        silent.check()
    successor.check()
    successor.release()
    silent.release()
    LeaseLock(store).release()
    assert store.names("lock") == []


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
