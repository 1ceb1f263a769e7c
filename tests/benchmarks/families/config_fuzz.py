"""Damaged configs through `plan`: each ends in a prediction, a reason or a refusal, in little time and memory.

    python -m tests.benchmarks.families.config_fuzz [COUNT] [SEED]

Each config is planned in a child process of its own, for a card of 80 GiB, the rehearsal included. Prints those that are
not within the limits, and the totals last; the status is 1 where there is one. Time is that of a processor, so that what
else runs on the machine does not count; what `plan` imports is imported before.
"""

import collections
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from orchestrator.forecast import forecast
from orchestrator.preflight import refuse_bad_input
from orchestrator.spec import SpecError, parse_spec
from tests.benchmarks.families.children import Answer, answers
from tests.orchestrator.mutated_configs import mutated, write

GiB = 2**30
#: Of one config: seconds of a processor, and bytes resident at the peak.
MOST_S, MOST_BYTES = 10.0, 2 * GiB
#: After so many seconds, on a busy machine too, or with so many bytes, a child is ended.
_LIMIT_S, _LIMIT_BYTES = 300.0, 6 * GiB
_GOOD = ("predicted", "no prediction", "refused")


class Planned(NamedTuple):
    """`outcome`: one of `_GOOD`, or what is wrong with it."""

    outcome: str
    processor_s: float
    peak_bytes: int

    @property
    def is_within_limits(self) -> bool:
        return self.outcome in _GOOD and self.processor_s <= MOST_S and self.peak_bytes <= MOST_BYTES


def plan(name: str) -> str:
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
    transformers.logging.set_verbosity_error()
    try:
        outcome = plan(name)
    except Exception as error:
        outcome = f"traceback: {type(error).__name__}: {error}"[:300]
    return [outcome, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]


def main(count: int, seed: int) -> int:
    began = time.monotonic()
    found: list[Planned] = []
    with tempfile.TemporaryDirectory() as folder:
        names = [write(Path(folder) / str(n), text) for n, text in enumerate(mutated(count, seed))]
        for answer in answers(
            names,
            "tests.benchmarks.families.config_fuzz:ask",
            jobs=2,
            limit_s=_LIMIT_S,
            limit_bytes=_LIMIT_BYTES,
            imports=("workers.rehearsal.eager", "orchestrator.preflight"),
        ):
            found.append(_planned(answer))
            if not found[-1].is_within_limits:
                number = Path(answer.name.removeprefix("random:")).name
                print(f"{number}: {_told(found[-1])}", flush=True)
            if len(found) % 50 == 0:
                print(f"{len(found)} configs in {time.monotonic() - began:.0f} s", flush=True)
    outcomes = collections.Counter(planned.outcome for planned in found).most_common()
    print(
        f"{count} configs: {', '.join(f'{number} {outcome}' for outcome, number in outcomes)}; most of any: "
        f"{max(p.processor_s for p in found):.1f} s of a processor, {max(p.peak_bytes for p in found) / GiB:.2f} GiB"
    )
    beyond = sum(not planned.is_within_limits for planned in found)
    print(
        f"{beyond} beyond the limits of {MOST_S:.0f} s and {MOST_BYTES / GiB:.0f} GiB, or without a good end"
    )
    return 1 if beyond else 0


def _planned(answer: Answer) -> Planned:
    return Planned(*answer.content) if answer.content else Planned(answer.failure, answer.seconds, 0)


def _told(planned: Planned) -> str:
    return f"{planned.outcome}, {planned.processor_s:.1f} s, {planned.peak_bytes / GiB:.2f} GiB"


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*given, *(500, 1)[len(given) :]))
