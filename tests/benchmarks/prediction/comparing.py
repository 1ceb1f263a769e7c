"""Rehearsed runs against recorded ones: the pass in which memory ended, and the peak that NVML saw of the process."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.predict import graph
from orchestrator.predict.allocator.caching import CachingAllocator
from orchestrator.predict.allocator.settings import AllocatorSettings
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.memory import largest_by_formula, predict_by_formula
from orchestrator.predict.rehearsed.passes import RehearsedPasses
from orchestrator.predict.rehearsed.run import RehearsedRun
from orchestrator.predict.shape import shape_for
from tests.benchmarks.prediction.runs import PredictionRun as Recorded
from tests.benchmarks.prediction.shapes import benchmark_shapes
from workers.cell import Cell
from workers.rehearsal.eager import EagerRehearsal

#: Of cuBLAS, in torch's allocator.
_WORKSPACE = 2**25
FAR = 2**60


def compare(folder: Path) -> None:
    """Print a line per prompt of `folder`/runs.json that outgrew its card, and the largest error."""
    content = json.loads((folder / "runs.json").read_text())
    context = next(s["outside_allocator"] for s in content["facts"]["steps"] if s["step"] == "a second run")
    print(f"{'run':46} {'read':>8} {'predicted':>9} {'error':>7} {'NVML':>7} {'error':>8}")
    errors = []
    for shape in benchmark_shapes():
        runs = {
            key: run
            for key, run in content["runs"].items()
            if key.startswith(f"{shape.name}/") and run["outcome"] != "no result"
        }
        if not runs:
            continue
        with tempfile.TemporaryDirectory() as home:
            passes: RehearsedPasses | None = None
            for key, run in runs.items():
                asked = Recorded(**{**run["run"], "model": shape.write(Path(home))})
                if asked.engine == "graph":
                    errors.append(_line(key, asked, run, _by_formula(asked), context))
                    continue
                passes = passes or RehearsedPasses(EagerRehearsal(asked.cell()), asked.chunk)
                errors.append(_line(key, asked, run, _by_rehearsal(asked, passes), context))
    print(f"largest error: {max(map(abs, errors)):.2%}")


class Foretold(NamedTuple):
    """Tokens of the passes that fit, and bytes beside the context at the peak."""

    read: int
    held: int


def _by_rehearsal(asked: Recorded, passes: RehearsedPasses) -> Foretold:
    settings = AllocatorSettings.parse(asked.allocator)
    allocator = CachingAllocator(settings, allowed_bytes=asked.allowed_bytes)
    mine = RehearsedRun(
        passes,
        allocator,
        (_WORKSPACE,),
        prompt_tokens=asked.prompt_tokens,
        chunk=asked.chunk,
        batch_size=1,
    ).to(asked.new_tokens)
    return Foretold(mine.failure.tokens if mine.failure else asked.prompt_tokens, allocator.peak_reserved)


def _by_formula(asked: Recorded) -> Foretold:
    """Of whole passes. The formulas know nothing of the allocator's settings, and tell of a run that ran out what it needed."""
    cell = asked.cell()
    shape = shape_for(asked.model, cell.model)
    profile = DeviceProfile(
        kind="NVIDIA H100",
        total_bytes=(asked.allowed_bytes or FAR) + graph.kernels_bytes(cell, "cuda"),
        reserve_bytes=0,
        context_bytes=0,
        runtime_bytes=_WORKSPACE,
        bandwidth_bytes_per_s=1.0,
    )

    def of(passes: int) -> Cell:
        return dataclasses.replace(cell, prompt_tokens=passes * asked.chunk)

    most = asked.prompt_tokens // asked.chunk
    fitting = largest_by_formula(lambda passes: of(min(passes, most)), shape, None, profile)
    read = most if fitting is None else fitting
    peak = predict_by_formula(of(max(read, 1)), shape, None, profile).peak_bytes
    return Foretold(read * asked.chunk, peak)


def _line(key: str, asked: Recorded, run: dict[str, Any], foretold: Foretold, context: int) -> float:
    read = run["tokens_read"] if asked.engine == "graph" else (run["passes"] - 1) * asked.chunk
    seen = run["nvml_process_peak"]
    error = (foretold.read - read) / max(read, 1)
    peak = (context + foretold.held) / seen - 1 if seen else float("nan")
    print(
        f"{key:46} {read:>8,} {foretold.read:>9,} {error:>+7.1%} {(seen or 0) / 2**30:>7.2f} {peak:>+8.2%}",
        flush=True,
    )
    return error
