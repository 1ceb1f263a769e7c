"""A cache for layers of several windows: one part for the layers of each.

A layer with a window of its own keeps a ring of it, without sinks, under every policy. The policy decides for the others.
"""

from dataclasses import dataclass
from typing import Self

import torch

from workers.engines.graph.cache import AttentionKernels, GraphCache
from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Attention
from workers.modes import Context


@dataclass(frozen=True, slots=True)
class CacheByWindow:
    """`parts`: the policy's own first, where there is one. `place_L`: of each layer its part, and which layer of it.
    `context`: of the layers without a window of their own, None where there is no such layer.
    """

    parts: tuple[GraphCache, ...]
    place_L: tuple[tuple[int, int], ...]
    context: Context | None

    @property
    def grows(self) -> bool:
        return any(part.grows for part in self.parts)

    @property
    def far_limit(self) -> int:
        return self.parts[0].far_limit

    def reserve(self, tokens: int) -> None:
        for part in self.parts:
            part.reserve(tokens)

    def fill(self, first: int, end: int) -> None:
        for part in self.parts:
            part.fill(first, end)

    def copy_from(self, one: Self, tokens: int) -> None:
        for part, source in zip(self.parts, one.parts, strict=True):
            part.copy_from(source, tokens)

    def attend(
        self,
        kernels: AttentionKernels,
        layer: int,
        q_BMHD: torch.Tensor,
        k_BMKD: torch.Tensor,
        v_BMKD: torch.Tensor,
        start: torch.Tensor,
        angles: Angles,
        how: Attention,
    ) -> torch.Tensor:
        part, place = self.place_L[layer]
        return self.parts[part].attend(kernels, place, q_BMHD, k_BMKD, v_BMKD, start, angles, how)

    def nbytes(self) -> int:
        return sum(part.nbytes() for part in self.parts)

    def clear(self) -> None:
        for part in self.parts:
            part.clear()
