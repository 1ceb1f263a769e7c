"""The `summary` table: attempts of equal cells taken together, speeds beside the baseline's."""

import polars as pl

from orchestrator import axes
from orchestrator.axes import VARIANT, Role
from orchestrator.student_t import NORMAL95, T95
from orchestrator.tables.baseline import is_baseline
from orchestrator.tables.speed_rows import measures_speed
from workers.outcome import Outcome

#: What has to be equal before two rows are compared.
CONDITIONS = (*axes.names(Role.SETTING, Role.CONDITION, Role.LENGTH), axes.DEVICE_KIND)
KEY = (*CONDITIONS, *axes.names(*VARIANT))
_ANY_ENGINE = tuple(name for name in CONDITIONS if name != "engine")
#: What is equal where only the number of devices differs.
_ANY_DEVICES = tuple(name for name in KEY if name != "devices_per_cell")
_FIRST = (
    *("model", "mode", "engine", "device_kind", "budget_bytes", "prompt_tokens", "batch_size", "length", "n"),
    *("tokens_per_s_median", "tokens_per_s_ci_low", "tokens_per_s_ci_high", "speedup"),
    *("tokens_per_step_median", "peak_device_bytes_max", "outcome"),
)

_OK = pl.col("outcome") == Outcome.OK
_OUTCOMES = (
    pl.len().alias("n"),
    _OK.sum().alias("n_ok"),
    pl.coalesce(pl.col("outcome").filter(~_OK).mode().sort().first(), pl.lit(Outcome.OK.value)).alias(
        "outcome"
    ),
)
#: Of the repeats that ended ok.
_MEDIANS = (
    *(
        pl.col(name).filter(_OK).median().alias(f"{name}_median")
        for name in (
            *("tokens_per_s", "tokens_per_step", "acceptance_rate", "duration_s", "ttft_s", "decode_s"),
            *("tpot_p50_s", "tpot_p95_s", "tpot_p99_s", "draft_step_s", "verify_step_s"),
            *("roofline_fraction", "energy_per_token_j", "power_mean_w"),
        )
    ),
    (pl.col("prefill_s") + pl.col("decode_s")).filter(_OK).median().alias("generation_s_median"),
    pl.col("tokens_per_s").filter(_OK).drop_nulls().alias("speeds"),
)
_EXTREMES = (
    *(
        pl.col(name).max().alias(f"{name}_max")
        for name in (
            *("peak_device_bytes", "peak_process_bytes", "peak_allocated_bytes", "peak_reserved_bytes"),
            *("kv_cache_bytes", "predicted_peak_bytes", "new_tokens"),
        )
    ),
    pl.col("peak_device_bytes").min().alias("peak_device_bytes_min"),
    pl.col("oom_token_index").min().alias("oom_token_index_min"),
    pl.col("first_divergence").min().alias("first_divergence_min"),
    pl.col("compared_tokens").max().alias("compared_tokens_max"),
    pl.col("first_divergence_plain").min().alias("first_divergence_plain_min"),
    pl.col("compared_tokens_plain").max().alias("compared_tokens_plain_max"),
    pl.col("max_positions").max(),
    pl.col("noise_pct").filter(_OK & pl.col("noisy")).max().alias("noise_pct_max"),
    pl.col("noisy").filter(_OK).any(ignore_nulls=False),
    (_OK & pl.col("noisy")).sum().alias("n_noisy"),
)


def summary(attempts: pl.LazyFrame) -> pl.LazyFrame:
    """One row for all measured generation cells that differ in their repeats only, on one kind of device.

    `generation_s`: prompt and decoding, without load, capture and warm-up.
    `n`: attempts that count, `n_ok` of them ok; speeds are of those. `tokens_per_s_ci_low`, `_ci_high`: 95 %, by
    Student's t from the raw values (with three repeats an order-statistic interval of the median would cover 75 %
    at most), null for one; widened on both sides by `noise_pct_max` where the row is noisy. `noisy`: any of the repeats
    that ended ok is, `n_noisy` how many (`orchestrator.tables.noise`). `speedup`: against the baseline of the same engine and conditions, null where that
    did not pass; `speedup_eager`: against the eager baseline. `scaling_efficiency`: speed over that of the same on one
    device, for each device. `outcome`: ok, or the most frequent other one.
    """
    measured = pl.col("final") & (pl.col("purpose") == "measure") & measures_speed()
    groups = (
        attempts.filter(measured)
        .group_by(KEY)
        .agg(*_OUTCOMES, *_MEDIANS, *_EXTREMES)
        .with_columns(_interval("speeds"))
        .drop("speeds")
    )
    base = groups.filter(is_baseline()).select(*CONDITIONS, base="tokens_per_s_median")
    on_one = groups.filter(pl.col("devices_per_cell") == 1).select(
        *_ANY_DEVICES, on_one="tokens_per_s_median"
    )
    eager = base.filter(pl.col("engine") == "eager").select(*_ANY_ENGINE, eager_base="base")
    return (
        groups.join(base, on=list(CONDITIONS), how="left", nulls_equal=True)
        .join(eager, on=list(_ANY_ENGINE), how="left", nulls_equal=True)
        .join(on_one, on=list(_ANY_DEVICES), how="left", nulls_equal=True)
        .with_columns(
            speedup=pl.col("tokens_per_s_median") / pl.col("base"),
            speedup_eager=pl.col("tokens_per_s_median") / pl.col("eager_base"),
            scaling_efficiency=pl.col("tokens_per_s_median") / pl.col("on_one") / pl.col("devices_per_cell"),
        )
        .drop("base", "eager_base", "on_one")
        .sort(*KEY, nulls_last=True)
        .select(*_FIRST, pl.exclude(*_FIRST))
    )


def _interval(speeds: str) -> tuple[pl.Expr, pl.Expr]:
    values = pl.col(speeds).list
    freedom = values.len().cast(pl.Int64) - 1
    t = freedom.replace_strict(
        list(range(1, len(T95) + 1)), list(T95), default=pl.lit(NORMAL95), return_dtype=pl.Float64
    )
    noise = values.mean() * pl.col("noise_pct_max").fill_null(0.0) / 100
    half = pl.when(freedom >= 1).then(t * values.std() / values.len().cast(pl.Float64).sqrt() + noise)
    return (
        (values.mean() - half).alias("tokens_per_s_ci_low"),
        (values.mean() + half).alias("tokens_per_s_ci_high"),
    )
