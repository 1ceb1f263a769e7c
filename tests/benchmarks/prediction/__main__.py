"""Predicted memory against a real card: `python -m tests.benchmarks.prediction`.

    --record DIR     on a card: run the shapes of shapes.json, write DIR/events.npz and DIR/runs.json
    --calibrate DIR  on a card: what libraries and contexts take, DIR/facts.json (part of --record)
    --replay FILE    anywhere: recorded events through the allocator model, the error of reserved bytes per event
    --peaks FILE     on a card: cells of the graph engine, and of scoring, beside their predictions
    --compare DIR    anywhere: the same runs rehearsed, the pass in which memory ends and the peak

`--set` names the shapes of --record: `development`, which the prediction was developed with, `unseen`, `second`.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path)
    parser.add_argument("--calibrate", type=Path)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--peaks", type=Path)
    parser.add_argument("--shapes", nargs="*", help="of --peaks")
    parser.add_argument("--lengths", type=int, nargs="*", default=(4096, 16384), help="of --peaks")
    parser.add_argument("--set", default="development", choices=("development", "unseen", "second"))
    parser.add_argument("--engines", nargs="*", default=("eager",), help="of --record: eager, graph")
    parser.add_argument("--only", nargs="*", help="of --record: shapes by name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=140, help="no run is begun after that")
    arguments = parser.parse_args()
    if arguments.replay:
        from tests.benchmarks.prediction.replaying import replay_file

        replay_file(arguments.replay)
    elif arguments.compare:
        from tests.benchmarks.prediction.comparing import compare

        compare(arguments.compare)
    elif arguments.peaks:
        from tests.benchmarks.prediction.peaks import SHAPES, peaks

        peaks(arguments.peaks, arguments.shapes or SHAPES, arguments.lengths)
    elif arguments.record or arguments.calibrate:
        _on_a_card(arguments)
    else:
        parser.error("one of --record, --calibrate, --peaks, --replay, --compare")


def _on_a_card(arguments: argparse.Namespace) -> None:
    import torch  # noqa: F401 before the fork, so that every process has it
    import transformers  # noqa: F401

    import workers.engines.eager
    import workers.models.load  # noqa: F401
    from tests.benchmarks.prediction.calibrate import calibrate
    from tests.benchmarks.prediction.record import _guarded, merge, record, runs

    began = time.monotonic()
    out = arguments.record or arguments.calibrate
    out.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(
        target=_guarded, args=(calibrate, out / "facts.json", "random:pythia-160m")
    )
    process.start()
    process.join()
    facts = json.loads((out / "facts.json").read_text())
    for step in facts["steps"]:
        print(json.dumps(step), flush=True)
    if not arguments.record:
        return
    context_bytes = facts["steps"][-2]["outside_allocator"] - facts["idle"]
    with tempfile.TemporaryDirectory() as folder:
        asked = [
            run
            for run in runs(Path(folder) / "shapes", context_bytes, arguments.set, arguments.engines)
            if not arguments.only or run.name in arguments.only
        ]
        results = record(asked, Path(folder), arguments.jobs, began + arguments.seconds)
        merge(Path(folder), asked, out / "events.npz")
    (out / "runs.json").write_text(json.dumps({"facts": facts, "runs": results}, indent=1))
    print(f"{len(results)} of {len(asked)} runs in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
