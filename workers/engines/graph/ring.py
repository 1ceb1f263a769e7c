"""The ring cache: S sinks, then a ring of slots, allocated once (`workers.engines.shared.slots`).

Window keys are rotated once, at their absolute position; sink keys at 0 .. S - 1; nothing is ever rotated again.
StreamingLLM: arXiv:2309.17453.
"""

from typing import Self

import torch

from workers.engines.graph.cache import AttentionKernels
from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Attention, Weights
from workers.engines.shared.slots import RingSlots
from workers.modes import Context


class RingCache:
    """k and v [L, B, K, S + P, D], allocated once. A slot never written reads as zeros, which no query sees. Latents are
    their own values: their v is empty."""

    grows = False

    def __init__(self, weights: Weights, batch: int, ring: RingSlots, layers: int) -> None:
        """Of `layers` of the model."""
        self.ring = ring
        shape = (layers, batch, weights.kv_heads, ring.total)
        self.k_LBKCD, self.v_LBKCD = (
            torch.zeros(*shape, width, dtype=weights.dtype, device=weights.device)
            for width in weights.kept_dims
        )
        groups = max(16, ring.longest_pass)  # at least one token of a pass in each
        self.arrived = torch.zeros(
            batch * weights.kv_heads * groups, dtype=torch.int32, device=weights.device
        )

    @property
    def context(self) -> Context:
        return Context(self.ring.sinks, self.ring.window)

    @property
    def far_limit(self) -> int:
        return self.ring.far_limit

    def reserve(self, tokens: int) -> None:
        """Room for any number of tokens is there from the start."""

    def fill(self, first: int, end: int) -> None:
        """Hold finite noise for the positions `first .. end`, as if they had been read, in every slot of the ring."""
        for cache in (self.k_LBKCD, self.v_LBKCD):
            cache[:, :, :, self.ring.sinks :].normal_()

    def copy_from(self, one: Self, tokens: int) -> None:
        self.k_LBKCD.copy_(one.k_LBKCD)
        self.v_LBKCD.copy_(one.v_LBKCD)

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
        attend = kernels.attend_ring if how.latent is None else kernels.attend_latent_ring
        return attend(q_BMHD, k_BMKD, v_BMKD, self, layer, start, angles, how)

    def nbytes(self) -> int:
        return self.k_LBKCD.nbytes + self.v_LBKCD.nbytes

    def clear(self) -> None:
        """Nothing to give back; what is stale is told from the counter."""
