"""Runs the record's processes, a few at a time, and samples what the driver says each of them holds."""

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.prediction.runs import GiB, PredictionRun, run
from tests.benchmarks.prediction.shapes import benchmark_shapes

EXPANDABLE = "expandable_segments:True"
#: Of an emulated card: the driver's reserve on an H100, and what a cell keeps free for kernels that load later.
_RESERVE, _LATER = 480 * 2**20, 16 * 2**20


def runs(folder: Path, context_bytes: int, which: str, engines: Sequence[str]) -> list[PredictionRun]:
    """Prompts that outgrow an emulated card, two budgets and two allocators per shape of the set `which`; in development
    then other modes of the eager engine, whole card.
    """
    found = [
        PredictionRun(
            name=shape.name,
            model=shape.write(folder),
            engine=engine,
            allocator=allocator,
            prompt_tokens=shape.prompt_tokens,
            budget_gib=budget,
            allowed_bytes=budget * GiB - _RESERVE - _LATER - context_bytes,
        )
        for shape in benchmark_shapes()
        if shape.set == which
        for engine in shape.engines
        if engine in engines
        for budget in shape.budgets_gib
        for allocator in ("", EXPANDABLE)
    ]
    if which == "development" and "eager" in engines:
        small = "random:llama-3.2-1b"
        pythia, draft = "random:pythia-1.4b", "random:pythia-160m"
        for allocator in ("", EXPANDABLE):
            found += [
                PredictionRun(
                    name="llama-3.2-1b", model=small, allocator=allocator, prompt_tokens=6000, new_tokens=200
                ),
                PredictionRun(
                    name="pythia-1.4b",
                    model=pythia,
                    allocator=allocator,
                    mode="streaming",
                    prompt_tokens=3000,
                    new_tokens=80,
                    chunk=128,
                ),
                PredictionRun(
                    name="pythia-1.4b",
                    model=pythia,
                    draft=draft,
                    mode="baseline+spec",
                    allocator=allocator,
                    prompt_tokens=3000,
                    new_tokens=120,
                ),
            ]
    return found


def record(asked: list[PredictionRun], folder: Path, jobs: int, deadline: float) -> dict[str, Any]:
    """Run all, at most `jobs` at once and no more than the card holds, none begun after `deadline` (monotonic).

    Returns results by key.
    """
    context = multiprocessing.get_context("fork")  # torch and transformers are imported already, no CUDA yet
    card_bytes = _card_bytes()
    waiting = list(enumerate(asked))
    alive: dict[Any, tuple[PredictionRun, Path, float]] = {}
    peaks: dict[int, int] = {}
    results: dict[str, Any] = {}
    while waiting or alive:
        while waiting and len(alive) < jobs and time.monotonic() < deadline:
            held = sum(other.allowed_bytes or 0 for other, _, _ in alive.values())
            if alive and held + (waiting[0][1].allowed_bytes or 0) > card_bytes - (jobs + 1) * GiB:
                break
            number, next_run = waiting.pop(0)
            out = folder / f"run-{number}"
            process = context.Process(target=_guarded, args=(run, next_run, out))
            process.start()
            alive[process] = next_run, out, time.monotonic()
        if not alive:
            break
        _sample(peaks)
        for process in list(alive):
            if process.is_alive() and time.monotonic() < deadline + 20:
                continue
            if process.is_alive():
                process.kill()
            process.join()
            done, out, began = alive.pop(process)
            results[done.key] = _result(out) | {
                "nvml_process_peak": peaks.get(process.pid or 0),
                "exit": process.exitcode,
                "wall_s": time.monotonic() - began,
            }
            print(
                done.key, json.dumps({k: v for k, v in results[done.key].items() if k != "run"}), flush=True
            )
        time.sleep(0.01)
    return results


def merge(folder: Path, asked: list[PredictionRun], out: Path) -> None:
    """All recorded events in one file: `KEY/trace` and so on."""
    arrays: dict[str, np.ndarray] = {}
    for number, one in enumerate(asked):
        path = folder / f"run-{number}.npz"
        if path.exists():
            with np.load(path) as content:
                arrays |= {f"{one.key}/{name}": content[name] for name in content.files}
    np.savez_compressed(out, **arrays)


def _guarded(work: Callable[..., None], *arguments: Any) -> None:
    try:
        work(*arguments)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def _result(out: Path) -> dict[str, Any]:
    path = out.with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else {"outcome": "no result"}


def _card_bytes() -> int:
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total)


def _sample(peaks: dict[int, int]) -> None:
    import pynvml

    try:
        pynvml.nvmlInit()
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError:
        return
    for process in found:
        if process.usedGpuMemory:
            peaks[process.pid] = max(peaks.get(process.pid, 0), process.usedGpuMemory)
