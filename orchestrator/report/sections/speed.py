"""Mode x length: time, tok/s, speed-up, tokens per step, peak memory, outcome; and the pictures of it."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from orchestrator.report import formats
from orchestrator.report.document import Block, Folded, Paragraph, Picture, Section, Table
from orchestrator.report.longest_runs import LongestRun
from orchestrator.report.pictures.runs import (
    energy_by_length,
    memory_by_time,
    speed_along_the_run,
    speed_by_length,
)
from orchestrator.report.setting import Condition, Setting
from orchestrator.report.speed_claims import ENOUGH, claim, is_carried, is_engine, is_faster, speed_of
from orchestrator.tables.baseline import is_baseline
from workers.modes import BASELINE
from workers.outcome import Outcome

_MARK, _NOISY = "†", "‡"


def lengths(settings: Sequence[Setting]) -> Section | None:
    """The main condition of each setting open, the others folded."""
    measured = [setting for setting in settings if setting.main.summary.height]
    if not measured:
        return None
    engines = len({setting.engine for setting in settings}) > 1
    blocks: list[Block] = [
        Paragraph([
            "Medians over the repeats; ± is half of a 95 % confidence interval, for three repeats and more. Time: prompt and generation, without "
            "load, warm-up, capture and compilation. Speed-up: against the baseline of the same engine at the same "
            "length, missing where that ran out of memory; in brackets where the runs do not carry it. Of roofline: "
            "the time that the bytes of a step need at the bandwidth of a copy, over the time that it took."
        ])
    ]  # fmt: skip
    notes = [_trained_on(settings), _noisy(settings), _energy_of(settings)]
    blocks += [Paragraph([note]) for note in notes if note is not None]
    for setting in measured:
        title = setting.words(engine=engines)
        blocks.append(_table(f"{title}, {setting.main.words()}", setting.main))
        blocks += [Paragraph([sentence]) for sentence in unlike_engines(setting.main)]
        for condition in setting.conditions[1:]:
            blocks.append(Folded(f"{title}, {condition.words()}", [_table("", condition)]))
    return Section("Every mode at every length", blocks)


def _table(caption: str, condition: Condition) -> Table:
    eager = bool((condition.summary["engine"] != "eager").any())
    columns = [
        "length",
        "mode",
        "time",
        "tok/s",
        "±",
        "speed-up",
        "tokens/step",
        "of roofline",
        "peak memory",
        "outcome",
    ]
    if eager:
        columns.insert(6, "against eager")
    metered = condition.summary["energy_per_token_j_median"].drop_nulls().len() > 0
    if metered:
        columns.insert(-2, "energy per million tokens")
    rows = []
    for length in sorted(set(condition.summary["length"])):
        mark = _MARK * _any_beyond(condition, length)
        for variant in condition.variants():
            found = condition.of(variant, condition.summary).filter(length=length)
            for row in found.iter_rows(named=True):
                low, high = row["tokens_per_s_ci_low"], row["tokens_per_s_ci_high"]
                line = [
                    f"{length:,} tokens{mark}", condition.name(variant), formats.duration(row["generation_s_median"]),
                    formats.number(row["tokens_per_s_median"]) + _NOISY * bool(row["noisy"]), formats.number(None if low is None or row["n_ok"] < ENOUGH else (high - low) / 2),
                    _speedup(row, _baseline(condition, length)), formats.number(row["tokens_per_step_median"], 2),
                    formats.number(row["roofline_fraction_median"], 2), formats.size(_peak(row)), outcome(row),
                ]  # fmt: skip
                if eager:
                    line.insert(6, formats.times(row["speedup_eager"]))
                if metered:
                    line.insert(-2, formats.energy(row["energy_per_token_j_median"]))
                rows.append(line)
    return Table(columns, rows, caption, frozenset(columns[2:-1]), group="length")


def _speedup(row: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """In brackets where the runs carry no difference."""
    if row["speedup"] is None or baseline is None:
        return formats.NOTHING
    carried = is_carried(speed_of("", row), speed_of("", baseline))
    return formats.times(row["speedup"]) if carried else f"({formats.times(row['speedup'])})"


def _baseline(condition: Condition, length: int) -> dict[str, Any] | None:
    """The baseline's row at this length, if it passed."""
    found = condition.summary.filter(is_baseline() & (pl.col("length") == length))
    found = found.drop_nulls("tokens_per_s_median")
    return None if found.is_empty() else found.row(0, named=True)


