"""Does memory grow as the model's config implies? Measured along the longest runs."""

from collections.abc import Sequence

from orchestrator.explain.reconcile import reconcile
from orchestrator.predict.model_shapes import ModelShapes
from orchestrator.report import formats
from orchestrator.report.document import Paragraph, Section, Table
from orchestrator.report.longest_runs import LongestRun
from orchestrator.report.setting import Setting

_SOURCES = {"kv_cache": "KV cache", "allocated": "torch, allocated", "device": "the device"}


def growth(settings: Sequence[Setting], runs: dict[int, list[LongestRun]]) -> Section | None:
    """None where no config can be read or nothing was measured along a run."""
    columns = ["on", "mode", "meter", "bytes per token", "by config", "ratio", "reading"]
    rows = []
    shapes = ModelShapes()
    for place, setting in enumerate(settings):
        for run in runs[place]:
            target, draft = shapes.of(run.attempt.cell)
            if target is None:
                continue
            rows += [
                [
                    setting.words(engine=True),
                    run.name,
                    _SOURCES[found.source],
                    formats.number(found.measured, 0),
                    formats.number(found.implied, 0),
                    formats.number(found.ratio, 2),
                    found.diagnosis,
                ]
                for found in reconcile(run.attempt, target, draft)
            ]
    if not rows:
        return None
    about = (
        "A robust slope (median over all pairs of points) of each meter along the longest run of each mode, beside what "
        "the config implies for the same tokens, windows and the engine's blocks included. A ratio that is off usually "
        "names its cause. A run over which a meter moved too rarely says nothing."
    )
    table = Table(columns, rows, "", frozenset(columns[3:6]), group="on")
    return Section("Does memory grow as it should?", [Paragraph([about]), table])
