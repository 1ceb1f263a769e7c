"""Journal rows -> the `attempts` table, and the long tables of samples and steps."""

import polars as pl

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.journal.journal import View
from orchestrator.journal.record import RANK_COLUMNS, SAMPLE_COLUMNS, STEP_COLUMNS
from orchestrator.tables.divergence import divergence
from orchestrator.tables.noise import with_noise

#: What a reader looks for first: the attempt, its cell by every axis, its device, what came of it.
_FIRST = (
    *("run_id", "cell_id", "attempt", "outcome", "phase"),
    *axes.names(*axes.IDENTITY, Role.REPEAT, Role.KIND),
    *("device_kind", "device_uuid", "node", "new_tokens"),
    *("started_at", "duration_s", "ttft_s", "tokens_per_s", "tpot_p50_s", "tpot_p95_s"),
    *("tpot_p99_s", "tokens_per_step", "acceptance_rate", "peak_device_bytes", "peak_process_bytes"),
    *("peak_allocated_bytes", "peak_reserved_bytes", "fragmentation_bytes", "kv_cache_bytes"),
    "predicted_peak_bytes",
    *("num_alloc_retries", "sample_interval_p50_s", "sample_interval_p99_s", "eos_at", "output_sha256"),
    *("prompt_sha256", "first_divergence", "error_type", "error_message", "oom_token_index"),
    *("oom_requested_bytes", "oom_free_bytes"),
)
#: What names an attempt in the long tables. The kind belongs to it: a cell runs once on every kind of device.
_NAME = ("cell_id", "attempt", "device_kind")
_PLACE = "rank_place"


def attempts(view: View) -> pl.DataFrame:
    """One row per attempt, columns as in docs/tables.md: everything that the journal knows of it but its series.

    `final`: the last attempt of its cell on its kind of device, the one that
    counts. `started_at`: UTC. `first_divergence` and its company: see `divergence`; `noisy` and its: see `with_noise`.
    """
    known = pl.col("device_kind").is_not_null()
    last = pl.col("attempt") == pl.col("attempt").max().over("cell_id", "device_kind")
    return (
        view.light.join(divergence(view), on="row", how="left", maintain_order="left")
        .with_columns(
            final=last & (known | ~known.any().over("cell_id")),
            started_at=started_at(),
            roofline_fraction=roofline_fraction(),
            fragmentation_bytes=pl.coalesce(
                pl.col("oom_reserved_bytes") - pl.col("oom_allocated_bytes"),
                pl.col("peak_reserved_bytes") - pl.col("peak_allocated_bytes"),
            ),
        )
        .pipe(with_noise)
        .select(*_FIRST, pl.exclude(*_FIRST))
    )


def roofline_fraction() -> pl.Expr:
    """Against the median bandwidth of the kind of device in this run: a copy is short, and what disturbs it in one cell
    must not make two modes unlike."""
    bandwidth = pl.col("copy_bandwidth_bytes_per_s")
    return pl.col("roofline_fraction") * bandwidth / bandwidth.median().over("device_kind")


def duplicates(view: View) -> pl.DataFrame:
    """One row per result that came twice and does not count."""
    return view.duplicates.with_columns(started_at=started_at())


def started_at() -> pl.Expr:
    """The journal's seconds since 1970 as a time, UTC."""
    return pl.from_epoch((pl.col("started_at") * 1e6).cast(pl.Int64), time_unit="us").dt.replace_time_zone(
        "UTC"
    )


def samples(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Every change of a meter's value: `t_s` since the child's start."""
    return _exploded(rows, SAMPLE_COLUMNS).select(
        "cell_id", "attempt", "t_s", "device_used_bytes", "process_used_bytes", "device_kind"
    )


def steps(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Checkpoints along the new tokens: `t_s` since the child's start."""
    return _exploded(rows, STEP_COLUMNS).select(
        *("cell_id", "attempt", "token_index", "t_s", "allocated_bytes", "reserved_bytes", "kv_cache_bytes"),
        "device_kind",
    )


def devices(rows: pl.LazyFrame) -> pl.LazyFrame:
    """One row per device of each attempt at a cell on several: its peaks, and how its process ended."""
    place = pl.int_ranges(pl.col(next(iter(RANK_COLUMNS))).list.len()).alias(_PLACE)
    return _exploded(rows.with_columns(place), {_PLACE: "rank", **RANK_COLUMNS}).select(
        *_NAME, "rank", *RANK_COLUMNS.values()
    )


def _exploded(rows: pl.LazyFrame, columns: dict[str, str]) -> pl.LazyFrame:
    # No filter on the lists beforehand: the Parquet reader would decode them twice.
    return (
        rows.select(*_NAME, *columns).explode(*columns, empty_as_null=False, keep_nulls=False).rename(columns)
    )
