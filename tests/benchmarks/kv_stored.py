"""Keys and values in fewer bits, graph engine, on a GPU: kernels against their twins, lossless speculation, speed, memory against
the formula, boundary.

    python -m tests.benchmarks.kv_stored [--models random:pythia-2.8b,random:llama-3.1-8b] [--tokens 32000] [--out FILE.parquet]

Each row is printed as a JSON line as it comes, so that a killed run leaves what it had; the table comes last.
"""

import argparse
import gc
import json
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.memory import cache_bytes, largest_fitting, predict
from orchestrator.predict.shape import shape_for
from tests.benchmarks.engine import TimesHeard
from tests.workers.engines.graph import packed_twins, tiny
from tests.workers.engines.heard import Heard
from workers.attempt import Device
from workers.cell import Cell, ModelRef
from workers.engines import open_session
from workers.engines.graph.families import describe
from workers.engines.shared.slots import RingSlots
from workers.kv_dtype import KV_DTYPES, STORED_AS
from workers.models.load import LoadedModel, load_model
from workers.modes import Speculation
from workers.units import GiB

NEW, CHUNK = 96, 2048


@dataclass
class Rows:
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, part: str, name: str, value: float | None, unit: str, **more: Any) -> None:
        self.found.append({"part": part, "name": name, "value": value, "unit": unit, **more})
        print(json.dumps(self.found[-1]), flush=True)

    def check(self, what: str, actual: torch.Tensor, expected: torch.Tensor, limit: float) -> None:
        gap = float((actual.double() - expected.double()).norm() / expected.double().norm())
        self.add("exact", what, gap, "relative", limit=limit, passed=gap <= limit)


def exactness(rows: Rows, device: torch.device) -> None:
    """In float32 and bfloat16, heads alone and in groups, blocks and rings that wrap."""
    counts = (64, 60, 5, 70, 130, 200, 3)
    for stored in STORED_AS.values():
        for family, ring in (("llama", None), ("neox", RingSlots(4, 100, 127)), ("neox", None)):
            for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
                weights = describe(tiny.build(family, dtype, layers=1).model.to(device))
                packed_twins.alike(rows.check, weights, stored, ring, limit, counts)


def lossless(rows: Rows, device: torch.device) -> None:
    """In bfloat16, speculation gives the tokens of its plain twin."""
    for family in ("neox", "llama"):
        models = [
            tiny.build(family, torch.bfloat16),
            tiny.build(family, torch.bfloat16, layers=1, seed=2),
        ]
        for loaded in models:
            loaded.model.to(device)
        for mode in ("baseline", "streaming"):
            for name in STORED_AS:
                plain = replace(tiny.cell(mode, window=100), kv_dtype=name)
                drafted = replace(
                    tiny.cell(f"{mode}+spec", window=100, speculation=Speculation(gamma=4, acceptance=0.8)),
                    kv_dtype=name,
                )
                expected_BT, found_BT = (
                    open_session(asked, models[0], draft).generate(tiny.tokens(9), 600, Heard()).ids_BT
                    for asked, draft in ((plain, None), (drafted, models[1]))
                )
                same = int((expected_BT == found_BT).int().cumprod(1).sum())
                rows.add("lossless", f"{family} {mode} {name}", same, "tokens of 600", passed=same == 600)


def of_model(rows: Rows, name: str, tokens: int, card: int, device: torch.device) -> None:
    """Speed and memory at one length, and the boundary on an emulated card."""
    ref = ModelRef(target=name)
    target = load_model(name, ref, device)
    shape, profile = shape_for(name, ref), _profile()
    speeds: dict[str, float] = {}
    for kv_dtype in KV_DTYPES:
        cell = Cell(
            model=ref,
            mode="baseline",
            engine="graph",
            prompt_tokens=tokens,
            length=NEW,
            prefill_chunk=CHUNK,
            synthetic=True,
            kv_dtype=kv_dtype,
        )
        try:
            heard, held = _run(cell, target)
        except torch.OutOfMemoryError as error:
            rows.add("memory", f"{name} {kv_dtype} at {tokens}", None, "bytes", error=str(error)[:200])
            continue
        speeds[kv_dtype] = heard.tokens_per_s()
        predicted = predict(cell, shape, None, profile, loaded=True)
        formula = cache_bytes(cell, shape, tokens + NEW - 1)
        rows.add(
            "speed",
            f"{name} {kv_dtype} at {tokens}",
            speeds[kv_dtype],
            "tok/s",
            token_us=1e6 / speeds[kv_dtype],
            of_auto=speeds[kv_dtype] / speeds["auto"],
            bytes_per_token=cache_bytes(cell, shape, 2**20) / 2**20,
        )
        rows.add(
            "memory", f"{name} {kv_dtype} at {tokens}", held["kv"], "bytes", formula=formula, passed=held["kv"] == formula
        )  # fmt: skip
        peak = predicted.peak_bytes - profile.context_bytes - profile.runtime_bytes
        rows.add(
            "peak",
            f"{name} {kv_dtype}",
            held["reserved"],
            "bytes",
            allocated=held["allocated"],
            predicted=peak,
        )
        _boundary(rows, cell, target, shape, profile, card)
        gc.collect()
        torch.cuda.empty_cache()
    del target
    gc.collect()
    torch.cuda.empty_cache()


