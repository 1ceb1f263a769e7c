"""One pass of a model: read M tokens into its cache, give the logits. x: the residual stream.

qkv = linear(norm(x))              one launch, together with the MLP's `up` where the residual is parallel
a   = attend(qkv, cache)           writes the new keys, reads what may be seen
x   = x + down_proj(a, mlp)        a and the MLP's output in one launch where the residual is parallel
"""

from dataclasses import dataclass

import torch

from workers.engines.graph.cache import GraphCache
from workers.engines.graph.kernels import ALONE, OF_CHUNKS, PLAIN, Kernels
from workers.engines.graph.kernels.linear import Job
from workers.engines.graph.kernels.residual import Residual
from workers.engines.graph.weights import Layer, Weights


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model, its cache, and the kernels of its short passes."""

    weights: Weights
    cache: GraphCache
    kernels: Kernels

    def read(self, tokens_BM: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Logits [B * M, V] after each of the tokens, which sit at `start .. start + M` (a scalar on the device)."""
        x = _residual(self.weights, self.cache, self.kernels, tokens_BM, start)
        return self.kernels.head(x, self.weights.final_norm, self.weights.head)

    def prefill(self, tokens_BM: torch.Tensor, start: torch.Tensor, *, alone: bool) -> torch.Tensor:
        """The residual stream [B, M, E] at the end of a chunk of a prompt. `alone`: nothing comes before it, ever."""
        kernels = (ALONE if alone else OF_CHUNKS)[self.kernels.name]
        x = _residual(self.weights, self.cache, kernels, tokens_BM, start)
        return x.x_NE.view(*tokens_BM.shape, -1)

    def logits(self, x_NE: torch.Tensor) -> torch.Tensor:
        return PLAIN.head(Residual(x_NE), self.weights.final_norm, self.weights.head)


def _residual(
    weights: Weights, cache: GraphCache, kernels: Kernels, tokens_BM: torch.Tensor, start: torch.Tensor
) -> Residual:
    B, M = tokens_BM.shape
    x, turn = kernels.embed(weights, tokens_BM, start, cache.far_limit)
    for index, layer in enumerate(weights.layers):

        def attend(*qkv: torch.Tensor, index: int = index) -> torch.Tensor:
            q, k, v = _heads(weights, qkv, B, M)
            return cache.attend(kernels, index, q, k, v, start, turn).view(B * M, -1)

        if weights.parallel:
            qkv, fed = kernels.linear(
                x,
                (Job(layer.attention_norm, layer.qkv[0]), Job(layer.mlp_norm, layer.up, weights.activation)),
            )
            x = kernels.down_proj(x, ((attend(qkv), layer.out), (fed, layer.down)))
        else:
            qkvs = kernels.linear(x, tuple(Job(layer.attention_norm, matrix) for matrix in layer.qkv))
            x = kernels.down_proj(x, ((attend(*qkvs), layer.out),))
            x = kernels.down_proj(x, ((_mlp(kernels, x, layer, weights.activation), layer.down),))
    return x


def _mlp(kernels: Kernels, x: Residual, layer: Layer, activation: str) -> torch.Tensor:
    if layer.gate is None:
        return kernels.linear(x, (Job(layer.mlp_norm, layer.up, activation),))[0]
    return kernels.gated_mlp(x, layer.mlp_norm, layer.gate, layer.up, activation)


def _heads(weights: Weights, qkv: tuple[torch.Tensor, ...], B: int, M: int) -> tuple[torch.Tensor, ...]:
    """q [B, M, H, D], k and v [B, M, K, D], as views; GPT-NeoX stores q, k, v of a head side by side."""
    if len(qkv) == 1:
        return tuple(qkv[0].view(B, M, weights.heads, 3, weights.head_dim).unbind(3))
    return tuple(x.view(B, M, -1, weights.head_dim) for x in qkv)