def unlike_engines(condition: Condition) -> list[str]:
    """A sentence for each mode whose difference from the baseline is the engine's and not its own: of its longest length
    at which both passed."""
    sentences = []
    for variant in condition.variants():
        rows = condition.of(variant, condition.summary).drop_nulls("tokens_per_s_median")
        for row in rows.sort("length", descending=True).iter_rows(named=True):
            base = _baseline(condition, row["length"])
            if variant.mode == BASELINE or base is None:
                continue
            one, other = speed_of(condition.name(variant), row), speed_of(BASELINE, base)
            if is_engine(one, other) and (is_faster(one, other) or is_faster(other, one)):
                said = claim(one, other).removeprefix("it ")
                sentences.append(f"At {row['length']:,} tokens {one.name} {said}.")
            break
    return sentences


def _any_beyond(condition: Condition, length: int) -> bool:
    """One mark for a length: a row that did not run knows no trained context."""
    return any(_beyond(row) for row in condition.summary.filter(length=length).iter_rows(named=True))


def _beyond(row: dict[str, int | None]) -> bool:
    """Whether the text is longer than the context its model was trained on."""
    context = row["max_positions"]
    return context is not None and (row["prompt_tokens"] or 0) + (row["length"] or 0) > context


def _trained_on(settings: Sequence[Setting]) -> str | None:
    contexts = {
        setting.names.target(setting.model): row["max_positions"]
        for setting in settings
        for condition in setting.conditions
        for row in condition.summary.iter_rows(named=True)
        if _beyond(row)
    }
    if not contexts:
        return None
    models = formats.listing([f"{model} ({context:,})" for model, context in contexts.items()])
    return f"{_MARK} longer than the positions that the model was trained on: {models}."


def _rows(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    return [
        row
        for setting in settings
        for condition in setting.conditions
        for row in condition.summary.iter_rows(named=True)
    ]


def _noisy(settings: Sequence[Setting]) -> str | None:
    if not any(row["noisy"] for row in _rows(settings)):
        return None
    return f"{_NOISY} measured on a noisy machine: the interval is wider by its noise (noise_reasons in the table of attempts)."


def _energy_of(settings: Sequence[Setting]) -> str | None:
    if all(row["energy_per_token_j_median"] is None for row in _rows(settings)):
        return None
    return "Energy: of the whole device while it generates, its idle power included, over the new tokens of all sequences."


def _peak(row: dict[str, int | None]) -> int | None:
    return (
        row["peak_process_bytes_max"]
        if row["peak_device_bytes_max"] is None
        else row["peak_device_bytes_max"]
    )


def outcome(row: dict[str, object]) -> str:
    text = str(row["outcome"]).replace("_", " ")
    if row["outcome"] == Outcome.OK:
        return text
    at = f" at {row['oom_token_index_min']:,}" if row["oom_token_index_min"] is not None else ""
    share = f" ({row['n_ok']} of {row['n']} ok)" if row["n_ok"] else ""
    return text + at + share


def speed_pictures(settings: Sequence[Setting], runs: dict[int, list[LongestRun]]) -> Section | None:
    engines = len({setting.engine for setting in settings}) > 1
    blocks: list[Picture] = []
    for place, setting in enumerate(settings):
        ran = runs[place]
        passed = setting.main.summary.filter(pl.col("tokens_per_s_median").is_not_null())
        if ran:
            blocks.append(memory_by_time(setting, ran, engines))
        if passed.height:
            blocks.append(speed_by_length(setting, engines))
        if passed["energy_per_token_j_median"].drop_nulls().len():
            blocks.append(energy_by_length(setting, engines))
        if any(run.speed.height > 1 for run in ran):
            blocks.append(speed_along_the_run(setting, ran, engines))
    return Section("Memory and speed, in pictures", blocks) if blocks else None
