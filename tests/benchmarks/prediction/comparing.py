"""Rehearsed runs against recorded ones: the pass in which memory ended, and the peak that NVML saw of the process."""

import json
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.predict.allocator.caching import CachingAllocator
from orchestrator.predict.allocator.settings import AllocatorSettings
from orchestrator.predict.rehearsed.passes import RehearsedPasses
from orchestrator.predict.rehearsed.run import RehearsedRun
from tests.benchmarks.prediction.runs import PredictionRun as Recorded
from tests.benchmarks.prediction.shapes import benchmark_shapes
from workers.rehearsal.eager import EagerRehearsal


def compare(folder: Path) -> None:
    """Print a line per prompt of `folder`/runs.json that outgrew its card, and the largest error."""
    content = json.loads((folder / "runs.json").read_text())
    context = next(s["outside_allocator"] for s in content["facts"]["steps"] if s["step"] == "a second run")
    print(f"{'run':46} {'read':>8} {'predicted':>9} {'error':>7} {'NVML':>7} {'error':>8}")
    errors = []
    for shape in benchmark_shapes():
        runs = {key: run for key, run in content["runs"].items() if key.startswith(f"{shape.name}/")}
        if not runs:
            continue
        with tempfile.TemporaryDirectory() as home:
            passes: RehearsedPasses | None = None
            for key, run in runs.items():
                asked = Recorded(**{**run["run"], "model": shape.write(Path(home))})
                passes = passes or RehearsedPasses(EagerRehearsal(asked.cell()), asked.chunk)
                errors.append(_line(key, asked, run, passes, context))
    print(f"largest error: {max(map(abs, errors)):.2%}")


def _line(key: str, asked: Recorded, run: dict[str, Any], passes: RehearsedPasses, context: int) -> float:
    settings = AllocatorSettings.parse(asked.allocator)
    allocator = CachingAllocator(settings, allowed_bytes=asked.allowed_bytes)
    workspace = 2**25
    mine = RehearsedRun(
        passes,
        allocator,
        (workspace,),
        prompt_tokens=asked.prompt_tokens,
        chunk=asked.chunk,
        batch_size=1,
    ).to(asked.new_tokens)
    read = (run["passes"] - 1) * asked.chunk
    came_to = mine.failure.tokens if mine.failure else asked.prompt_tokens
    seen = run["nvml_process_peak"]
    error = (came_to - read) / max(read, 1)
    peak = (context + allocator.peak_reserved) / seen - 1 if seen else float("nan")
    print(
        f"{key:46} {read:>8,} {came_to:>9,} {error:>+7.1%} {(seen or 0) / 2**30:>7.2f} {peak:>+8.2%}",
        flush=True,
    )
    return error
