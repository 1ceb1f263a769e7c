"""One run of the record, in a process of its own: the engine's own code on a real card, under a fixed limit."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.prediction import history
from workers.cell import Cell, Engine, ModelRef
from workers.engines.session import Unmeasured
from workers.modes import Speculation, Streaming

GiB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRun:
    """`name`: of the shape; `allowed_bytes`: what torch's allocator may reserve, None: all that the card has."""

    name: str
    model: str
    engine: Engine = "eager"
    allocator: str = ""
    mode: str = "baseline"
    draft: str | None = None
    prompt_tokens: int = 2**17
    new_tokens: int = 1
    chunk: int = 1024
    budget_gib: int | None = None
    allowed_bytes: int | None = None

    @property
    def key(self) -> str:
        allocator = "expandable" if "expandable" in self.allocator else "default"
        budget = f"{self.budget_gib}GiB" if self.budget_gib is not None else "whole"
        mode = self.mode if self.engine == "eager" else f"{self.mode} {self.engine}"
        return f"{self.name}/{mode}/{allocator}/{budget}"

    def cell(self) -> Cell:
        return Cell(
            model=ModelRef(target=self.model, draft=self.draft),
            mode=self.mode,
            engine=self.engine,
            prompt_tokens=self.prompt_tokens,
            length=self.new_tokens,
            prefill_chunk=self.chunk,
            streaming=Streaming(sinks=4, window=1020) if self.mode.startswith("streaming") else None,
            speculation=Speculation(gamma=4, acceptance=0.8) if self.draft else None,
        )


def run(asked: PredictionRun, out: Path) -> None:
    """Run to the end or out of memory; write `out`.npz (events) and `out`.json (peaks and how far it came)."""
    started = time.perf_counter()
    import torch
    import transformers

    from workers.host.child.cuda import load_kernels

    if asked.allocator:
        torch._C._accelerator_setAllocatorSettings(asked.allocator)
    load_kernels(torch.bfloat16, 0)
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    if asked.allowed_bytes is not None:
        torch.cuda.set_per_process_memory_fraction(asked.allowed_bytes / total)
    before = history.live_blocks()
    reserved_before = torch.cuda.memory_reserved()
    history.begin()
    result: dict[str, Any] = {"context_and_others_bytes": context, "reserved_before": reserved_before}
    marks: list[int] = []
    try:
        result |= _generate(asked, marks)
    except torch.OutOfMemoryError as error:
        result |= {"outcome": "oom", "message": str(error)[:600]}
    stats = torch.cuda.memory_stats()
    free, _ = torch.cuda.mem_get_info()
    result |= {
        "run": asdict(asked),
        "total_bytes": total,
        "peak_allocated": stats["allocated_bytes.all.peak"],
        "peak_reserved": stats["reserved_bytes.all.peak"],
        "retries": stats["num_alloc_retries"],
        "context_and_others_after": total - free - torch.cuda.memory_reserved(),
        "passes": len(marks),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "card": torch.cuda.get_device_name(),
        "ran_s": time.perf_counter() - started,
    }
    arrays = history.end(before, reserved_before, marks)
    arrays["allowed"] = np.array([asked.allowed_bytes or 0], np.int64)
    result["events"] = len(arrays["trace"])
    result["seconds"] = time.perf_counter() - started
    np.savez_compressed(out.with_suffix(".npz"), **arrays)
    out.with_suffix(".json").write_text(json.dumps(result))


class _Reading(Unmeasured):
    """Notes when a pass over the prompt begins, and how many tokens were read by then."""

    def __init__(self, marks: list[int]) -> None:
        super().__init__()
        self._marks = marks
        self.tokens_read = 0

    def prompt(self, read: int) -> None:
        super().prompt(read)
        self._marks.append(time.time_ns() // 1000)
        self.tokens_read = read


def _generate(asked: PredictionRun, marks: list[int]) -> dict[str, Any]:
    import torch

    from workers.engines import open_session
    from workers.models.load import load_model

    cell, device = asked.cell(), torch.device("cuda", 0)
    target = load_model(cell.model.target, cell.model, device)
    draft = load_model(asked.draft, cell.model, device) if asked.draft else None
    loaded_reserved = torch.cuda.memory_reserved()
    session = open_session(cell, target, draft)
    prompt_BT = torch.randint(0, min(target.vocab_size, 50_000), (1, asked.prompt_tokens))
    reading = _Reading(marks)
    found = {"weights_bytes": target.weights_bytes, "reserved_after_load": loaded_reserved}
    try:
        session.generate(prompt_BT, asked.new_tokens, reading)
    except torch.OutOfMemoryError as error:
        return {**found, "outcome": "oom", "tokens_read": reading.tokens_read, "message": str(error)[:600]}
    return {**found, "outcome": "ok", "tokens_read": reading.tokens_read}
