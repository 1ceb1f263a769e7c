"""The pictures of one setting: memory against tokens and time, speed against length and along the longest run."""

from collections.abc import Sequence

import polars as pl

from orchestrator.report import formats
from orchestrator.report.document import Picture
from orchestrator.report.longest_runs import LongestRun
from orchestrator.report.pictures.curves import ChartAxis, Curve, Limit, Panel, Stretch, draw
from orchestrator.report.pictures.theme import picture
from orchestrator.report.setting import Setting, variant_of
from orchestrator.report.speed_claims import ENOUGH
from workers.units import GiB, MiB


def memory_by_tokens(setting: Setting, runs: Sequence[LongestRun], engine: bool) -> Picture:
    end = _right_end(runs)
    drawn = [_up_to(end, run) for run in runs]
    unit, name = _unit(drawn, setting)
    curves = [
        _curve(run, frame, "token_index", unit, _named(run), out_of_memory=run.out_of_memory)
        for run, frame in zip(runs, drawn, strict=True)
    ]
    probed = (
        " Beyond it, straight lines to the peaks of the probes of the boundary search."
        if any(frame.height > run.by_token.height for run, frame in zip(runs, drawn, strict=True))
        else ""
    )
    where = setting.words(engine=engine)
    panel = Panel(
        f"Memory against tokens: {where}",
        ChartAxis("new tokens"),
        ChartAxis(f"memory ({name})"),
        curves,
        _budget(setting, unit),
        brackets := _brackets(setting, runs, unit),
    )
    bar = " A thick bar: the bracket of the search, whose texts were read as prompts." if brackets else ""
    return picture(
        f"memory-by-tokens-{setting.slug()}",
        draw(panel),
        f"The longest run of each mode ({setting.main.words()}).{probed} A cross: memory ran out there.{bar}",
        f"Memory against tokens on {where}",
    )


def _brackets(setting: Setting, runs: Sequence[LongestRun], unit: int) -> list[Stretch]:
    """Of searches by prompts, which end elsewhere than a run token by token: the run's cross is not their end."""
    limit = setting.limit_bytes
    if limit is None:
        return []
    drawn = {run.variant: run for run in runs if run.out_of_memory}
    return [
        Stretch(drawn[variant_of(row)].variant.colour, limit / unit, row.last_ok or 0, row.first_oom)
        for row in setting.boundaries
        if row.prefill_reach
        and row.first_oom is not None
        and (row.phase, row.axis) == ("decode", "length")
        and setting.main.asks(row)
        and variant_of(row) in drawn
    ]


def memory_by_time(setting: Setting, runs: Sequence[LongestRun], engine: bool) -> Picture:
    unit, name = _unit([run.by_time for run in runs], setting)
    curves = [
        _curve(run, run.by_time, "t_s", unit, run.name, out_of_memory=run.attempt.outcome.is_device_oom)
        for run in runs
    ]
    where = setting.words(engine=engine)
    panel = Panel(
        f"Memory against time: {where}",
        ChartAxis("seconds since the process started"),
        ChartAxis(f"memory ({name})"),
        curves,
        _budget(setting, unit),
        steps=True,
    )
    return picture(
        f"memory-by-time-{setting.slug()}",
        draw(panel),
        "The same runs: load, prompt, generation.",
        f"Memory against time on {where}",
    )


def speed_by_length(setting: Setting, engine: bool) -> Picture:
    return _by_length(
        setting, engine, "Speed", "tokens per second", "tokens_per_s_median", f"{_repeats(setting)}, for the lengths that passed.",
        ("tokens_per_s_ci_low", "tokens_per_s_ci_high"),
    )  # fmt: skip


def energy_by_length(setting: Setting, engine: bool) -> Picture:
    """Of the lengths at which the device told its energy."""
    return _by_length(
        setting, engine, "Energy", "joules per new token", "energy_per_token_j_median",
        "Median of the repeats: energy of the whole device while it generates, its idle power included, over the new "
        "tokens of all sequences.",
    )  # fmt: skip


