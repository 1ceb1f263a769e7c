"""One pass of a model: read M tokens into its cache, give the logits. x: the residual stream.

qkv = linear(norm(x))              one launch, together with the MLP's `up` where the residual is parallel
qkv = norm_heads(qkv)              where queries and keys are normed; of latents q and the latent's row, and q may be made in two
a   = attend(qkv, cache)           writes the new keys, reads what may be seen
x   = x + down_proj(a, mlp)        summed over the processes that hold the model; a and the MLP's output in one launch where the residual is parallel; where what is
                                   added is normed, `down_proj` and `add_normed`; of a mixture, `experts`
"""

from dataclasses import dataclass, replace

import torch

from workers.engines.graph.cache import GraphCache
from workers.engines.graph.kernels import ALONE, OF_CHUNKS, PLAIN, Kernels
from workers.engines.graph.kernels.down_proj import Parts
from workers.engines.graph.kernels.linear import Job
from workers.engines.graph.kernels.residual import Residual
from workers.engines.graph.weights import Attention, Experts, Layer, Linear, Mlp, Norm, Weights


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model, its cache, and the kernels of its short passes."""

    weights: Weights
    cache: GraphCache
    kernels: Kernels

    def read(self, tokens_BM: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Logits [B * M, V] after each of the tokens, which sit at `start .. start + M` (a scalar on the device)."""
        x = _residual(self.weights, self.cache, self.kernels, tokens_BM, start)
        return self._capped(self._whole(self.kernels.head(x, self.weights.final_norm, self.weights.head)))

    def prefill(self, tokens_BM: torch.Tensor, start: torch.Tensor, *, alone: bool) -> torch.Tensor:
        """The residual stream [B, M, E] at the end of a chunk of a prompt. `alone`: nothing comes before it, ever."""
        kernels = (ALONE if alone else OF_CHUNKS)[self.kernels.name]
        x = _residual(self.weights, self.cache, kernels, tokens_BM, start)
        return x.x_NE.view(*tokens_BM.shape, -1)

    def logits(self, x_NE: torch.Tensor) -> torch.Tensor:
        return self._capped(
            self._whole(PLAIN.head(Residual(x_NE), self.weights.final_norm, self.weights.head))
        )

    def _whole(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """The logits of the whole vocabulary, where the output matrix here gives a part of them."""
        peers = self.weights.peers
        return logits_NV if peers is None or not self.weights.shares_head else peers.gather(logits_NV)

    def _capped(self, logits_NV: torch.Tensor) -> torch.Tensor:
        cap, scale = self.weights.logit_cap, self.weights.logit_scale
        if scale != 1.0:
            logits_NV = logits_NV.mul_(scale)
        return logits_NV if cap is None else logits_NV.div_(cap).tanh_().mul_(cap)


def _residual(
    weights: Weights, cache: GraphCache, kernels: Kernels, tokens_BM: torch.Tensor, start: torch.Tensor
) -> Residual:
    B, M = tokens_BM.shape
    x, turns = kernels.embed(weights, tokens_BM, start, cache.far_limit)
    for index, layer in enumerate(weights.layers):
        how = layer.attention

        def attend(*qkv: torch.Tensor, index: int = index, how: Attention = how) -> torch.Tensor:
            q, k, v = _heads(weights, _normed(kernels, qkv, how), B, M)
            return cache.attend(kernels, index, q, k, v, start, turns[how.rope], how).view(B * M, -1)

        if weights.parallel and isinstance(layer.mlp, Mlp):
            qkv, fed = kernels.linear(
                x,
                (
                    Job(layer.attention_norm, layer.qkv[0]),
                    Job(layer.mlp_norm, layer.mlp.up, weights.activation),
                ),
            )
            x = _sum(kernels, weights, x, ((attend(qkv), layer.out), (fed, layer.mlp.down)))
        else:
            qkvs = kernels.linear(x, tuple(Job(layer.attention_norm, matrix) for matrix in layer.qkv))
            x = _add(kernels, weights, x, attend(*qkvs), layer.out, layer.attention_out)
            x = _feed(kernels, x, layer, weights)
    return x


def _normed(kernels: Kernels, qkv: tuple[torch.Tensor, ...], how: Attention) -> tuple[torch.Tensor, ...]:
    if how.latent is not None:
        q, row = qkv
        if how.latent.query_up is not None:
            norm, up = how.latent.query_up
            q = kernels.down_proj(None, ((kernels.norm(q, norm), up),)).x_NE
        return q, row
    if how.q_norm is None or how.k_norm is None:
        return qkv
    q, k, v = qkv
    return *kernels.norm_heads(q, k, how.q_norm, how.k_norm), v


def _sum(kernels: Kernels, weights: Weights, x: Residual | None, parts: Parts) -> Residual:
    """The products of all processes that hold the model, added to x."""
    if weights.peers is None:
        return kernels.down_proj(x, parts, weights.added_scale)
    return kernels.add_shards(x, kernels.down_proj(None, parts, weights.added_scale), weights.peers)


def _add(
    kernels: Kernels, weights: Weights, x: Residual, y_NI: torch.Tensor, down: Linear, norm: Norm | None
) -> Residual:
    if norm is None:
        return _sum(kernels, weights, x, ((y_NI, down),))
    return kernels.add_normed(x, _sum(kernels, weights, None, ((y_NI, down),)), norm)


def _feed(kernels: Kernels, x: Residual, layer: Layer, weights: Weights) -> Residual:
    """The stream with what its MLP, or its experts, add."""
    mlp, activation = layer.mlp, weights.activation
    if isinstance(mlp, Experts):
        shared = None if mlp.shared is None else _feed(kernels, x, replace(layer, mlp=mlp.shared), weights)
        return kernels.experts(x, layer.mlp_norm, mlp, activation, shared)
    if mlp.gate is None:
        (fed_NI,) = kernels.linear(x, (Job(layer.mlp_norm, mlp.up, activation),))
    else:
        fed_NI = kernels.gated_mlp(x, layer.mlp_norm, mlp.gate, mlp.up, activation)
    return _add(kernels, weights, x, fed_NI, mlp.down, layer.mlp_out)


def _heads(weights: Weights, qkv: tuple[torch.Tensor, ...], B: int, M: int) -> tuple[torch.Tensor, ...]:
    """q [B, M, H, D], k and v [B, M, K, D], as views; GPT-NeoX stores q, k, v of a head side by side; a latent's row is both."""
    if len(qkv) == 1:
        return tuple(qkv[0].view(B, M, weights.heads, 3, weights.head_dim).unbind(3))
    if len(qkv) == 2:
        q, row = qkv
        return q.view(B, M, -1, weights.head_dim), *[row.view(B, M, 1, -1)] * 2
    return tuple(x.view(B, M, -1, weights.head_dim) for x in qkv)
