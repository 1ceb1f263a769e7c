"""Probes per bracket of the boundary search, on synthetic devices: `python -m tests.benchmarks.search`.

A probe costs a run in a fresh process, so the number of probes is what a bracket costs. Each case draws boundaries and
predictions; the seeds are fixed. Printed: probes beyond the confirmations (`2 * confirm`), median and worst, and how many
of them a plain bisection of what the first failure left open would not have needed, worst.

`--against FILE`: another version's `orchestrator/boundary/search.py`, for figures before and after. `--out FILE`: Parquet.
"""

import argparse
import importlib.util
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl

from orchestrator.boundary import search as present

_SEARCHES, _CONFIRM, _RESOLUTION, _CEILING = 2_000, 2, 64, 1_000_000
_CHUNK = 512
#: A failed run's account: (the largest value it passed, the smallest that fails as it did).
Account = tuple[int | None, int | None]


@dataclass(frozen=True)
class Case:
    """`factors`: the prediction over the boundary. `account`: of a failed run at `value` on a card that ends at `threshold`."""

    name: str
    factors: tuple[float, float]
    account: Callable[[random.Random, int, int], Account]


def _exact(_: random.Random, threshold: int, value: int) -> Account:
    return threshold, None


def _chunked(_: random.Random, threshold: int, value: int) -> Account:
    whole = threshold // _CHUNK * _CHUNK
    return whole, whole + _CHUNK


def _too_far(rng: random.Random, threshold: int, value: int) -> Account:
    """Chunks of 16 pass beyond the boundary: the pass behind the prompt needs more memory than they do."""
    if value - threshold <= 100:
        return (value - 1) // 16 * 16, value
    whole = (threshold + 100) // 16 * 16
    return whole, whole + 32


def _silent(_: random.Random, threshold: int, value: int) -> Account:
    return None, None


def _wrong(rng: random.Random, threshold: int, value: int) -> Account:
    return rng.randrange(value), None


CASES = tuple(
    Case(f"{account_name}; prediction {words}", factors, account)
    for account_name, account in (
        ("token by token", _exact),
        (f"chunks of {_CHUNK}", _chunked),
        ("chunks of 16 that pass beyond the boundary", _too_far),
        ("no account", _silent),
        ("wrong accounts", _wrong),
    )
    for words, factors in (
        ("within 3 %", (0.97, 1.03)),
        ("within 10 %", (0.9, 1.1)),
        ("wrong by up to 10 times", (0.1, 10.0)),
    )
)


def measure(module: ModuleType, case: Case) -> dict[str, Any]:
    rng = random.Random(case.name)
    beyond, above = [], []
    for _ in range(_SEARCHES):
        threshold = round(10 ** rng.uniform(3, 5))
        low, high = case.factors
        predicted = round(threshold * low * (high / low) ** rng.random())
        runs = _drive(module, case, rng, threshold, predicted)
        beyond.append(len(runs) - 2 * _CONFIRM)
        above.append(len(runs) - _plain(runs, threshold))
    return {
        "case": case.name,
        "median": statistics.median(beyond),
        "p95": sorted(beyond)[int(0.95 * _SEARCHES)],
        "worst": max(beyond),
        "above_bisection_worst": max(above),
    }


def _drive(module: ModuleType, case: Case, rng: random.Random, threshold: int, predicted: int) -> list[int]:
    search = module.Search(
        predicted=predicted,
        floor=max(predicted // 16, _RESOLUTION),
        resolution=_RESOLUTION,
        max_value=_CEILING,
        confirm=_CONFIRM,
    )
    runs = []
    while not search.done:
        (probe,) = search.next_probes(1)
        runs.append(probe.value)
        passed = probe.value <= threshold
        account = (None, None) if passed else case.account(rng, threshold, probe.value)
        search.observe(probe, passed, *account)
    return runs


def _plain(runs: list[int], threshold: int) -> int:
    """Runs up to the first failure, a bisection of what that left open, and the confirmations."""
    values = list(dict.fromkeys(runs))
    first = next(index for index, value in enumerate(values) if value > threshold)
    width = -(-(values[first] - max(values[:first], default=0)) // _RESOLUTION)
    return first + 1 + max(width - 1, 0).bit_length() + 2 * (_CONFIRM - 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    modules = {path.name: _load(path) for path in arguments.against} | {"present": present}
    rows = [{"search": name, **measure(module, case)} for case in CASES for name, module in modules.items()]
    table = pl.DataFrame(rows)
    with pl.Config(tbl_rows=-1, fmt_str_lengths=90, tbl_width_chars=200, tbl_hide_dataframe_shape=True):
        print(table)
    if arguments.out is not None:
        table.write_parquet(arguments.out)


def _load(path: Path) -> ModuleType:
    """A version of the module from a file. Its dataclasses look their own module up by name."""
    spec = importlib.util.spec_from_file_location(f"search_of_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
