"""What several kernels share: rotated rows, activations, one step of an online softmax."""

from workers.engines.graph.kernels.jit import jit, tl


@jit
def wait_for_previous(PDL: tl.constexpr):
    """Let the next kernel be set up; wait until the one before this one is done and its writes are seen.

    Every kernel waits before it writes, or reads what a kernel of its own pass writes, so the end of one is the end of
    all before it, however many of them are set up at once. The first kernel of a pass is launched without PDL: what an
    earlier pass wrote may be read before the wait.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@jit
def wait_before_next(PDL: tl.constexpr):
    """`wait_for_previous`, the other way round: what the kernels before this one wrote, the next one may read before it waits."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@jit
def load_rotated(
    x,
    offset_R,
    mask_R,
    cos,
    sin,
    angle_R,
    D: tl.constexpr,
    F: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[R, BLOCK_D] of rows at `x + offset_R`, rotated by angle row `angle_R`, rounded once. `rope.rotate`."""
    d = tl.arange(0, BLOCK_D)
    turned = d < 2 * F
    if INTERLEAVED:
        frequency, partner, is_first = d // 2, d + 1 - 2 * (d % 2), d % 2 == 0
    else:
        frequency, partner, is_first = tl.where(d < F, d, d - F), tl.where(d < F, d + F, d - F), d < F
    sign = tl.where(is_first, -1.0, 1.0)
    inside = mask_R[:, None] & (d < D)[None, :]
    within = mask_R[:, None] & turned[None, :]
    a = tl.load(x + offset_R[:, None] + d[None, :], mask=inside, other=0.0)
    b = tl.load(x + offset_R[:, None] + partner[None, :], mask=within, other=0.0)
    c = tl.load(cos + angle_R[:, None] * F + frequency[None, :], mask=within, other=1.0)
    s = tl.load(sin + angle_R[:, None] * F + frequency[None, :], mask=within, other=0.0)
    return (a.to(tl.float32) * c + sign[None, :] * b.to(tl.float32) * s).to(a.dtype)


@jit
def activate(y, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "tanh":
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    elif ACTIVATION == "silu":
        y = y * tl.sigmoid(y)
    elif ACTIVATION == "relu":
        y = tl.maximum(y, 0.0)
    return y


@jit
def empty_softmax(ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Peak, total and sum of rows that have seen nothing."""
    peak_R = tl.full((ROWS,), float("-inf"), tl.float32)
    return peak_R, tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, BLOCK_D), tl.float32)


@jit
def softmax_step(scores_RC, peak_R, total_R):
    """Of an online softmax: the new peak and total, what remains of the sum before, and the weights of these scores. A row that
    has seen nothing keeps peak -inf and total 0."""
    new_peak_R = tl.maximum(peak_R, tl.max(scores_RC, axis=1))
    level_R = tl.where(new_peak_R == float("-inf"), 0.0, new_peak_R)
    weight_RC = tl.exp(scores_RC - level_R[:, None])
    fade_R = tl.exp(peak_R - level_R)
    return new_peak_R, total_R * fade_R + tl.sum(weight_RC, axis=1), fade_R, weight_RC


@jit
def online_softmax(scores_RC, v_CD, peak_R, total_R, sum_RD):
    """`softmax_step`, and the new sum."""
    peak_R, total_R, fade_R, weight_RC = softmax_step(scores_RC, peak_R, total_R)
    sum_RD = sum_RD * fade_R[:, None]
    sum_RD = tl.dot(weight_RC.to(v_CD.dtype), v_CD, sum_RD, input_precision="ieee")
    return peak_R, total_R, sum_RD
