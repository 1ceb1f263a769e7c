"""Every causal language model that the installed transformers knows, as a tiny random model on a CPU.

    python -m tests.benchmarks.families [FAMILY ...]
    python -m tests.benchmarks.families --shapes [--names random:A,random:B] [--tokens 500,2000,8000] [--out FILE.parquet]

Each family in a child process of its own. Prints a line for each, the totals last; without names it writes the coverage
matrix that `oomline models` shows (workers/models/data/coverage.json), and the generated part of docs/models.md.
`--shapes`: real shapes on this machine's card instead, bytes of the cache and peak, counted and predicted; the table last.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.models_view import as_markdown
from tests.benchmarks.families import shapes
from tests.benchmarks.families.check import check
from tests.benchmarks.families.children import Answer, answers
from workers.models.coverage import (
    COLUMNS,
    Coverage,
    FamilyCoverage,
    causal_families,
    installed_families,
    installed_version,
    write_coverage,
)

PAGE = Path(__file__).parents[3] / "docs/models.md"
BEGIN, END = "<!-- coverage -->", "<!-- end of coverage -->"
_ASK = "tests.benchmarks.families.__main__:ask"
LIMIT_S, LIMIT_BYTES = 180.0, 4 * 2**30


@dataclasses.dataclass(frozen=True)
class Row:
    coverage: FamilyCoverage
    tracebacks: dict[str, str]
    seconds: float


def measure(names: Sequence[str], jobs: int) -> list[Row]:
    rows = []
    for answer in answers(names, _ASK, jobs=jobs, limit_s=LIMIT_S, limit_bytes=LIMIT_BYTES):
        rows.append(_row(answer))
        print(_line(rows[-1]), flush=True)
    return sorted(rows, key=lambda row: row.coverage.model_type)


def ask(name: str) -> Any:
    torch.set_num_threads(1)
    return dataclasses.asdict(check(name))


def _row(answer: Answer) -> Row:
    if answer.content is None:
        reasons = dict.fromkeys(COLUMNS, answer.failure)
        family = FamilyCoverage(
            model_type=answer.name, causal=answer.name in causal_families(), reasons=reasons
        )
        return Row(family, {"loads": answer.failure}, answer.seconds)
    return Row(FamilyCoverage(**answer.content["family"]), answer.content["tracebacks"], answer.seconds)


def _line(row: Row) -> str:
    found = row.coverage
    lacks = "; ".join(f"{'!! ' * (c in row.tracebacks)}{c}: {why}" for c, why in found.reasons.items())
    return f"{found.model_type} ({row.seconds:.1f} s) {found.architecture}: {lacks or 'all'}"


def totals(rows: Sequence[Row]) -> str:
    counts = [f"{column} {sum(row.coverage.has(column) for row in rows)}" for column in COLUMNS]
    return f"{len(rows)}: {', '.join(counts)}; with a traceback: {sum(bool(row.tracebacks) for row in rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("--names", default=",".join(shapes.SHAPES))
    parser.add_argument("--tokens", default="500,1000,2000,4000,8000")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/shapes.parquet"))
    arguments = parser.parse_args()
    if arguments.shapes:
        tokens = [int(count) for count in arguments.tokens.split(",")]
        shapes.run(arguments.names.split(","), tokens, arguments.dtype, arguments.out)
        return
    started = time.monotonic()
    rows = measure(arguments.families or installed_families(), arguments.jobs)
    for kind, causal in (("causal language models", True), ("multimodal models", False)):
        if some := [row for row in rows if row.coverage.causal is causal]:
            print(f"{kind}: {totals(some)}")
    print(f"took {time.monotonic() - started:.0f} s")
    if not arguments.families:
        coverage = Coverage(transformers=installed_version(), families=tuple(row.coverage for row in rows))
        write_coverage(coverage)
        _write_page(coverage)


def _write_page(coverage: Coverage) -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{as_markdown(coverage)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
