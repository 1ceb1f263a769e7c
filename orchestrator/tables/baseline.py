"""Which rows are the baseline that others are compared with."""

import polars as pl

from orchestrator import axes
from orchestrator.axes import VARIANT


def is_baseline() -> pl.Expr:
    """Every axis that tells curves apart has its usual value: the plain mode, with a cache as transformers keeps it."""
    return pl.all_horizontal(
        pl.col(name).eq_missing(pl.lit(value)) for name, value in axes.usual(*VARIANT).items()
    )
