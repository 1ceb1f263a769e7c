"""One model on one card, and cut over several of one host: speed, boundary, and a model that one card cannot hold.

    python -m tests.benchmarks.devices [--model random:llama-3.1-8b] [--devices 1,2] [--budget 24GiB] [--large random:llama-3.1-70b]
    python -m tests.benchmarks.devices --cpu --model random:pythia-14m --devices 1,2 --parts speed     # gloo, on this machine's CPU

Drives the cards without Ray: a process for each, joined by NCCL. Parts: speed (with the time of its
kernels), boundary, large. Each row is printed as a JSON line as it comes, so that a killed run leaves what it had; the table
comes last. A part that fails prints its traceback, and the others go on.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch

from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.memory import largest_by_formula
from orchestrator.predict.shard import shape_of_shard
from orchestrator.spec import parse_bytes
from tests.benchmarks.engine import TimesHeard
from tests.benchmarks.ranks import Rank, measure
from workers.attempt import Device
from workers.cell import Cell, ModelRef
from workers.engines import open_session
from workers.models.load import LoadedModel, load_model

PARTS = ("speed", "boundary", "large")
PROMPT, NEW, CHUNK = 512, 400, 512
#: Of a budget's boundary this much more is asked for, so that memory ends first.
BEYOND = 1.4
REPLAYS = 20
#: Of a card, what the largest model may take: the rest is for libraries, caches and a step.
SHARE_OF_CARD = 0.93


def run_rank(index: int, count: int, args: argparse.Namespace, meet: Path, sender: Any) -> None:
    if args.cpu:
        torch.set_num_threads(1)
    rank = Rank(index, count, args, sender.send)
    wanted = args.parts.split(",")
    try:
        rank.join(meet)
        if {"speed", "boundary"} & set(wanted):
            _tried(rank, "model", lambda: one_model(rank, wanted))
        if "large" in wanted and not args.cpu:
            _tried(rank, "large", lambda: large(rank))
    except Exception:
        rank.row("all", "failed", None, "", error=traceback.format_exc())
    sender.send(None)
    time.sleep(1.0)
    os._exit(0)  # a communicator that a captured graph still names is not taken down


def _tried(rank: Rank, part: str, function: Callable[[], None]) -> None:
    started = time.perf_counter()
    try:
        function()
    except Exception:
        rank.row(part, "failed", None, "", error=traceback.format_exc())
    rank.row(part, "took", time.perf_counter() - started, "s")


def one_model(rank: Rank, wanted: list[str]) -> None:
    loaded = _load(rank, rank.args.model)
    if "speed" in wanted:
        how = "alone" if rank.count == 1 else "gloo" if rank.args.cpu else "NCCL"
        _tried(rank, "speed", lambda: speed(rank, loaded, how))
    if "boundary" in wanted and not rank.args.cpu:
        _tried(rank, "boundary", lambda: boundary(rank, loaded))
    if not rank.args.cpu:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _load(rank: Rank, name: str) -> LoadedModel:
    loaded = load_model(name, ModelRef(target=name, dtype=rank.args.dtype), rank.device, 0, rank.shard)
    if not rank.args.cpu:
        torch.cuda.empty_cache()
    rank.row("load", name, loaded.load_s, "s", weights_bytes=loaded.weights_bytes)
    return loaded


def _cell(rank: Rank, name: str, **fields: Any) -> Cell:
    model = ModelRef(target=name, dtype=rank.args.dtype)
    return Cell(
        **{
            "model": model,
            "mode": "baseline",
            "engine": "graph",
            "prompt_tokens": PROMPT,
            "length": NEW,
            **fields,
        }
    )


def _prompt(loaded: LoadedModel, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, min(loaded.vocab_size, 50_000), (1, tokens), generator=generator)


def speed(rank: Rank, loaded: LoadedModel, how: str, name: str | None = None) -> None:
    """Decodes at batch 1; the hash of what was chosen, which is the same in all ranks."""
    cell = _cell(rank, name or rank.args.model)
    session = open_session(cell, loaded, None)
    prompt_BT = _prompt(loaded, cell.prompt_tokens)
    started = time.perf_counter()
    session.warm_up(prompt_BT)
    warm_up_s = time.perf_counter() - started
    heard = TimesHeard()
    generated = session.generate(prompt_BT, cell.length, heard)
    chosen = hashlib.sha256(generated.ids_BT.numpy().tobytes()).hexdigest()[:12]
    rank.row(
        "speed" if name is None else "large", f"decode, {how}", heard.tokens_per_s(first=10), "tok/s",
        chosen=chosen, ttft_s=heard.ttft_s, warm_up_s=warm_up_s, weights_bytes=loaded.weights_bytes, **_memory(rank),
    )  # fmt: skip
    if not rank.args.cpu:
        _kernels(rank, session, how)


def _kernels(rank: Rank, session: Any, how: str) -> None:
    """Microseconds of a step by kernel; those that are set up while others run count their waiting too."""
    run = session._execution
    run.state.count.fill_(1)
    run.state.head.fill_(PROMPT)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(REPLAYS):
            run.stages[0]()
        torch.cuda.synchronize()
    for event in sorted(profile.key_averages(), key=lambda event: -event.device_time_total)[:14]:
        rank.row(
            "kernels",
            f"{how}: {event.key[:60]}",
            event.device_time_total / REPLAYS,
            "us",
            calls=event.count / REPLAYS,
        )


def _memory(rank: Rank) -> dict[str, int]:
    if rank.args.cpu:
        return {}
    peak_reserved = torch.cuda.max_memory_reserved()
    outside = rank.used_bytes() - torch.cuda.memory_reserved()
    return {"peak_device_bytes": outside + peak_reserved, "peak_reserved_bytes": peak_reserved}


class HeardUntilFull(TimesHeard):
    """Notes how far a prompt came, and keeps the emulated card beside the context."""

    def __init__(self, follow: Callable[[], None]) -> None:
        super().__init__()
        self.read, self.follow = 0, follow

    def prompt(self, read: int) -> None:
        self.read = read
        self.follow()


def boundary(rank: Rank, loaded: LoadedModel) -> None:
    """The longest prompt, in passes of 512 tokens, that an emulated card of the budget takes, beside its prediction."""
    from workers.host.child.cuda import EmulatedCard
    from workers.meters.nvml import Card

    budget = parse_bytes(rank.args.budget)
    assert budget is not None
    memory = Card.visible().memory()
    name = rank.args.model
    shape = shape_of_shard(name, ModelRef(target=name, dtype=rank.args.dtype), "graph", rank.count)
    card = Device(
        kind=torch.cuda.get_device_name(0), uuid="card", node="here", total_bytes=memory.total_bytes, reserve_bytes=memory.reserve_bytes
    )  # fmt: skip
    base = _cell(rank, name, budget=budget, prefill_chunk=CHUNK, length=1, synthetic=True)

    def at(tokens: int) -> Cell:
        return dataclasses.replace(base, prompt_tokens=tokens)

    predicted = {
        what: largest_by_formula(at, shape, None, DeviceProfile.of(card, rank.context_bytes + more))
        for what, more in (("without NCCL", 0), ("with NCCL", rank.nccl_bytes))
    }
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    asked = at(int(BEYOND * (predicted["without NCCL"] or 1)))
    emulated = EmulatedCard(budget, memory.reserve_bytes, 0)
    heard = HeardUntilFull(emulated.follow)
    session = open_session(asked, loaded, None)
    try:
        session.generate(_prompt(loaded, asked.prompt_tokens), 1, heard)
        outcome = "did not run out"
    except torch.OutOfMemoryError as error:
        outcome = str(error).splitlines()[0][:200]
    for what, tokens in predicted.items():
        error_pct = None if not tokens or not heard.read else 100 * (tokens / heard.read - 1)
        rank.row("boundary", f"{rank.args.budget}, predicted {what}", tokens, "tokens", error_pct=error_pct)
    rank.row(
        "boundary", f"{rank.args.budget}, measured", heard.read, "tokens", outcome=outcome, **_memory(rank)
    )


def large(rank: Rank) -> None:
    """As many layers as two such cards hold: one card ends while it loads."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        name = _cut_to_two_cards(rank, Path(folder))
        try:
            loaded = _load(rank, name)
        except torch.OutOfMemoryError as error:
            rank.row("large", "oom_load", None, "", error=str(error).splitlines()[0][:200], **_memory(rank))
            return
        speed(rank, loaded, "NCCL" if rank.count > 1 else "alone", name)


