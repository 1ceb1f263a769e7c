"""Every KV policy and way to store keys and values, both engines, on a GPU: peaks of prompt and decoding, bytes kept, speed.

    python -m tests.benchmarks.kv_table [--models random:pythia-2.8b,random:llama-3.1-8b] [--lengths 1000,8000,32000,131072]
        [--engines graph,eager] [--seconds 240] [--out FILE.parquet]

Each row is printed as a JSON line as it comes, so that a killed run leaves what it had. The graph engine reads the first and the
last chunk of a prompt, the eager engine all of it in one pass. Long prompts come last in each model; none begins once the time is
used up.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.engine import TimesHeard
from workers.attempt import Phase
from workers.cell import Cell, ModelRef
from workers.engines import open_session
from workers.engines.session import ModeUnsupported
from workers.kv_dtype import AUTO, DEVICE, HOST, KV_DTYPES
from workers.models.load import LoadedModel, load_model
from workers.modes import MODES, Streaming

NEW, CHUNK = 32, 2048
STREAMING = Streaming(sinks=4, window=1020)


@dataclass
class PeaksHeard(TimesHeard):
    """And the memory of each phase: `at_phase` its beginning; `peaks` allocated and reserved."""

    peaks: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: int = 0
    _count: Callable[[], int] | None = None
    _now: str = "load"

    def phase(self, phase: Phase) -> None:
        self.close()
        self._now = phase.value
        torch.cuda.reset_peak_memory_stats()
        super().phase(phase)

    def close(self) -> None:
        self.peaks[self._now] = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())

    def tokens(self, produced: int) -> None:
        super().tokens(produced)
        if self._count is not None:
            self.kept = self._count()

    def count_cache_with(self, kv_cache_bytes: Callable[[], int]) -> None:
        self._count = kv_cache_bytes


def asked(engine: str) -> Iterator[tuple[str, str, str]]:
    """(mode, kv_dtype, kv_placement)"""
    yield from (("baseline", kv_dtype, DEVICE) for kv_dtype in KV_DTYPES)
    if engine == "graph":
        yield from (("streaming", kv_dtype, DEVICE) for kv_dtype in KV_DTYPES)
        return
    yield "baseline", AUTO, HOST
    if "static" in MODES:
        yield from (("static", AUTO, placement) for placement in (DEVICE, HOST))
    yield from ((mode, AUTO, DEVICE) for mode in ("streaming", "tova", "keydiff"))


def cells(name: str, engine: str, length: int) -> Iterator[Cell]:
    for mode, kv_dtype, placement in asked(engine):
        yield Cell(
            model=ModelRef(target=name),
            mode=mode,
            engine=engine,
            prompt_tokens=length,
            length=NEW,
            prefill_chunk=CHUNK if engine == "graph" else None if MODES[mode].policy.grows else 1024,
            synthetic=engine == "graph",
            streaming=STREAMING if MODES[mode].policy.parameters else None,
            kv_dtype=kv_dtype,
            kv_placement=placement,
        )


def measure(cell: Cell, target: LoadedModel) -> dict[str, Any]:
    gc.collect()
    torch.cuda.empty_cache()
    heard, began = PeaksHeard(), time.perf_counter()
    prompt_BT = torch.randint(1, 50_000, (1, cell.prompt_tokens), generator=torch.Generator().manual_seed(1))
    try:
        open_session(cell, target, None).generate(prompt_BT, cell.length, heard)
        heard.close()
        found: dict[str, Any] = {"tokens_per_s": heard.tokens_per_s(), "kv_bytes": heard.kept}
    except torch.OutOfMemoryError:
        heard.close()
        found = {"outcome": "oom", "phase": heard._now}
    except ModeUnsupported as error:
        return {"outcome": "unsupported", "words": str(error)[:200]}
    for phase in (Phase.PREFILL, Phase.DECODE):
        if phase.value in heard.peaks:
            allocated, reserved = heard.peaks[phase.value]
            found |= {f"peak_{phase.value}": allocated, f"reserved_{phase.value}": reserved}
    return {"outcome": "ok", **found, "wall_s": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="random:pythia-2.8b,random:llama-3.1-8b")
    parser.add_argument("--lengths", default="1000,8000,32000,131072")
    parser.add_argument("--engines", default="graph,eager")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--out", type=Path, help="Parquet")
    args = parser.parse_args()
    device, rows, began = torch.device("cuda", 0), list[dict[str, Any]](), time.perf_counter()
    names = args.models.split(",")
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
    for i, name in enumerate(names):
        target = load_model(name, ModelRef(target=name), device)
        until = began + args.seconds * (i + 1) / len(names)
        for length in (int(text) for text in args.lengths.split(",")):
            for engine in args.engines.split(","):
                for cell in cells(name, engine, length):
                    if time.perf_counter() > until:
                        continue
                    setting = (name, engine, cell.mode, cell.kv_dtype, cell.kv_placement, length)
                    keys = ("model", "engine", "mode", "kv_dtype", "kv_placement", "prompt_tokens")
                    rows.append({**dict(zip(keys, setting, strict=True)), **measure(cell, target)})
                    print(json.dumps(rows[-1]), flush=True)
        del target
        gc.collect()
        torch.cuda.empty_cache()
    if args.out:
        import polars

        polars.DataFrame(rows, infer_schema_length=None).write_parquet(args.out)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
