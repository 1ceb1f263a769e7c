"""Two-sided 95 % quantiles of Student's t."""

import math
import statistics
from collections.abc import Sequence

#: By degrees of freedom, from 1; beyond, the normal one is within 5 %.
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145),
    *(2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048),
    *(2.045, 2.042),
)
NORMAL95 = 1.96


def half_width(values: Sequence[float]) -> float | None:
    """Return half of the 95 % interval of the mean. None for fewer than two values."""
    freedom = len(values) - 1
    if freedom < 1:
        return None
    t = T95[freedom - 1] if freedom <= len(T95) else NORMAL95
    return t * statistics.stdev(values) / math.sqrt(len(values))
