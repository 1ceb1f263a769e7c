"""Mode x length: time, tok/s, speed-up, tokens per step, peak memory, outcome; and the pictures of it."""

from collections.abc import Sequence

import polars as pl

from orchestrator.report import words
from orchestrator.report.document import Block, Folded, Paragraph, Picture, Section, Table
from orchestrator.report.pictures.runs import memory_by_time, speed_along_the_run, speed_by_length
from orchestrator.report.scene import Condition, Scene, short
from orchestrator.report.series import Run

_MARK = "†"


def lengths(scenes: Sequence[Scene]) -> Section | None:
    """The main condition of each scene open, the others folded."""
    measured = [scene for scene in scenes if scene.main.summary.height]
    if not measured:
        return None
    engines = len({scene.engine for scene in scenes}) > 1
    blocks: list[Block] = [
        Paragraph([
            "Medians over the repeats; ± is half of a 95 % confidence interval. Time: prompt and generation, without "
            "load, warm-up, capture and compilation. Speed-up: against the baseline of the same engine at the same "
            "length, missing where that ran out of memory."
        ])
    ]  # fmt: skip
    if (marked := _trained_on(scenes)) is not None:
        blocks.append(Paragraph([marked]))
    for scene in measured:
        title = scene.words(engine=engines)
        blocks.append(_table(f"{title}, {scene.main.words()}", scene.main))
        for condition in scene.conditions[1:]:
            blocks.append(Folded(f"{title}, {condition.words()}", [_table("", condition)]))
    return Section("Every mode at every length", blocks)


def _table(caption: str, condition: Condition) -> Table:
    eager = bool((condition.summary["engine"] != "eager").any())
    columns = ["length", "mode", "time", "tok/s", "±", "speed-up", "tokens/step", "peak memory", "outcome"]
    if eager:
        columns.insert(6, "against eager")
    rows = []
    for length in sorted(set(condition.summary["length"])):
        for variant in condition.variants():
            found = condition.of(variant, condition.summary).filter(length=length)
            for row in found.iter_rows(named=True):
                low, high = row["tokens_per_s_ci_low"], row["tokens_per_s_ci_high"]
                line = [
                    f"{length:,} tokens{_MARK * _beyond(row)}", condition.name(variant), words.duration(row["generation_s_median"]),
                    words.number(row["tokens_per_s_median"]), words.number(None if low is None else (high - low) / 2),
                    words.times(row["speedup"]), words.number(row["tokens_per_step_median"], 2),
                    words.size(_peak(row)), outcome(row),
                ]  # fmt: skip
                if eager:
                    line.insert(6, words.times(row["speedup_eager"]))
                rows.append(line)
    return Table(columns, rows, caption, frozenset(columns[2:-1]), group="length")


def _beyond(row: dict[str, int | None]) -> bool:
    """Whether the text is longer than the context its model was trained on."""
    context = row["max_positions"]
    return context is not None and (row["prompt_tokens"] or 0) + (row["length"] or 0) > context


def _trained_on(scenes: Sequence[Scene]) -> str | None:
    contexts = {
        scene.model: row["max_positions"]
        for scene in scenes
        for condition in scene.conditions
        for row in condition.summary.iter_rows(named=True)
        if _beyond(row)
    }
    if not contexts:
        return None
    models = words.listing([f"{short(model)} ({context:,})" for model, context in contexts.items()])
    return f"{_MARK} longer than the positions that the model was trained on: {models}."


def _peak(row: dict[str, int | None]) -> int | None:
    return (
        row["peak_process_bytes_max"]
        if row["peak_device_bytes_max"] is None
        else row["peak_device_bytes_max"]
    )


def outcome(row: dict[str, object]) -> str:
    text = str(row["outcome"]).replace("_", " ")
    if row["outcome"] == "ok":
        return text
    at = f" at {row['oom_token_index_min']:,}" if row["oom_token_index_min"] is not None else ""
    share = f" ({row['n_ok']} of {row['n']} ok)" if row["n_ok"] else ""
    return text + at + share


def speed_pictures(scenes: Sequence[Scene], runs: dict[int, list[Run]]) -> Section | None:
    engines = len({scene.engine for scene in scenes}) > 1
    blocks: list[Picture] = []
    for place, scene in enumerate(scenes):
        ran = runs[place]
        passed = scene.main.summary.filter(pl.col("tokens_per_s_median").is_not_null())
        if ran:
            blocks.append(memory_by_time(scene, ran, engines))
        if passed.height:
            blocks.append(speed_by_length(scene, engines))
        if any(run.speed.height > 1 for run in ran):
            blocks.append(speed_along_the_run(scene, ran, engines))
    return Section("Memory and speed, in pictures", blocks) if blocks else None
