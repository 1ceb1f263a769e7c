"""Damaged configs through `plan`: each ends in a prediction, a reason or a refusal, in little time and memory.

python -m tests.benchmarks.config_fuzz [COUNT] [SEED]
"""

import collections
import resource
import sys
import tempfile
import time
from pathlib import Path

import transformers

from orchestrator.forecast import forecast
from orchestrator.preflight import refuse_bad_input
from orchestrator.spec import parse_spec
from orchestrator.spec_error import SpecError
from tests.orchestrator.mutated_configs import mutated, write

GiB = 2**30


def outcome_of(name: str) -> str:
    spec = parse_spec(
        {"name": "fuzz", "models": [{"target": name}], "modes": ["baseline"], "budgets": ["8GiB"]}
    )
    try:
        refuse_bad_input(spec)
    except SpecError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"
    outlook = forecast(spec, "H100:80GiB")
    assert all("\n" not in reason for _, reason in outlook.unknown)
    return "no prediction" if outlook.unknown else "predicted"


def main(count: int, seed: int) -> None:
    transformers.logging.set_verbosity_error()
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(mutated(count, seed)):
            name = write(Path(folder) / str(number), text)
            started = time.monotonic()
            outcomes[outcome_of(name)] += 1
            slowest = max(slowest, time.monotonic() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GiB
    told = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
    print(f"{count} configs: {told}; slowest {slowest:.1f} s, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
