"""Which experts a token has, and their shares of it: `weights.Routing` in plain torch and in Triton."""

import torch

from workers.engines.graph.kernels.jit import jit, power_of_two, tl
from workers.engines.graph.weights import Experts, Routing
from workers.engines.shared.rope import working


def chosen(scores_NX: torch.Tensor, experts: Experts) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each row, best first, the first of equals; and their shares, in working precision. [N, top] both."""
    routing = experts.routing
    scores_NX = scores_NX.to(working(scores_NX.dtype))
    if routing.sigmoid:
        scores_NX = scores_NX.sigmoid()
    best_NX = scores_NX if routing.bias_X is None else scores_NX + routing.bias_X
    if routing.groups is not None:
        best_NX = _within_groups(best_NX, *routing.groups)
    expert_NS = best_NX.argsort(dim=-1, descending=True, stable=True)[:, : experts.top]
    if routing.over_all:
        share_NS = (scores_NX if routing.sigmoid else scores_NX.softmax(-1)).gather(1, expert_NS)
    elif routing.sigmoid:
        share_NS = scores_NX.gather(1, expert_NS)
        share_NS = share_NS / (share_NS.sum(-1, keepdim=True) + LEAST)
    else:
        share_NS = scores_NX.gather(1, expert_NS).softmax(-1)
    return expert_NS, share_NS * routing.scale


#: Added to a sum of sigmoids, so that it is never zero.
LEAST = 1e-20


def _within_groups(best_NX: torch.Tensor, groups: int, kept: int, counted: int) -> torch.Tensor:
    """The scores, -inf outside the best groups."""
    best_NGX = best_NX.unflatten(1, (groups, -1))
    worth_NG = best_NGX.topk(counted, dim=-1).values.sum(-1)
    group_NK = worth_NG.argsort(dim=-1, descending=True, stable=True)[:, :kept]
    out_NG = torch.ones_like(worth_NG, dtype=torch.bool).scatter_(1, group_NK, False)
    return best_NGX.masked_fill(out_NG[..., None], -torch.inf).flatten(1)


def routing_constants(routing: Routing) -> tuple[float, ...]:
    """What `choice` knows when it is compiled."""
    groups, kept, counted = routing.groups or (0, 0, 0)
    return (
        *(routing.over_all, routing.sigmoid, routing.bias_X is not None),
        *(groups, kept, counted, power_of_two(max(groups, 1))),
        *(routing.scale, LEAST),
    )


@jit
def _order(score_X, x_X, kind: tl.constexpr):
    """Of scores that have 16 bits: integers in their order, the first of equals above the others."""
    bits_X = (score_X + 0.0).to(kind).to(tl.int16, bitcast=True).to(tl.int32)
    return (bits_X ^ ((bits_X >> 15) & 0x7FFF)) * 65536 + (65535 - x_X)


@jit
def _kept_by_group(
    before_XX, best_X, X: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr, COUNTED: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """1 for each expert of the best groups, 0 for the others."""
    SIZE: tl.constexpr = X // GROUPS
    x, g = tl.arange(0, BLOCK_X), tl.arange(0, BLOCK_G)
    beside_XX = (x[None, :] // SIZE) == (x[:, None] // SIZE)
    place_X = tl.sum((before_XX & beside_XX).to(tl.int32), axis=1)
    member_GX = (x[None, :] // SIZE == g[:, None]) & (x < X)[None, :]
    worth_G = tl.sum(tl.where(member_GX & (place_X < COUNTED)[None, :], best_X[None, :], 0.0), axis=1)
    worth_G = tl.where(g < GROUPS, worth_G, float("-inf"))
    better_GG = (worth_G[None, :] > worth_G[:, None]) | (
        (worth_G[None, :] == worth_G[:, None]) & (g[None, :] < g[:, None])
    )
    rank_G = tl.sum(better_GG.to(tl.int32), axis=1)
    return tl.sum((member_GX & (rank_G < KEPT)[:, None]).to(tl.int32), axis=0)


@jit
def choice(
    scores, correction, row, slot, X: tl.constexpr, TOP: tl.constexpr, ROUTING: tl.constexpr, BLOCK_X: tl.constexpr
):  # fmt: skip
    """The expert of a row at place `slot`, best first, the first of equals; and its share. `chosen`. ROUTING: `routing_constants`."""
    OVER_ALL: tl.constexpr = ROUTING[0]
    SIGMOID: tl.constexpr = ROUTING[1]
    CORRECTED: tl.constexpr = ROUTING[2]
    GROUPS: tl.constexpr = ROUTING[3]
    x = tl.arange(0, BLOCK_X)
    # Twice, as rows and as columns: what is reduced along one axis is not laid out along the other.
    own_X = tl.load(scores + row * X + x, mask=x < X, other=float("-inf")).to(tl.float32)
    other_X = tl.load(scores + row * X + x, mask=x < X, other=float("-inf")).to(tl.float32)
    if SIGMOID:
        own_X = tl.where(x < X, tl.sigmoid(own_X), float("-inf"))
        other_X = tl.where(x < X, tl.sigmoid(other_X), float("-inf"))
    best_X, best_other_X = own_X, other_X
    if CORRECTED:
        best_X += tl.load(correction + x, mask=x < X, other=float("-inf")).to(tl.float32)
        best_other_X += tl.load(correction + x, mask=x < X, other=float("-inf")).to(tl.float32)
    if scores.dtype.element_ty.primitive_bitwidth == 16 and not SIGMOID:
        kind: tl.constexpr = scores.dtype.element_ty
        before_XX = _order(best_other_X, x, kind)[None, :] > _order(best_X, x, kind)[:, None]
    else:
        before_XX = (best_other_X[None, :] > best_X[:, None]) | (
            (best_other_X[None, :] == best_X[:, None]) & (x[None, :] < x[:, None])
        )
    if GROUPS > 0:
        kept_X = _kept_by_group(before_XX, best_X, X, GROUPS, ROUTING[4], ROUTING[5], ROUTING[6], BLOCK_X)
        rank_X = tl.sum((before_XX & (kept_X > 0)[None, :]).to(tl.int32), axis=1)
        rank_X = tl.where(kept_X > 0, rank_X, X)
    else:
        rank_X = tl.sum(before_XX.to(tl.int32), axis=1)
    expert = tl.minimum(tl.sum(tl.where(rank_X == slot, x, 0), axis=0), X - 1)
    power_X = own_X if SIGMOID else tl.exp(own_X - tl.max(own_X, axis=0))
    share = tl.sum(tl.where(rank_X == slot, power_X, 0.0), axis=0)
    if SIGMOID and not OVER_ALL:
        share /= tl.sum(tl.where(rank_X < TOP, power_X, 0.0), axis=0) + ROUTING[8]
    elif not SIGMOID:
        share /= tl.sum(power_X if OVER_ALL else tl.where(rank_X < TOP, power_X, 0.0), axis=0)
    return expert, share * ROUTING[7]
