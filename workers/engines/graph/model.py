"""One pass of a model: read M tokens into its cache, give the logits.

h   = norm(x)                      x: the residual stream, [N, E]
qkv = linear(h)                    one launch, together with the MLP's `up` where the residual is parallel
a   = attend(qkv, cache)           writes the new keys, reads what may be seen
x   = add_norm(x + down_proj(a, mlp))      a and the MLP's output in one launch where the residual is parallel
"""

from dataclasses import dataclass

import torch

from workers.engines.graph.cache import GraphCache
from workers.engines.graph.kernels import OF_CHUNKS, PLAIN, Kernels
from workers.engines.graph.kernels.linear import Job
from workers.engines.graph.weights import Layer, Linear, Norm, Weights
from workers.engines.shared.rope import working


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model, its cache, and the kernels of its short passes."""

    weights: Weights
    cache: GraphCache
    kernels: Kernels

    def read(self, tokens_BM: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Logits [B * M, V] after each of the tokens, which sit at `start .. start + M` (a scalar on the device)."""
        normed_NE = _hidden(self.weights, self.cache, self.kernels, tokens_BM, start)
        return self.kernels.head(normed_NE, self.weights.head)

    def prefill(self, tokens_BM: torch.Tensor, start: torch.Tensor, *, alone: bool) -> torch.Tensor:
        """The final norm's output [B, M, E] for a chunk of a prompt. `alone`: nothing comes before it, ever."""
        kernels = PLAIN if alone else OF_CHUNKS[self.kernels.name]
        return _hidden(self.weights, self.cache, kernels, tokens_BM, start).view(*tokens_BM.shape, -1)

    def logits(self, normed_NE: torch.Tensor) -> torch.Tensor:
        return PLAIN.head(normed_NE, self.weights.head)


def _hidden(
    weights: Weights, cache: GraphCache, kernels: Kernels, tokens_BM: torch.Tensor, start: torch.Tensor
) -> torch.Tensor:
    B, M = tokens_BM.shape
    x_NE, turn = kernels.embed(weights, tokens_BM, start, cache.far_limit)
    nothing_SNE = x_NE.new_empty((0, *x_NE.shape), dtype=working(x_NE.dtype))
    x_NE, normed = kernels.add_norm(x_NE, nothing_SNE, (), _norms(weights, 0))
    for index, layer in enumerate(weights.layers):
        following = _norms(weights, index + 1)

        def attend(qkv: tuple[torch.Tensor, ...], index: int = index) -> torch.Tensor:
            q, k, v = _heads(weights, qkv, B, M)
            return cache.attend(kernels, index, q, k, v, start, turn).view(B * M, -1)

        if weights.parallel:
            qkv_up = kernels.linear(
                (Job(normed[0], layer.qkv[0]), Job(normed[1], layer.up, weights.activation))
            )
            both = ((attend(qkv_up[:1]), layer.out), (qkv_up[1], layer.down))
            x_NE, normed = kernels.add_norm(x_NE, kernels.down_proj(both), _biases(both), following)
        else:
            qkv = kernels.linear(tuple(Job(normed[0], matrix) for matrix in layer.qkv))
            attended = ((attend(qkv), layer.out),)
            x_NE, normed = kernels.add_norm(
                x_NE, kernels.down_proj(attended), _biases(attended), (layer.mlp_norm,)
            )
            fed = ((_mlp(kernels, normed[0], layer, weights.activation), layer.down),)
            x_NE, normed = kernels.add_norm(x_NE, kernels.down_proj(fed), _biases(fed), following)
    return normed[0]


def _norms(weights: Weights, index: int) -> tuple[Norm, ...]:
    """What is taken of the residual before layer `index`, or before the head."""
    if index == len(weights.layers):
        return (weights.final_norm,)
    layer = weights.layers[index]
    return (layer.attention_norm, layer.mlp_norm) if weights.parallel else (layer.attention_norm,)


def _biases(parts: tuple[tuple[torch.Tensor, Linear], ...]) -> tuple[torch.Tensor, ...]:
    return tuple(linear.bias_O for _, linear in parts if linear.bias_O is not None)


def _mlp(kernels: Kernels, normed_NE: torch.Tensor, layer: Layer, activation: str) -> torch.Tensor:
    if layer.gate is None:
        return kernels.linear((Job(normed_NE, layer.up, activation),))[0]
    return kernels.gated_mlp(normed_NE, layer.gate, layer.up, activation)


def _heads(weights: Weights, qkv: tuple[torch.Tensor, ...], B: int, M: int) -> tuple[torch.Tensor, ...]:
    """q [B, M, H, D], k and v [B, M, K, D], as views; GPT-NeoX stores q, k, v of a head side by side."""
    if len(qkv) == 1:
        return tuple(qkv[0].view(B, M, weights.heads, 3, weights.head_dim).unbind(3))
    return tuple(x.view(B, M, -1, weights.head_dim) for x in qkv)
