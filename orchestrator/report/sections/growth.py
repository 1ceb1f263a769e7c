"""Does memory grow as the model's config implies? Measured along the longest runs."""

from collections.abc import Sequence

from orchestrator.explain.measured_law import Interval, measured_law
from orchestrator.explain.reconcile import reconcile
from orchestrator.predict.cache_law import cache_law
from orchestrator.predict.model_shapes import CellShapes, ModelShapes
from orchestrator.predict.shape import ModelShape
from orchestrator.report import formats
from orchestrator.report.document import Block, Paragraph, Section, Table
from orchestrator.report.longest_runs import LongestRun
from orchestrator.report.setting import Setting

_LAW = (
    "The KV cache of the same runs as two numbers: n tokens take a constant and n times the bytes per token. Counted from the "
    "cache's tensors, beyond every sliding window where the run is so long, with the 95 % interval where there is one."
)
_SOURCES = {"kv_cache": "KV cache", "allocated": "torch, allocated", "device": "the device"}


def growth(settings: Sequence[Setting], runs: dict[int, list[LongestRun]]) -> Section | None:
    """None where no config can be read or nothing was measured along a run."""
    columns = ["on", "mode", "meter", "bytes per token", "by config", "ratio", "reading"]
    rows, laws = [], []
    shapes = ModelShapes()
    for place, setting in enumerate(settings):
        for run in runs[place]:
            target, draft = shapes.of(run.attempt.cell)
            if target is None:
                continue
            if law := _law(run, target, draft):
                laws.append([setting.words(engine=True), run.name, *law])
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
    blocks: list[Block] = [Paragraph([about]), table]
    if laws:
        named = [
            "on",
            "mode",
            "bytes per token",
            "by config",
            "constant bytes",
            "constant by config",
            "source",
        ]
        blocks += [Paragraph([_LAW]), Table(named, laws, "", frozenset(named[2:6]), group="on")]
    return Section("Does memory grow as it should?", blocks)


def _law(run: LongestRun, target: ModelShape, draft: ModelShape | None) -> list[str] | None:
    """The KV cache as two numbers, counted and by the config; None where too little was counted."""
    windows = [window for window in target.windows if window is not None]
    found = measured_law([run.attempt], beyond=max(windows, default=0))
    if found is None:
        return None
    told = cache_law(run.attempt.cell, CellShapes(target, draft))
    return [
        _interval(found.bytes_per_token),
        formats.number(None if told is None else told.bytes_per_token, 0),
        _interval(found.constant_bytes),
        formats.number(None if told is None else told.constant_bytes, 0),
        "" if told is None else told.source,
    ]


def _interval(found: Interval) -> str:
    value = formats.number(found.value, 0)
    if found.low is None or found.high is None or found.low == found.high:
        return value
    return f"{value} ({formats.number(found.low, 0)} to {formats.number(found.high, 0)})"
