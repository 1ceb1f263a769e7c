"""Damaged configs through `plan`: each ends in a prediction, a reason or a refusal, in little time and memory.

    python -m tests.benchmarks.config_fuzz [COUNT] [SEED]

Each config is planned in a child process of its own, for a card of 80 GiB, the rehearsal included.
"""

import collections
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import transformers

import workers.rehearsal.eager  # noqa: F401 before the fork, so that every child has it
from orchestrator.forecast import forecast
from orchestrator.preflight import refuse_bad_input
from orchestrator.spec import SpecError, parse_spec
from tests.benchmarks.families.children import answers
from tests.orchestrator.mutated_configs import mutated, write

GiB = 2**30
LIMIT_S, LIMIT_BYTES = 60.0, 4 * GiB


def outcome_of(name: str) -> str:
    """`predicted`, `no prediction` or `refused`; anything else is a fault of `plan`."""
    spec = parse_spec(
        {"name": "fuzz", "models": [{"target": name}], "modes": ["baseline"], "budgets": ["8GiB"]}
    )
    try:
        refuse_bad_input(spec)
    except SpecError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"
    outlook = forecast(spec, "H100:80GiB")
    if any("\n" in reason for _, reason in outlook.unknown):
        return "a reason of several lines"
    return "no prediction" if outlook.unknown else "predicted"


def ask(name: str) -> Any:
    before_s = time.process_time()
    try:
        outcome = outcome_of(name)
    except Exception as error:
        outcome = f"traceback: {type(error).__name__}: {error}"[:300]
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [outcome, time.process_time() - before_s, peak_bytes]


def main(count: int, seed: int) -> None:
    transformers.logging.set_verbosity_error()
    outcomes: collections.Counter[str] = collections.Counter()
    slowest_s = processor_s = peak = 0.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        names = [write(Path(folder) / str(n), text) for n, text in enumerate(mutated(count, seed))]
        for found in answers(
            names, "tests.benchmarks.config_fuzz:ask", jobs=2, limit_s=LIMIT_S, limit_bytes=LIMIT_BYTES
        ):
            outcome, used_s, used_bytes = found.content or (found.failure, found.seconds, 0)
            outcomes[outcome] += 1
            slowest_s = max(slowest_s, found.seconds)
            processor_s, peak = max(processor_s, used_s), max(peak, used_bytes)
            if outcome not in ("predicted", "no prediction", "refused") or found.seconds > 10:
                print(
                    f"{outcome}, {found.seconds:.1f} s: {Path(found.name.removeprefix('random:')).name}",
                    flush=True,
                )
            if sum(outcomes.values()) % 50 == 0:
                print(f"{sum(outcomes.values())} configs in {time.monotonic() - began:.0f} s", flush=True)
    told = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
    print(
        f"{count} configs in {time.monotonic() - began:.0f} s: {told}; slowest {slowest_s:.1f} s ({processor_s:.1f} s of "
        f"a processor), peak {peak / GiB:.2f} GiB"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
