"""Which attempts ran while the machine was not itself: the rulers of each held against the run's, and what disturbed it.

The rulers are a copy (and on a CPU a matrix product) at the start and at the end of each child, and the card's clock.
"""

import polars as pl

#: A ruler that differs by more from the median of the run's cells on that kind of device.
RULER_PCT = 5.0
#: The same of a copy by a CPU, whose rounds differ with where its pages lie: of 60 children alone on a machine the largest
#: difference was 9.1 % (`python -m tests.benchmarks.hog`).
CPU_COPY_PCT = 10.0
#: Of the time that the cell wanted to compute and waited for a core.
WAIT_PCT = 5.0
#: Of the time that the machine wanted to compute and the hypervisor gave to others.
STEAL_PCT = 5.0
#: Of the machine's cores, kept busy by processes that are no cell.
OTHERS_PCT = 20.0
#: Of the readings in which the card's clock was held down.
THROTTLED_PCT = 5.0

_RULERS = {
    "copy": ("copy_bandwidth_bytes_per_s", "copy_bandwidth_after_bytes_per_s"),
    "matmul": ("matmul_flops_per_s", "matmul_after_flops_per_s"),
    "sm_clock": ("sm_clock_median_mhz",),
}


def with_noise(attempts: pl.DataFrame) -> pl.DataFrame:
    """Add `ruler_deviation_pct`, `noise_pct`, `noisy` and `noise_reasons`.

    `ruler_deviation_pct`: by how much the ruler that differs most is off the median of the run's attempts on that kind
    of device; of each ruler the mean of its start and its end. `noise_pct`: by how much the speed may be off: the
    largest of the deviation, the time waited and the time stolen. `noisy`: whether any of the limits above was
    passed; null where nothing was measured. `noise_reasons`: which, in words.
    """
    deviations = {name: _deviation(columns) for name, columns in _RULERS.items()}
    others = 100 * pl.col("host_other_load") / pl.col("host_cores")
    reasons = (
        *(
            _reason(value.abs() > _limit(name), f"{name} ", value.round(1).cast(pl.String), " %")
            for name, value in deviations.items()
        ),
        _over("cpu_wait_pct", WAIT_PCT, "waited for a core "),
        _over("host_steal_pct", STEAL_PCT, "stolen by the hypervisor "),
        _reason(
            others > OTHERS_PCT, "others used ", pl.col("host_other_load").round(2).cast(pl.String), " cores"
        ),
        _reason(pl.col("throttled_pct") > THROTTLED_PCT, "throttled (", pl.col("throttle_reasons"), ")"),
    )
    ruler = pl.max_horizontal(*(value.abs() for value in deviations.values()))
    known = pl.any_horizontal(
        ruler.is_not_null(), *(pl.col(name).is_not_null() for name in ("cpu_wait_pct", "host_other_load"))
    )
    return (
        attempts.with_columns(
            ruler_deviation_pct=ruler,
            noise_pct=pl.max_horizontal(ruler, "cpu_wait_pct", "host_steal_pct"),
            noise_reasons=pl.concat_str(*reasons, separator="; ", ignore_nulls=True),
        )
        .with_columns(noisy=pl.when(known).then(pl.col("noise_reasons") != ""))
        .with_columns(noise_reasons=pl.when(pl.col("noisy")).then("noise_reasons"))
    )


def _deviation(columns: tuple[str, ...]) -> pl.Expr:
    """In per cent of the median over the attempts of the kind of device that have the ruler."""
    value = pl.mean_horizontal(*columns)
    return 100 * (value / value.median().over("device_kind") - 1)


def _limit(ruler: str) -> pl.Expr:
    """The product is measured on a CPU only, so it tells a CPU's copy from a card's."""
    on_a_cpu = pl.col("matmul_flops_per_s").is_not_null()
    return pl.when(on_a_cpu).then(CPU_COPY_PCT if ruler == "copy" else RULER_PCT).otherwise(RULER_PCT)


def _over(column: str, limit: float, words: str) -> pl.Expr:
    return _reason(pl.col(column) > limit, words, pl.col(column).round(1).cast(pl.String), " %")


def _reason(applies: pl.Expr, before: str, value: pl.Expr, after: str) -> pl.Expr:
    return pl.when(applies).then(pl.concat_str(pl.lit(before), value, pl.lit(after)))
