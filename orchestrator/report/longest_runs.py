"""The longest run of each variant, with its series: what pictures are drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from orchestrator.journal.journal import View
from orchestrator.report.setting import Setting, Variant
from workers.attempt import Attempt
from workers.outcome import Outcome

#: More points than a picture can show; thinned so that every peak stays.
_MOST = 400


@dataclass(frozen=True, slots=True)
class LongestRun:
    """`by_token`: token_index, used_bytes; `by_time`: t_s, used_bytes; `speed`: token_index, tokens_per_s.

    `beyond`: what the boundary search adds to a run that passed: token_index, used_bytes of probes that went
    further, in order, up to the first that ran out of memory; `ended`: the last of them is that one.
    """

    variant: Variant
    name: str
    attempt: Attempt
    by_token: pl.DataFrame
    by_time: pl.DataFrame
    speed: pl.DataFrame
    beyond: pl.DataFrame
    ended: bool

    @property
    def out_of_memory(self) -> bool:
        return self.ended or self.attempt.outcome.is_device_oom


def longest_runs(settings: Sequence[Setting], view: View) -> dict[int, list[LongestRun]]:
    """Of each setting (by its place), the run of each variant that came furthest."""
    chosen: list[tuple[int, Variant, int]] = []
    for place, setting in enumerate(settings):
        condition = setting.main
        for variant in condition.variants():
            ran = condition.of(variant, condition.attempts).filter(pl.col("new_tokens") > 0)
            if ran.height:
                best = ran.sort("new_tokens", "length", "repeat", descending=[True, True, False]).row(
                    0, named=True
                )
                chosen.append((place, variant, best["row"]))
    whole = view.whole([row for *_, row in chosen])
    runs: dict[int, list[LongestRun]] = {place: [] for place in range(len(settings))}
    for place, variant, row in chosen:
        runs[place].append(_run(settings[place], variant, whole[row]))
    return runs


def comparable_runs(settings: Sequence[Setting], view: View) -> dict[int, list[tuple[str, Attempt]]]:
    """Of each setting (by its place), a run of each variant at the longest length that all of them passed; of those that
    passed none in common, the longest that each passed."""
    chosen: list[tuple[int, str, int]] = []
    for place, setting in enumerate(settings):
        condition = setting.main
        passed = {
            variant: condition.of(variant, condition.attempts).filter(pl.col("outcome") == Outcome.OK)
            for variant in condition.variants()
        }
        lengths = [set(ran["length"]) for ran in passed.values() if ran.height]
        common = max(set.intersection(*lengths), default=None) if lengths else None
        for variant, ran in passed.items():
            if ran.height:
                at = ran if common is None else ran.filter(length=common)
                row = at.sort("length", "repeat", descending=[True, False]).row(0, named=True)["row"]
                chosen.append((place, condition.name(variant), row))
    whole = view.whole([row for *_, row in chosen])
    runs: dict[int, list[tuple[str, Attempt]]] = {place: [] for place in range(len(settings))}
    for place, name, row in chosen:
        runs[place].append((name, whole[row]))
    return runs


def _run(setting: Setting, variant: Variant, attempt: Attempt) -> LongestRun:
    samples = pl.DataFrame(
        {
            "t_s": [sample.t_s for sample in attempt.samples],
            "used_bytes": [
                sample.process_used_bytes if sample.device_used_bytes is None else sample.device_used_bytes
                for sample in attempt.samples
            ],
        },
        schema={"t_s": pl.Float64, "used_bytes": pl.Int64},
    ).drop_nulls()
    steps = pl.DataFrame(
        {
            "token_index": [step.token_index for step in attempt.steps],
            "t_s": [step.t_s for step in attempt.steps],
            "allocated_bytes": [step.allocated_bytes for step in attempt.steps],
        },
        schema={"token_index": pl.Int64, "t_s": pl.Float64, "allocated_bytes": pl.Int64},
    ).sort("t_s")
    along = steps.join_asof(samples.sort("t_s"), on="t_s").select(
        "token_index", used_bytes=pl.coalesce("used_bytes", "allocated_bytes")
    )
    beyond = _beyond(setting, variant, attempt)
    return LongestRun(
        variant=variant,
        name=setting.main.name(variant),
        attempt=attempt,
        by_token=_thin(along.drop_nulls(), "token_index"),
        by_time=_thin(samples, "t_s"),
        speed=_speed(steps, attempt.cell.batch_size),
        beyond=beyond.select("token_index", "used_bytes"),
        ended=beyond.height > 0 and not beyond["passed"][-1],
    )


def _beyond(setting: Setting, variant: Variant, attempt: Attempt) -> pl.DataFrame:
    condition = setting.main
    # Probes differ from a run in their prompt, which is their own, and in how it is read.
    alike = pl.all_horizontal(
        pl.col(name).eq_missing(pl.lit(value))
        for name, value in condition.values.items()
        if name not in ("prompt_tokens", "prefill_chunk")
    )
    # Of searches of the decode phase: with the prompt of the run, or with most of the text read as a prompt in chunks.
    decoding = (pl.col("prompt_tokens") == condition.prompt_tokens) | (
        pl.col("prefill_chunk").is_not_null() & (pl.col("length") > 1)
    )
    last_token = pl.coalesce("oom_token_index", "length")
    probes = (
        condition.of(variant, setting.probes)
        .filter(alike & decoding)
        .select(
            token_index=pl.col("prompt_tokens") + last_token - condition.prompt_tokens,
            used_bytes=pl.coalesce("peak_device_bytes", "peak_process_bytes"),
            passed=pl.col("outcome") == Outcome.OK,
            failed=pl.col("outcome").is_in([outcome for outcome in Outcome if outcome.is_device_oom]),
        )
        .filter((pl.col("passed") | pl.col("failed")) & (pl.col("token_index") > attempt.cell.length))
        .drop_nulls()
        .group_by("token_index")
        .agg(pl.col("used_bytes").max(), pl.col("passed").all())
        .sort("token_index")
    )
    if attempt.outcome is not Outcome.OK:
        return probes.clear()
    # Up to and including the first that failed.
    return probes.filter(pl.col("passed").cum_min().shift(1, fill_value=True))


def _thin(frame: pl.DataFrame, by: str) -> pl.DataFrame:
    """At most `_MOST` points: of each stretch its highest, and the very first and last."""
    if frame.height <= _MOST:
        return frame
    stretch = pl.int_range(pl.len()) * (_MOST - 2) // pl.len()
    highest = (
        frame.group_by(stretch.alias("stretch")).agg(pl.all().sort_by("used_bytes").last()).drop("stretch")
    )
    return pl.concat([frame.head(1), highest, frame.tail(1)]).unique(by).sort(by)


def _speed(steps: pl.DataFrame, batch_size: int, stretches: int = 25) -> pl.DataFrame:
    """Tokens per second over about 25 stretches of the run."""
    every = max(1, -(-steps.height // stretches))
    kept = steps.gather_every(every)
    passed = pl.col("t_s").diff()
    return (
        kept.with_columns(tokens_per_s=pl.col("token_index").diff() * batch_size / passed)
        .filter(passed > 0)
        .select("token_index", "tokens_per_s")
        .drop_nulls()
    )
