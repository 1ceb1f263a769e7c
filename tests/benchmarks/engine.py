"""What the graph engine does on this device, beside the roofline, the eager engine and the formula.

    python -m tests.benchmarks.engine [--model random:pythia-2.8b --draft random:pythia-160m] [--out FILE.parquet]
    python -m tests.benchmarks.engine --parts check              # kernels against their twins
    python -m tests.benchmarks.engine --parts streaming --model pocket --draft pocket-draft --dtype float32

Each row is printed as a JSON line as it comes, so that a killed run leaves what it had; the table comes last.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import engine_kernels
from workers.attempt import Phase
from workers.cell import Cell, ModelRef
from workers.engines import open_session
from workers.engines.graph.families import describe
from workers.engines.graph.weights import Weights
from workers.engines.session import Generated
from workers.models.load import LoadedModel, load_model
from workers.modes import Speculation, Streaming

PARTS = ("check", "streaming", "full", "spec", "eager", "replay", "long")
SINKS, WINDOW, PROMPT, GAMMA = 4, 512, 512, 4
SEED_TOKENS_PER_STEP, SEED_SPEEDUPS = (1.14, 1.61), (0.70, 1.03)


@dataclass
class TimesHeard:
    """A recorder: token times from the device where an engine gives them, else from progress; reserved memory."""

    times_s: list[float] = field(default_factory=list)
    host_s: list[tuple[int, float]] = field(default_factory=list)
    reserved: list[tuple[int, int]] = field(default_factory=list)
    prefill_started: float = 0.0
    ttft_s: float = 0.0

    def phase(self, phase: Phase) -> None:
        if phase is Phase.PREFILL:
            self.prefill_started = time.perf_counter()
        if phase is Phase.DECODE:
            self.ttft_s = time.perf_counter() - self.prefill_started

    def tokens(self, produced: int) -> None:
        self.host_s.append((produced, time.perf_counter()))
        if torch.cuda.is_available():
            self.reserved.append((produced, torch.cuda.memory_reserved()))

    def prompt(self, read: int) -> None: ...

    def token_times(self, first_index: int, times_s: list[float]) -> None:
        self.times_s += times_s

    def count_cache_with(self, kv_cache_bytes: Callable[[], int]) -> None: ...

    def tokens_per_s(self, first: int = 0, last: int = -1) -> float:
        """Between two tokens, as the device saw them."""
        if self.times_s:
            times = self.times_s
            last = len(times) - 1 if last == -1 else last
            return (last - first) / (times[last] - times[first])
        (n0, t0), (n1, t1) = self.host_s[0], self.host_s[-1]
        return (n1 - n0) / (t1 - t0)


@dataclass
class Bench:
    args: argparse.Namespace
    device: torch.device
    target: LoadedModel
    draft: LoadedModel
    weights: Weights
    rows: list[dict[str, Any]] = field(default_factory=list)
    bandwidth: float = 0.0  # bytes per second of a copy, read plus written

    def row(self, part: str, name: str, value: float | None, unit: str, **more: Any) -> None:
        row = {"part": part, "name": name, "value": value, "unit": unit, **more}
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def run(
        self, engine: str, mode: str, length: int, warm_up: bool = True, **fields: Any
    ) -> tuple[TimesHeard, Generated]:
        """One cell, warmed up at its own shape; an engine that times on the device sets itself up in any case."""
        cell = Cell(
            model=ModelRef(target=self.args.model, draft=self.args.draft, dtype=self.args.dtype),
            mode=mode,
            engine=engine,  # type: ignore[arg-type]
            length=length,
            streaming=None if mode.startswith("baseline") else Streaming(sinks=SINKS, window=WINDOW),
            **{"prompt_tokens": PROMPT, **fields},
        )
        session = open_session(cell, self.target, self.draft if cell.mode_spec.decoder.verifies else None)
        generator = torch.Generator().manual_seed(1)
        prompt = torch.randint(
            1, min(self.target.vocab_size, 50_000), (1, cell.prompt_tokens), generator=generator
        )
        started = time.perf_counter()
        if warm_up:
            session.warm_up(prompt)
        warm_up_s = time.perf_counter() - started
        heard = TimesHeard()
        generated = session.generate(prompt, length, heard)
        assert generated.ids_BT.shape[1] == length
        self.row("run", f"{engine} {mode} warm-up", warm_up_s, "s", ttft_s=heard.ttft_s)
        return heard, generated

    def bytes_per_token(self, context: int) -> float:
        """What a full cache adds to the weights: keys and values of `context` tokens."""
        w = self.weights
        return 2 * len(w.layers) * w.kv_heads * w.head_dim * w.embedding_VE.element_size() * context

    def weight_bytes(self) -> int:
        """Read for every token: all matrices, biases and norms of the layers, and the head; one embedding row."""
        base = self.target.model.base_model
        layers = sum(p.nbytes for p in base.layers.parameters())
        return layers + self.weights.head.weight_OI.nbytes

    def roofline(self, more_bytes: float = 0.0) -> float:
        return self.bandwidth / (self.weight_bytes() + more_bytes)


def seconds(function: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median of single calls."""
    times = []
    for _ in range(repeats + 2):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def bandwidth(bench: Bench) -> None:
    size = 2**31 if bench.device.type == "cuda" else 2**27
    source = torch.randn(size // 4, device=bench.device)
    sink = torch.empty_like(source)
    bench.bandwidth = 2 * source.nbytes / seconds(lambda: sink.copy_(source), 15, bench.device)
    bench.row("bandwidth", "copy, read + written", bench.bandwidth / 1e12, "TB/s")
    reading = source.nbytes / seconds(lambda: torch.sum(source), 15, bench.device)
    bench.row("bandwidth", "sum, read only", reading / 1e12, "TB/s")
    bench.row("bandwidth", "weights read per token", bench.weight_bytes() / 1e9, "GB")
    bench.row("bandwidth", "weight-read roofline", bench.roofline(), "tok/s")


def streaming(bench: Bench) -> float:
    """tok/s of plain streaming, the yardstick of the other parts."""
    heard, _ = bench.run("graph", "streaming", bench.args.tokens)
    speed = heard.tokens_per_s()
    gaps = sorted(b - a for a, b in zip(heard.times_s, heard.times_s[1:], strict=False))
    bench.row(
        "streaming",
        "graph streaming",
        speed,
        "tok/s",
        p50_s=gaps[len(gaps) // 2],
        p99_s=gaps[-len(gaps) // 100],
    )
    bench.row("streaming", "graph streaming over roofline", speed / bench.roofline(), "ratio")
    return speed


def full(bench: Bench) -> None:
    context, tokens = bench.args.context, min(600, bench.args.tokens)
    heard, _ = bench.run("graph", "baseline", tokens, prompt_tokens=context - tokens // 2)
    speed = heard.tokens_per_s()
    own = bench.roofline(bench.bytes_per_token(context))
    bench.row("full", f"graph baseline at {context} tokens", speed, "tok/s", roofline=own)
    bench.row("full", f"full KV at {context} over its own roofline", speed / own, "ratio")


def spec(bench: Bench, plain: float) -> None:
    for gamma in map(int, bench.args.gammas.split(",")):
        _spec(bench, plain, gamma)


def _spec(bench: Bench, plain: float, gamma: int) -> None:
    """Everything of the formula from timings alone: c, v, o; then the speed-up it predicts beside the measured one."""
    rate, tokens = 0.8, bench.args.tokens * 2
    heard, generated = bench.run(
        "graph", "streaming+spec", tokens, speculation=Speculation(gamma=gamma, acceptance=rate)
    )
    assert generated.rounds
    assert generated.draft_step_s
    assert generated.verify_step_s
    step = 1 / plain
    round_s = heard.times_s[-1] / generated.rounds
    c, v = generated.draft_step_s / step, generated.verify_step_s / step
    o = round_s / step - gamma * c - v
    expected = (1 - rate ** (gamma + 1)) / (1 - rate)
    achieved = (tokens - 1) / generated.rounds
    speedup, formula = heard.tokens_per_s() / plain, expected / (gamma * c + v + o)
    bench.row("spec", f"speed-up at {rate}, gamma {gamma}", speedup, "ratio")
    bench.row(
        "spec",
        "formula's speed-up",
        formula,
        "ratio",
        c=c,
        v=v,
        o=o,
        tokens_per_round=achieved,
        expected=expected,
    )
    bench.row("spec", "measured over formula", speedup / formula, "ratio")


def eager(bench: Bench, plain: float) -> None:
    for mode in ("streaming", "baseline"):
        heard, _ = bench.run("eager", mode, bench.args.eager_tokens)
        speed = heard.tokens_per_s()
        bench.row("eager", f"eager {mode}", speed, "tok/s")
        bench.row("eager", f"graph streaming over eager {mode}", plain / speed, "ratio")


def replay(bench: Bench) -> None:
    """The seed's table: what a speculative mode gains at the tokens per step the seed had."""
    for engine, tokens in (("graph", bench.args.tokens), ("eager", bench.args.eager_tokens)):
        for policy in ("baseline", "streaming"):
            plain = bench.run(engine, policy, tokens)[0].tokens_per_s()
            for per_step, seed in zip(SEED_TOKENS_PER_STEP, SEED_SPEEDUPS, strict=True):
                speculation = Speculation(gamma=GAMMA, acceptance=rate_of(per_step, GAMMA))
                heard, generated = bench.run(engine, f"{policy}+spec", tokens, speculation=speculation)
                achieved = (tokens - 1) / (generated.rounds or 1)
                bench.row(
                    "replay", f"{engine} {policy}+spec at {per_step} tokens per step", heard.tokens_per_s() / plain,
                    "ratio", seed=seed, tokens_per_step=achieved, plain_tokens_per_s=plain,
                )  # fmt: skip


def rate_of(tokens_per_step: float, gamma: int) -> float:
    """The acceptance whose rounds give so many tokens: sum of rate^k, k = 0 .. gamma."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if sum(middle**k for k in range(gamma + 1)) < tokens_per_step else (low, middle)
        )
    return high


def long(bench: Bench) -> None:
    """The first and the last tokens of a long run, and what the device reserved between them. `--reach prefill`
    reads all but the last tokens as a prompt, in the ring's own chunks: minutes instead of an hour."""
    tokens = bench.args.long
    part = min(10_000, tokens // 4)
    if bench.args.reach == "decode":
        heard, _ = bench.run("graph", "streaming", tokens)
        first, last = heard.tokens_per_s(0, part), heard.tokens_per_s(tokens - 1 - part, tokens - 1)
        sizes = [size for known, size in heard.reserved if known >= 1000]
    else:
        first = bench.run("graph", "streaming", part)[0].tokens_per_s()
        with Reserved() as reserved:
            heard, _ = bench.run("graph", "streaming", part, prompt_tokens=tokens - part, warm_up=False)
        last = heard.tokens_per_s()
        sizes = reserved.since_prefill(heard)
        bench.row("long", f"prefill of {tokens - part} tokens", heard.ttft_s, "s")
    bench.row("long", f"first {part} of {tokens} tokens", first, "tok/s")
    name = f"last {part} of {tokens} over the first, read by {bench.args.reach}"
    bench.row("long", name, last / first, "ratio")
    if sizes:
        growth = max(sizes) - sizes[0]
        bench.row("long", f"growth of reserved memory to token {tokens}", growth, "bytes")


class Reserved:
    """Memory that torch's allocator reserved, looked at every 10 ms while the context lasts."""

    def __enter__(self) -> "Reserved":
        self._seen: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while torch.cuda.is_available() and not self._over.wait(0.01):
            self._seen.append((time.perf_counter(), torch.cuda.memory_reserved()))

    def since_prefill(self, heard: TimesHeard, skip_s: float = 0.5) -> list[int]:
        """From about token 1,000 of the prompt on."""
        return [size for at_s, size in self._seen if at_s > heard.prefill_started + skip_s]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random:pythia-2.8b")
    parser.add_argument("--draft", default="random:pythia-160m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--parts", default="streaming,full,spec,eager,replay,long", help=", ".join(PARTS))
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--gammas", default=str(GAMMA), help="drafted tokens a round, of the part spec")
    parser.add_argument("--eager-tokens", type=int, default=96)
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--long", type=int, default=1_000_000)
    parser.add_argument("--reach", choices=("decode", "prefill"), default="prefill", help="of the part long")
    parser.add_argument("--out", type=Path, help="Parquet")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}: {', '.join(PARTS)}")

    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(
        json.dumps({"device": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}),
        flush=True,
    )
    if "check" in parts:
        engine_kernels.check(device)
    ref = ModelRef(target=args.model, draft=args.draft, dtype=args.dtype)
    target, draft = load_model(args.model, ref, device), load_model(args.draft, ref, device, seed=1)
    bench = Bench(args, device, target, draft, describe(target.model))
    bench.row("load", "target and draft", target.load_s + draft.load_s, "s")
    bandwidth(bench)
    plain = streaming(bench) if set(parts) & {"streaming", "spec", "eager"} else 0.0
    later = {
        "full": full,
        "spec": lambda b: spec(b, plain),
        "eager": lambda b: eager(b, plain),
        "replay": replay,
        "long": long,
    }
    for part in parts:
        if part in later:
            later[part](bench)
    bench.row("total", "time of this benchmark", time.perf_counter() - started, "s")
    if args.out:
        import polars

        polars.DataFrame(
            [
                {**{k: row[k] for k in ("part", "name", "value", "unit")}, "more": json.dumps(row)}
                for row in bench.rows
            ]
        ).write_parquet(args.out)
    for row in bench.rows:
        print(f"{row['part']:<10} {row['name']:<52} {row['value']:>14,.4g} {row['unit']}")


if __name__ == "__main__":
    main()