def _cut_to_two_cards(rank: Rank, folder: Path) -> str:
    from workers.models.config import read_config

    name = rank.args.large
    ref = ModelRef(target=name, dtype=rank.args.dtype)
    config = read_config(name, ref).to_dict()
    whole = shape_of_shard(name, ref, "graph", 2).weights_bytes(rank.args.dtype) or 0
    ends = 1.5 * config["vocab_size"] * config["hidden_size"] * 2  # embeddings, half of the output matrix
    layer = (whole - ends) / config["num_hidden_layers"]
    total = torch.cuda.mem_get_info()[1]
    most = int((SHARE_OF_CARD * total - ends) / layer)
    on_one_card = int((total - 1.33 * ends) / (2 * layer))
    layers = most if on_one_card >= config["num_hidden_layers"] else min(most, config["num_hidden_layers"])
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    rank.row("large", f"layers of {name}", layers, "layers", of=config["num_hidden_layers"])
    return f"random:{folder}"


def summary(rows: list[dict[str, Any]]) -> None:
    """The last table: what rank 0 measured, the larger of the ranks' memory, and the speed beside one card's."""
    frame = pl.DataFrame(rows, infer_schema_length=None)
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_width_chars=220, fmt_str_lengths=120, tbl_hide_dataframe_shape=True
    ):
        shown = [
            c
            for c in (
                "devices",
                "card",
                "part",
                "name",
                "value",
                "unit",
                "error_pct",
                "chosen",
                "peak_device_bytes",
                "weights_bytes",
            )
            if c in frame.columns
        ]
        print(frame.filter(pl.col("rank") == 0).select(shown))
        decoded = frame.filter(pl.col("name").str.starts_with("decode"))
        if len(decoded):
            largest = [pl.col(c).max() for c in ("peak_device_bytes",) if c in frame.columns]
            told = decoded.group_by("part", "devices", "name", maintain_order=True).agg(
                pl.col("value").min().alias("tok/s"), pl.col("chosen").n_unique().alias("different outputs"), *largest
            )  # fmt: skip
            alone = told.filter((pl.col("devices") == 1) & (pl.col("part") == "speed"))
            if len(alone):
                told = told.with_columns((pl.col("tok/s") / alone["tok/s"][0]).alias("times one card"))
            print(told)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random:llama-3.1-8b")
    parser.add_argument("--large", default="random:llama-3.1-70b")
    parser.add_argument("--devices", default="1,2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--budget", default="24GiB", help="of each card, for the boundary")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--cpu", action="store_true", help="gloo on this machine's CPU: speed alone")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for all of it")
    parser.add_argument("--out", type=Path, help="Parquet file of all rows")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    until = time.monotonic() + args.limit
    for count in map(int, args.devices.split(",")):
        rows += measure(run_rank, args, count, until)
    if args.out:
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(args.out)
    summary(rows)


if __name__ == "__main__":
    main()
