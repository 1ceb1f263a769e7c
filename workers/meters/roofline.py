"""Says which part of its device's memory bandwidth a decode used. Pure.

A decode can be no faster than the bytes that a step must read, over the bandwidth of a copy: the roofline (Williams,
Waterman, Patterson: Roofline, CACM 52(4), 2009). Two modes at different fractions of theirs are two engines more than
two modes.
"""

from collections.abc import Sequence
from itertools import pairwise

from workers.attempt import Measured, Step


def roofline_fraction(measured: Measured, steps: Sequence[Step], batch_size: int) -> float | None:
    """Return the time that the bytes of a step need at the bandwidth of a copy, over the time that a step took.

    A step reads `step_weights_bytes` and the KV cache, here its mean over the new tokens. With a draft a step is a
    round; the draft's cache is counted once of gamma times. None where a part of it is not known: the bandwidth, the
    speed, the cache, or which of its weights a step reads (several tokens of a mixture of experts).
    """
    cache = _mean_cache_bytes(steps)
    speed, bandwidth, weights = (
        measured.tokens_per_s,
        measured.copy_bandwidth_bytes_per_s,
        measured.step_weights_bytes,
    )
    if cache is None or not speed or not bandwidth or weights is None:
        return None
    step_s = (measured.tokens_per_step or 1.0) * batch_size / speed
    return (weights + cache) / bandwidth / step_s


def _mean_cache_bytes(steps: Sequence[Step]) -> float | None:
    """Over the tokens, by trapezoids between the checkpoints."""
    known = [(step.token_index, step.kv_cache_bytes) for step in steps if step.kv_cache_bytes is not None]
    if not known:
        return None
    if len(known) == 1 or known[-1][0] == known[0][0]:
        return float(known[-1][1])
    area = sum((b - a) * (low + high) / 2 for (a, low), (b, high) in pairwise(known))
    return area / (known[-1][0] - known[0][0])