def _by_length(
    setting: Setting,
    engine: bool,
    what: str,
    unit: str,
    column: str,
    caption: str,
    interval: tuple[str, ...] = (),
) -> Picture:
    """`column` of `summary`, a curve for each mode. `interval`: the columns of its lower and its upper bound."""
    curves = []
    for variant in setting.main.variants():
        rows = setting.main.of(variant, setting.main.summary).sort("length")
        rows = rows.drop_nulls([column, "tokens_per_s_median"])
        low, high = (_from_enough(rows, bound) for bound in interval) if interval else ([], [])
        curves.append(
            Curve(
                setting.main.name(variant),
                variant.colour,
                variant.dash,
                x=rows["length"].to_list(),
                y=rows[column].to_list(),
                low=low,
                high=high,
            )
        )
    where = setting.words(engine=engine)
    panel = Panel(
        f"{what} against length: {where}", ChartAxis("new tokens"), ChartAxis(unit), curves, points=True
    )
    name = f"{what.lower()}-by-length-{setting.slug()}"
    return picture(name, draw(panel), caption, f"{what} against length on {where}")


def _from_enough(rows: pl.DataFrame, bound: str) -> list[float | None]:
    """An interval of two values is as wide as the picture: from three on."""
    return rows.select(pl.when(pl.col("n_ok") >= ENOUGH).then(bound)).to_series().to_list()


def _repeats(setting: Setting) -> str:
    most = setting.main.summary["n_ok"].max()
    if not isinstance(most, int) or most < 2:
        return "One run of each"
    if most < ENOUGH:
        return "Median of two runs of each"
    return "Median of the repeats, with its 95 % interval where there are three and more"


def speed_along_the_run(setting: Setting, runs: Sequence[LongestRun], engine: bool) -> Picture:
    curves = [
        Curve(run.name, run.variant.colour, run.variant.dash, run.speed["token_index"].to_list(), run.speed["tokens_per_s"].to_list())
        for run in runs if run.speed.height > 1
    ]  # fmt: skip
    where = setting.words(engine=engine)
    panel = Panel(
        f"Speed along the longest run: {where}",
        ChartAxis("new tokens"),
        ChartAxis("tokens per second"),
        curves,
    )
    return picture(
        f"speed-along-the-run-{setting.slug()}", draw(panel),
        "Tokens per second over stretches of the longest run: a slope is a slowdown with length.",
        f"Speed along the longest run on {where}",
    )  # fmt: skip


def _right_end(runs: Sequence[LongestRun]) -> int:
    """The right end of the picture: where the last mode ends that does, or else the furthest measured token."""
    ends = [run.beyond["token_index"][-1] for run in runs if run.ended]
    return max([*ends, *(index for run in runs for index in run.by_token["token_index"].tail(1))], default=0)


def _up_to(end: int, run: LongestRun) -> pl.DataFrame:
    """A run and its probes; what goes on beyond `end` is cut there, on the line to the next probe."""
    whole = pl.concat([run.by_token, run.beyond])
    within, after = (
        whole.filter(pl.col("token_index") <= end),
        whole.filter(pl.col("token_index") > end),
    )
    if not after.height or not within.height:
        return within
    (x0, y0), (x1, y1) = within.row(-1), after.row(0)
    cut = y0 + (y1 - y0) * (end - x0) // (x1 - x0)
    return pl.concat([within, pl.DataFrame([(end, cut)], schema=whole.schema, orient="row")])


def _curve(
    run: LongestRun, frame: pl.DataFrame, x: str, unit: int, name: str, *, out_of_memory: bool
) -> Curve:
    return Curve(
        name,
        run.variant.colour,
        run.variant.dash,
        frame[x].to_list(),
        (frame["used_bytes"] / unit).to_list(),
        out_of_memory=out_of_memory,
    )


def _named(run: LongestRun) -> str:
    failure = run.attempt.failure
    if run.ended:
        return f"{run.name}: out of memory by {run.beyond['token_index'][-1]:,}"
    if failure is None or failure.oom_token_index is None:
        return run.name
    return f"{run.name}: out of memory at {failure.oom_token_index:,}"


def _budget(setting: Setting, unit: int) -> list[Limit]:
    limit = setting.limit_bytes
    if limit is None:
        return []
    if setting.budget_bytes is None:
        return (
            [Limit(f"{setting.device_kind}, {formats.size(limit)}", y=limit / unit)]
            if setting.device_kind != "cpu"
            else []
        )
    return [Limit(f"budget {formats.card(setting.budget_bytes)}", y=limit / unit)]


def _unit(drawn: Sequence[pl.DataFrame], setting: Setting) -> tuple[int, str]:
    peaks = [used for frame in drawn for used in frame["used_bytes"]]
    largest = max([*peaks, setting.budget_bytes or 0])
    return (GiB, "GiB") if largest >= 2 * GiB else (MiB, "MiB")
