"""A process of its own in which the sweep has one more axis: a fixture of `test_axes.py`. Prints facts as JSON.

It is read from a field of the cell that no axis reads: `allow_pickle`, which changes no result.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from orchestrator import axes

ROLE = axes.Role[sys.argv[2]]
axes.AXES = (
    *axes.AXES,
    axes.Axis(
        name="moon",
        hint=str,
        role=ROLE,
        read=lambda cell: "full" if cell.model.allow_pickle else "new",
        usual="new",
    ),
)

# Imported with the axis in place: keys and columns are made once.
from orchestrator.journal.folder import open_run, read_run  # noqa: E402
from orchestrator.journal.record import Record  # noqa: E402
from orchestrator.report import compare  # noqa: E402
from orchestrator.report.sections import failures  # noqa: E402
from orchestrator.report.setting import names_of, settings  # noqa: E402
from orchestrator.report.speculation_costs import speculated  # noqa: E402
from orchestrator.spec import SweepSpec  # noqa: E402
from orchestrator.sweep.work.item import Key, rank_plan  # noqa: E402
from orchestrator.tables.write import write_tables  # noqa: E402
from tests.orchestrator.fake_run import attempt_of, demo_attempts, demo_spec  # noqa: E402
from workers.attempt import Attempt  # noqa: E402


def under_both_moons(spec: SweepSpec) -> list[Attempt]:
    cells = [attempt.cell for attempt in demo_attempts(spec)]
    return [
        attempt_of(replace(cell, model=replace(cell.model, allow_pickle=full)), number)
        for full in (False, True)
        for number, cell in enumerate(cells, 1000 * full)
    ]


def recorded(folder: Path) -> Path:
    spec = demo_spec(lengths=[500, 4000])
    scored = demo_spec(workload="score", modes=["baseline", "streaming"], lengths=[1000])
    attempts = [*under_both_moons(spec), *under_both_moons(scored)]
    with open_run(folder, spec) as run:
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
    return folder


folder = recorded(Path(sys.argv[1]) / "run")
with write_tables(read_run(folder)) as tables:
    found = settings(tables)
    cells = [attempt.cell for attempt in under_both_moons(demo_spec(lengths=[500]))]
    keyed = {Key(cell.cell_id, "cpu"): cell for cell in cells}
    ranks = {item.rank[0] for item in rank_plan(keyed, [1.0 + cell.model.allow_pickle for cell in cells])}
    facts = {
        "attempts": sorted(set(tables.attempts["moon"])),
        "summary": tables.summary.group_by("moon").len().sort("moon").rows(),
        "summary_n": sorted(set(tables.summary["n"])),
        "speedups": tables.summary.filter(mode="streaming", length=500)["speedup"].null_count(),
        "boundaries": sorted((row.mode, row.identity["moon"]) for row in tables.boundaries),
        "quality": sorted(set(tables.quality.select("mode", "moon").rows())),
        "twins": tables.attempts.filter(mode="streaming", length=500)["compared_tokens"].null_count(),
        "speculated": sorted((item.row["mode"], item.row["moon"], item.speedup is None) for item in speculated(tables.summary.filter(length=500))),
        "settings": len(found),
        "conditions": [condition.words() for setting in found for condition in setting.conditions],
        "variants": [condition.name(v) for setting in found for condition in setting.conditions for v in condition.variants()],
        "failures": str(failures.failures(tables.attempts, tables.view, names_of(tables.attempts))).count("oom decode: "),
        "ranks": len(ranks),
    }  # fmt: skip
facts["compared"] = compare([folder, folder]).count("| pocket")
print(json.dumps(facts))
