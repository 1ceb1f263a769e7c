"""What a person reads while a sweep runs: lines in a log, a table on a terminal."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from orchestrator.watch import (
    CellFinished,
    CellProgressed,
    CellStarted,
    DeviceJoined,
    DeviceLost,
    Notice,
    SweepEnded,
    SweepEvent,
    SweepStarted,
    Tick,
)
from orchestrator.watch.live import LiveWatcher
from orchestrator.watch.plain import PlainWatcher
from workers.attempt import Attempt, Device, Failure, Measured, Phase
from workers.cell import Cell, ModelRef
from workers.libraries import library_versions
from workers.machine_state import MachineState
from workers.outcome import Outcome
from workers.progress import Progress

GiB, MiB = 2**30, 2**20
CARD = Device(kind="NVIDIA H100 80GB HBM3", uuid="GPU-1", node="n1", total_bytes=80 * GiB)
CELL = Cell(
    model=ModelRef(target="EleutherAI/pythia-2.8b"),
    mode="baseline",
    engine="graph",
    prompt_tokens=64,
    length=8000,
    budget=8 * GiB,
)


def finished(outcome: Outcome, **failure: object) -> Attempt:
    return Attempt(
        lease_id="x.1.0",
        cell=CELL,
        attempt=1,
        outcome=outcome,
        phase=Phase.DECODE,
        device=CARD,
        started_at=0.0,
        duration_s=75.2,
        measured=Measured(new_tokens=8000, tokens_per_s=123.45),
        machine=MachineState(host_cores=8, host_other_load=0.5, energy_j=2000.0),
        peak_device_bytes=7 * GiB,
        failure=Failure(error_type="E", **failure) if failure else None,  # type: ignore[arg-type]
    )


STORY: list[SweepEvent] = [
    SweepStarted(run_id="demo-1", name="demo", cells=24, searches=2, reused=3),
    DeviceJoined("n1/gpu0", CARD),
    CellStarted("n1/gpu0", CARD, CELL, 1),
    CellProgressed(
        "n1/gpu0",
        Progress(
            lease_id="x.1.0",
            phase=Phase.DECODE,
            new_tokens=2000,
            elapsed_s=20.0,
            tokens_per_s=99.5,
            device_used_bytes=6 * GiB,
            power_w=412.5,
            sm_clock_mhz=1755.0,
            temperature_c=63.0,
            throttled=True,
        ),
    ),
    Tick(
        elapsed_s=61,
        queued=20,
        running=1,
        done=3,
        devices=1,
        searching=2,
        outcomes={Outcome.OK: 3},
        eta_s=3725.0,
    ),
]
ENDING: list[SweepEvent] = [
    CellFinished("n1/gpu0", finished(Outcome.OOM_DECODE, error_message="m", oom_token_index=2345), True),
    CellFinished("n1/gpu0", finished(Outcome.INFRA_ERROR, error_message="the\nnode [red]went"), False),
    DeviceLost("n1/gpu0", CARD, "ActorDiedError: gone", False),
    Notice("waiting: no H100 in the cluster"),
    SweepEnded(0, "24 cells computed, 0 reused"),
]


def test_a_narrow_terminal_cuts_no_line_that_stays() -> None:
    out = io.StringIO()
    watcher = LiveWatcher(Console(file=out, width=60))
    watcher.see(
        SweepEnded(
            1, "3 cells computed, 0 reused (3 ok); 18 left without an outcome: run the same command to go on"
        )
    )
    watcher.close()
    assert " ".join(out.getvalue().split()).endswith(
        "18 left without an outcome: run the same command to go on"
    )


def test_a_log_gets_one_line_per_event_and_no_control_characters() -> None:
    out = io.StringIO()
    watcher = PlainWatcher(out)
    for event in STORY + ENDING:
        watcher.see(event)
    watcher.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 7
    assert all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in lines)
    assert "\r" not in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert "24 cells and 2 boundary searches per kind of device; 3 outcomes on record are reused" in lines[0]
    assert (
        "pythia-2.8b baseline graph 64+8000 in 8 GiB #0 · oom_decode · 1 min 15 s · 123.5 tok/s" in lines[2]
    )
    assert "peak 7.00 GiB · at token 2345" in lines[2]
    assert lines[3].endswith("the node [red]went (not final)")


def test_a_silent_log_gets_a_heartbeat_after_30_s() -> None:
    out, now = io.StringIO(), [0.0]
    watcher = PlainWatcher(out, clock=lambda: now[0])
    tick = STORY[-1]
    for now[0] in (1.0, 29.0, 30.0, 31.0, 59.0, 61.0):
        watcher.see(tick)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert (
        "3 runs done (3 ok), 1 running on 1 device, 20 queued, 2 searches open, about 1 h 02 min left"
        in lines[0]
    )


def drawn(watcher: LiveWatcher, width: int) -> str:
    paper = Console(file=io.StringIO(), width=width, color_system=None)
    paper.print(watcher.view())
    return paper.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_gets_a_row_per_device(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, height=24, force_terminal=True)
    watcher = LiveWatcher(console, clock=lambda: 5.0)
    for event in STORY:
        watcher.see(event)
    watcher.close()
    text = drawn(watcher, width)
    assert "n1/gpu0" in text
    assert "99.5" in text
    assert "3 runs done (3 ok)" in text
    assert "2000/8000" in text
    assert "64+8000" in text
    assert "6.0/8.0 GiB" in text
    assert max(map(len, text.splitlines())) <= width


def test_a_budget_of_a_laptop_is_shown_in_mib() -> None:
    console = Console(file=io.StringIO(), width=120, height=24, force_terminal=True)
    watcher = LiveWatcher(console)
    cell = dataclasses.replace(CELL, budget=48 * MiB)
    watcher.see(CellStarted("n1/cpu0", CARD, cell, 1))
    news = Progress(
        lease_id="x.1.0", phase=Phase.PREFILL, new_tokens=0, elapsed_s=1.0, device_used_bytes=31 * MiB
    )
    watcher.see(CellProgressed("n1/cpu0", news))
    watcher.close()
    for width in (80, 120):
        assert "31/48 MiB" in drawn(watcher, width)
        assert "prefill" in drawn(watcher, width)


def test_a_terminal_survives_markup_in_messages_and_devices_beyond_its_height() -> None:
    console = Console(file=io.StringIO(), width=200, height=12, force_terminal=True)
    watcher = LiveWatcher(console)
    for number in range(50):
        watcher.see(DeviceJoined(f"n{number}/gpu0", CARD))
    assert "and 44 more devices" in drawn(watcher, 100)
    for event in STORY + ENDING:
        watcher.see(event)
    watcher.close()
    assert "[red]went" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["[/]", "[bold]x", "[/bold]", "[red", "[link=x]y", ":smile:", "x\x1b[2Jy"])
def test_a_name_that_is_markup_is_shown_as_it_is(name: str) -> None:
    console = Console(file=io.StringIO(), width=200, height=24, force_terminal=True, color_system=None)
    watcher, out = LiveWatcher(console), io.StringIO()
    plain = PlainWatcher(out)
    cell = dataclasses.replace(CELL, model=dataclasses.replace(CELL.model, target=f"/models/it{name}"))
    card = dataclasses.replace(CARD, kind=f"H100 {name}")
    lost = dataclasses.replace(finished(Outcome.LOAD_ERROR, error_message=f"no {name}"), cell=cell)
    story: list[SweepEvent] = [
        SweepStarted(run_id=name, name=name, cells=1, searches=0, reused=0, models=[cell.model]),
        DeviceJoined(f"{name}/gpu0", card),
        CellStarted(f"{name}/gpu0", card, cell, 1),
    ]
    for event in story:
        watcher.see(event)
        plain.see(event)
    shown = drawn(watcher, 200).replace("\x1b", "?")
    for event in [CellFinished(f"{name}/gpu0", lost, True), Notice(name)]:
        watcher.see(event)
        plain.see(event)
    watcher.close()
    told = name.replace("\x1b", "?")
    assert f"{told.rpartition('/')[2]} graph" in shown.replace("\x1b", "?")
    for text in (console.file.getvalue(), out.getvalue()):  # type: ignore[attr-defined]
        assert f"H100 {told}" in text
        assert f"{told.rpartition('/')[2]} baseline" in text
        assert f"no {told}" in text
    assert "\x1b[2J" not in out.getvalue()


def test_a_device_whose_cells_run_with_other_libraries_than_predicted_says_so() -> None:
    out = io.StringIO()
    PlainWatcher(out).see(DeviceJoined("n1/gpu0", dataclasses.replace(CARD, libraries=library_versions())))
    assert "predictions" not in out.getvalue()
    older = dataclasses.replace(CARD, libraries="torch 2.11.0, transformers 5.17.0")
    PlainWatcher(out).see(DeviceJoined("n1/gpu1", older))
    assert (
        f"cells run with torch 2.11.0, transformers 5.17.0, predictions are of {library_versions()}"
        in out.getvalue()
    )


def test_a_device_whose_cells_run_without_a_preloaded_allocator_says_so() -> None:
    out = io.StringIO()
    preloaded = dataclasses.replace(CARD, allocators_left_out="/opt/libjemalloc.so.2")
    PlainWatcher(out).see(DeviceJoined("n1/gpu0", preloaded))
    assert (
        "80.00 GiB; cells run without /opt/libjemalloc.so.2 (LD_PRELOAD), with glibc's malloc"
        in out.getvalue()
    )


def test_a_cell_on_several_devices_says_so() -> None:
    log = io.StringIO()
    on_two = dataclasses.replace(finished(Outcome.OK), cell=dataclasses.replace(CELL, devices=2))
    PlainWatcher(log).see(CellFinished("n1/gpu0", on_two, True))
    assert "64+8000 in 8 GiB on 2 devices #0 · ok" in log.getvalue()