def _boundary(
    rows: Rows, cell: Cell, target: LoadedModel, shape: Any, profile: DeviceProfile, card: int
) -> None:
    """The longest prompt, to 1/64 of the predicted one, with torch held to what an emulated card leaves it."""
    emulated = replace(cell, budget=card)

    def at(prompt: int) -> Cell:
        return replace(emulated, prompt_tokens=prompt)

    predicted = largest_fitting(at, shape, None, profile)
    assert predicted is not None
    room = profile.capacity(card) - profile.context_bytes - profile.runtime_bytes
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total))
    low, high, step = 0, 0, max(predicted // 64, 64)
    try:
        value = predicted
        for _ in range(6):
            if value <= 0 or (high and value >= high) or value <= low:
                break
            fits = _fits(at(value), target)
            low, high = (value, high) if fits else (low, value)
            value = value + step if fits else value - step
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    rows.add("boundary", f"{cell.model.target} {cell.kv_dtype} at {card // GiB} GiB", low or None, "tokens", first_oom=high or None, predicted=predicted)  # fmt: skip


def _fits(cell: Cell, target: LoadedModel) -> bool:
    try:
        _run(replace(cell, length=4), target)
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return True


def _run(cell: Cell, target: LoadedModel) -> tuple[TimesHeard, dict[str, int]]:
    session = open_session(cell, target, None)
    prompt_BT = torch.randint(1, 50_000, (1, cell.prompt_tokens), generator=torch.Generator().manual_seed(1))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    heard = TimesHeard()
    session.generate(prompt_BT, cell.length, heard)
    held = {
        "kv": session._execution.nbytes(),  # type: ignore[attr-defined]
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }
    return heard, held


def _profile() -> DeviceProfile:
    total = torch.cuda.get_device_properties(0).total_memory
    return DeviceProfile.of(
        Device(
            kind=torch.cuda.get_device_name(),
            uuid="0",
            node="n",
            total_bytes=total,
            reserve_bytes=480 * 2**20,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="random:pythia-2.8b,random:llama-3.1-8b")
    parser.add_argument("--tokens", type=int, default=32_000)
    parser.add_argument("--card", type=int, nargs="*", default=[16, 24], help="GiB, for each model")
    parser.add_argument("--parts", default="lossless,models,exact")
    parser.add_argument("--out", type=Path, help="Parquet")
    args = parser.parse_args()
    device, rows, started = torch.device("cuda"), Rows(), time.perf_counter()
    rows.add("device", torch.cuda.get_device_name(), None, "", torch=torch.__version__)
    jobs: dict[str, list[Any]] = {
        "lossless": [lambda: lossless(rows, device)],
        "models": [
            lambda name=name, card=card: of_model(rows, name, args.tokens, card * GiB, device)
            for name, card in zip(args.models.split(","), args.card, strict=False)
        ],
        "exact": [lambda: exactness(rows, device)],
    }
    for part in args.parts.split(","):
        for job in jobs[part]:
            try:
                with torch.inference_mode():
                    job()
            except Exception:  # the other parts still tell something
                traceback.print_exc()
                rows.add("failed", part, None, "", error=traceback.format_exc()[-1500:])
    rows.add("total", "time of this benchmark", time.perf_counter() - started, "s")
    if args.out:
        import polars

        columns = ("part", "name", "value", "unit")
        polars.DataFrame(
            [{**{k: row[k] for k in columns}, "more": json.dumps(row)} for row in rows.found]
        ).write_parquet(args.out)
    for row in rows.found:
        print(row["part"], row["name"], row["value"], row["unit"], row.get("passed", ""))


if __name__ == "__main__":
    main()
