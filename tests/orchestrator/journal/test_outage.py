"""An object store that goes away while a driver holds its run folder: nothing is lost, and nobody is let in twice."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.journal.errors import FolderInUse, LockLost
from orchestrator.journal.folder import open_run
from orchestrator.journal.journal import Journal
from orchestrator.journal.kept import Kept
from orchestrator.journal.lock import LeaseLock
from orchestrator.journal.object_store import ObjectStore
from orchestrator.journal.parts import fenced_off
from orchestrator.journal.record import Record
from tests.orchestrator.fake_run import demo_attempts, demo_spec
from tests.orchestrator.journal.s3 import Relay, new_bucket, s3_server, until, use

ATTEMPTS = demo_attempts()[:4]
BEAT_S, STALE_S = 0.2, 1.5


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def relay(server: str) -> Iterator[Relay]:
    relay = Relay(server)
    yield relay
    relay.cut()


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class LeaseHolder:
    """One that holds the folder under a short lease, and journals."""

    def __init__(self, bucket: str, endpoint: str, patch: pytest.MonkeyPatch, run_id: str = "demo-1") -> None:
        use(endpoint, patch)
        self.store = ObjectStore(bucket)
        self.lock = LeaseLock(self.store, BEAT_S, STALE_S)
        self.kept = Kept(run_id, bucket)
        self.clock = 1000.0
        self.journal = Journal(
            self.store, writable=True, lock=self.lock, kept=self.kept, clock=lambda: self.clock
        )

    def append(self, number: int) -> None:
        self.journal.append([Record("demo-1", ATTEMPTS[number])])


def leases(bucket: str, server: str, patch: pytest.MonkeyPatch) -> list[str]:
    use(server, patch)
    return [attempt.lease_id for attempt in Journal.open(bucket, writable=False).attempts()]


def test_a_driver_that_nobody_passed_wins_its_lease_back_and_sends_what_it_kept(
    server: str, relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = new_bucket(server)
    driver = LeaseHolder(bucket, relay.url, monkeypatch)
    driver.append(0)
    relay.cut()
    driver.append(1)
    driver.append(2)  # not even tried: the store was away a moment ago
    time.sleep(STALE_S)
    assert len(driver.kept.names()) == 2
    assert leases(bucket, server, monkeypatch) == [ATTEMPTS[0].lease_id]
    assert caplog.text.count("results are kept in") == 1

    relay.mend()
    driver.clock += 60
    driver.append(3)
    assert driver.lock.lost is None
    assert driver.lock.lease == 2, "it had to compete: another driver might have been about to pass it"
    assert not driver.kept.folder.exists()
    assert leases(bucket, server, monkeypatch) == [attempt.lease_id for attempt in ATTEMPTS]
    driver.lock.release()


def test_a_driver_that_was_passed_stops_and_its_results_come_in_later(
    server: str, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket(server)
    use(server, monkeypatch)
    with open_run(bucket, demo_spec()) as folder:
        run_id = folder.run_id
    first = LeaseHolder(bucket, relay.url, monkeypatch, run_id)
    first.append(0)
    relay.cut()
    first.append(1)
    time.sleep(STALE_S)
    second = LeaseHolder(bucket, server, monkeypatch, "not the same machine")
    second.append(2)

    relay.mend()
    until(lambda: first.lock.lost)  # without an append: a cell may run for hours
    first.clock += 60
    with pytest.raises(LockLost, match=r"taken over by another driver .* then run the same command again"):
        first.append(3)
    assert leases(bucket, server, monkeypatch) == [ATTEMPTS[0].lease_id, ATTEMPTS[2].lease_id]
    told = first.journal.send_kept()
    assert told is not None
    assert f"kept in {first.kept.folder}" in told
    first.lock.release()
    with pytest.raises(FolderInUse):
        LeaseHolder(bucket, server, monkeypatch)
    second.lock.release()

    with open_run(bucket, demo_spec()) as folder:
        assert [past.lease_id for past in folder.journal.history()] == [
            ATTEMPTS[number].lease_id for number in (0, 2, 1, 3)
        ]
    assert not first.kept.folder.exists()


def test_a_driver_notices_one_that_came_and_went(
    server: str, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket(server)
    first = LeaseHolder(bucket, relay.url, monkeypatch)
    relay.cut()
    time.sleep(STALE_S)
    LeaseHolder(bucket, server, monkeypatch).lock.release()
    relay.mend()
    until(lambda: first.lock.lost)


def test_a_part_that_arrives_after_its_writer_was_passed_does_not_count(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket(server)
    first = LeaseHolder(bucket, server, monkeypatch)
    first.append(0)
    first.lock._stop.set()  # as a process that is suspended with a part under way
    first.lock._thread.join()
    time.sleep(STALE_S)
    second = LeaseHolder(bucket, server, monkeypatch)
    monkeypatch.setattr(first.lock, "check", lambda: None)
    first.append(1)
    assert leases(bucket, server, monkeypatch) == [ATTEMPTS[0].lease_id, ATTEMPTS[1].lease_id]

    second.append(2)
    first.append(3)
    known = [ATTEMPTS[0].lease_id, ATTEMPTS[2].lease_id]
    assert leases(bucket, server, monkeypatch) == known
    second.lock.release()
    journal = Journal.open(bucket)
    assert [past.lease_id for past in journal.history()] == known
    assert len(ObjectStore(bucket).names("journal/set-aside")) == 2


def test_a_lease_whose_answer_was_lost_is_held() -> None:
    """The store created it and the connection broke: the client asks again and hears that it exists."""

    class Forgetful:
        url = "s3://bucket/run"

        def __init__(self) -> None:
            self.objects: dict[str, bytes] = {}

        def names(self, folder: str) -> list[str]:
            return [name.rpartition("/")[2] for name in self.objects]

        def read(self, name: str) -> bytes:
            return self.objects[name]

        def write(self, name: str, data: bytes) -> None:
            self.objects[name] = data

        def create(self, name: str, data: bytes) -> bool:
            self.objects.setdefault(name, data)
            return False

        def remove(self, name: str) -> None:
            del self.objects[name]

    lock = LeaseLock(Forgetful())
    lock.check()
    lock.release()


def test_parts_are_fenced_off_by_a_higher_lease_at_the_same_place_or_before() -> None:
    digest = "0" * 16
    old, early, late, same, later = (
        f"part-000001-{digest}.parquet",
        f"part-000002-by0001-{digest}.parquet",
        f"part-000003-by0001-{digest}.parquet",
        f"part-000003-by0002-{digest}.parquet",
        f"part-000004-by0001-{digest}.parquet",
    )
    assert fenced_off([old, early, late]) == set()
    assert fenced_off([old, early, late, same, later]) == {late, later}
