"""A cell on two devices: two processes that need each other. When one ends badly, all end, and the one is named."""

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.workers.host.cells import MiB, lease
from tests.workers.host.conftest import WITH_FAULTS, GiB
from workers.attempt import Attempt, Device, Failure, Phase
from workers.cell import Lease
from workers.host.device_host import DeviceHost
from workers.host.devices import DeviceDirty
from workers.host.peer_hosts import PeerHosts
from workers.outcome import Outcome
from workers.ranks import Ranks
from workers.ranks_attempt import attempt_of_ranks

_SERIAL = itertools.count()
Run = Callable[..., Attempt]


@pytest.fixture(scope="module")
def other(host: DeviceHost) -> Iterator[tuple[DeviceHost, ThreadPoolExecutor]]:
    """A second host, in a thread of its own: as long as that thread lives, its fork server does. Both are warm."""
    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(DeviceHost, "node/cpu1", GiB, preload=WITH_FAULTS).result()
        thread.submit(second.describe).result()
        host.describe()
        yield second, thread
        thread.submit(second.close).result()


@pytest.fixture
def run(host: DeviceHost, other: tuple[DeviceHost, ThreadPoolExecutor], model: str) -> Run:
    """Runs a cell on both, and looks for what it leaves behind."""
    second, thread = other

    def run(fault: str | None, **cell: object) -> Attempt:
        name = f"test-{os.getpid()}-{next(_SERIAL)}"
        asked = lease(model, fault=fault, devices=2, **cell)
        future = thread.submit(second.run, asked, ranks=Ranks(1, 2, name))
        first = host.run(asked, ranks=Ranks(0, 2, name))
        attempts = [first, future.result()]
        assert not Ranks(0, 2, name).folder.exists()
        assert _cells() == [], "a process of the cell is left"
        return attempt_of_ranks(attempts)

    return run


def _cells() -> list[int]:
    return [
        child.pid for child in psutil.Process().children(recursive=True) if child.name() == "oomline-cell"
    ]


def test_two_processes_run_one_cell(run: Run) -> None:
    attempt = run("none", length=8)
    assert (attempt.outcome, attempt.measured.new_tokens, attempt.failure) == (Outcome.OK, 8, None)
    assert [share.outcome for share in attempt.devices] == [Outcome.OK] * 2
    assert len({share.device_uuid for share in attempt.devices}) == 2
    peaks = [share.peak_device_bytes for share in attempt.devices]
    assert all(peaks)
    assert attempt.peak_device_bytes == max(peaks)


def test_an_engine_cuts_its_model_for_two_processes(run: Run, host: DeviceHost, model: str) -> None:
    """The eager engine, by transformers' plan: half of the cache on each device."""
    alone, together = host.run(lease(model)), run(None)
    assert (together.outcome, together.failure) == (Outcome.OK, None)
    assert alone.measured.kv_cache_bytes == 2 * together.measured.kv_cache_bytes
    assert together.measured.weights_bytes < alone.measured.weights_bytes


@pytest.mark.parametrize(
    ("fault", "rank", "outcome", "words"),
    [
        ("kill@decode", 1, Outcome.CRASHED, "killed by signal 9"),
        ("kill@load", 0, Outcome.CRASHED, "killed by signal 9"),
        ("bug@prefill", 1, Outcome.CRASHED, "shape mismatch"),
        ("too-much@decode", 1, Outcome.OOM_DECODE, "memory"),
        ("sys-exit@open", 0, Outcome.CRASHED, "exit code 1"),
        ("stop@decode", 1, Outcome.HANG, "decode, "),
        ("sleep@prefill", 0, Outcome.HANG, "prefill, 0 tokens"),
    ],
)
def test_the_process_that_ends_the_cell_is_named(
    run: Run, fault: str, rank: int, outcome: Outcome, words: str
) -> None:
    stall_s = 2.5 if outcome is Outcome.HANG else 30.0
    attempt = run(f"{fault}@{rank}", stall_timeout_s=stall_s, budget=96 * MiB, length=200)
    assert attempt.outcome is outcome, attempt.failure
    assert attempt.failure is not None
    assert attempt.failure.error_message.startswith(f"rank {rank} of 2, cpu-"), attempt.failure
    assert words in attempt.failure.error_message
    assert [share.ended_cell for share in attempt.devices] == [rank == 0, rank == 1]
    assert attempt.device is not None
    assert attempt.device.uuid == attempt.devices[rank].device_uuid
    assert attempt.devices[1 - rank].outcome is not Outcome.OK


def test_a_host_that_takes_no_cell_keeps_no_other_waiting(
    host: DeviceHost,
    other: tuple[DeviceHost, ThreadPoolExecutor],
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second, thread = other
    monkeypatch.setattr(second, "_refuse_if_dirty", _refuse)
    asked, name = lease(model, fault="none", devices=2), f"test-{os.getpid()}-{next(_SERIAL)}"
    future = thread.submit(second.run, asked, ranks=Ranks(1, 2, name))
    attempt = host.run(asked, ranks=Ranks(0, 2, name))
    assert isinstance(future.exception(), DeviceDirty)
    assert attempt.outcome is Outcome.CANCELLED
    assert attempt.failure is not None
    assert attempt.failure.error_message == "rank 1 ended: infra_error"
    assert _cells() == []


def _refuse() -> None:
    raise DeviceDirty("2 GiB are still held")


def test_of_two_devices_that_run_out_the_first_one_counts() -> None:
    """What follows from the end of another process never counts, however early it is seen."""
    asked = lease("pocket", devices=2)
    lost = _ended(asked, Outcome.CRASHED, 1.0, "[gloo/transport/tcp/pair.cc] Connection closed by peer")
    ended = [_ended(asked, Outcome.OOM_DECODE, seconds, "full") for seconds in (3.0, 2.0)]
    merged = attempt_of_ranks([lost, *ended])
    assert merged.outcome is Outcome.OOM_DECODE
    assert [share.ended_cell for share in merged.devices] == [False, False, True]
    assert merged.failure is not None
    assert merged.failure.error_message == "rank 2 of 3, cpu-2.0: full"
    assert merged.duration_s == 3.0
    assert attempt_of_ranks([lost, lost]).outcome is Outcome.CRASHED, "nothing else is known of it"


def _ended(asked: Lease, outcome: Outcome, seconds: float, message: str) -> Attempt:
    return Attempt(
        lease_id=asked.lease_id,
        cell=asked.cell,
        attempt=1,
        outcome=outcome,
        phase=Phase.DECODE,
        device=Device(kind="cpu", uuid=f"cpu-{seconds}", node="here", total_bytes=1),
        started_at=100.0,
        duration_s=seconds,
        failure=Failure(error_type="RuntimeError", error_message=message),
    )


def test_one_that_moves_is_seen_by_those_that_wait() -> None:
    name = f"test-{os.getpid()}-{next(_SERIAL)}"
    with PeerHosts(Ranks(0, 2, name)) as waiting, PeerHosts(Ranks(1, 2, name)) as moving:
        assert waiting.moved_s() == 0.0
        moving.tell_moved(1234.5)
        assert waiting.moved_s() == 1234.5
        assert moving.moved_s() == 0.0
        assert waiting.first_bad_end() is None
        moving.tell_ended(Outcome.HANG)
        assert waiting.first_bad_end() == (1, Outcome.HANG)
    assert not Ranks(0, 2, name).folder.exists()
