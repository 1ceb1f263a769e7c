"""Which rows count for speeds, divergences and boundaries."""

import polars as pl

from workers.modes import WORKLOADS


def measures_speed() -> pl.Expr:
    """The workload is one whose runs count."""
    return pl.col("workload").is_in([name for name, workload in WORKLOADS.items() if workload.measures_speed])
