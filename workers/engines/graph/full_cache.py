"""The full cache: every token, in blocks of 64 tokens that are allocated as they are needed.

The kernel finds a block through a table of addresses on the device, so a captured graph sees a block that was
allocated after the capture, and running out of memory is a matter of need, not of an assumed maximum.
"""

from typing import Self

import torch

from workers.engines.graph.block_pool import BlockPool
from workers.engines.graph.cache import AttentionKernels
from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Attention, Weights
from workers.engines.sizes import BLOCK
from workers.modes import Context


class FullCache:
    """Blocks [L, 2, B, K, 64, D]: keys and values of 64 tokens in its layers, one allocation each. Of latents [L, 1, B, 1, 64, D]."""

    grows = True
    context: Context | None = None

    def __init__(self, weights: Weights, batch: int, most_tokens: int, layers: int) -> None:
        """Of `layers` of the model. `most_tokens`: what the run can need at most; sizes the table of addresses only, 8 bytes per block."""
        width, of_values = weights.kept_dims
        self.shape = (layers, 2 if of_values else 1, batch, weights.kv_heads, BLOCK, width)
        self.dtype, self.pool = weights.dtype, BlockPool(weights.device)
        self.blocks: list[torch.Tensor] = []
        self.most_tokens = most_tokens
        self.table = torch.zeros(-(-most_tokens // BLOCK) + 1, dtype=torch.int64, device=weights.device)

    @property
    def far_limit(self) -> int:
        return 2**62

    def reserve(self, tokens: int) -> None:
        """Allocate what is missing for `tokens` tokens. Raises torch.OutOfMemoryError, the cache still usable."""
        while len(self.blocks) * BLOCK < min(tokens, self.most_tokens):
            block = self.pool.zeros(*self.shape, dtype=self.dtype)
            self.table[len(self.blocks) : len(self.blocks) + 1].fill_(block.data_ptr())
            self.blocks.append(block)

    def fill(self, first: int, end: int) -> None:
        """Hold finite noise for the positions `first .. end`, as if they had been read. They are reserved."""
        whole = slice(-(-first // BLOCK), -(-end // BLOCK))  # one that is begun holds zeros behind
        for block in self.blocks[whole]:
            block.normal_()

    def copy_from(self, one: Self, tokens: int) -> None:
        self.reserve(tokens)
        for block, source in zip(self.blocks, one.blocks, strict=True):
            block.copy_(source)

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
        attend = kernels.attend_blocks if how.latent is None else kernels.attend_latent_blocks
        return attend(q_BMHD, k_BMKD, v_BMKD, self, layer, start, angles, how)

    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    def clear(self) -> None:
        """Give the blocks back."""
        self.blocks.clear()
