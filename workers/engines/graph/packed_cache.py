"""A cache whose older keys and values have fewer bits: the full cache, or sinks and a window of it.

KIVI (Liu et al., arXiv:2402.02750): of keys a scale for each channel, over the tokens of a block; of values one for each token;
the newest tokens in the model's dtype. What a query sees depends on its position alone, whatever the passes: at position t
the tokens of blocks t // 64 - 1 and t // 64 as the model computed them, older ones packed, sinks as computed.
So plain and speculative decoding, and prompts in any chunks, read the same numbers.
"""

from dataclasses import dataclass
from typing import Self

import torch

from workers.engines.graph.block_pool import BlockPool
from workers.engines.graph.cache import AttentionKernels
from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Attention, Weights
from workers.engines.shared.slots import RingSlots
from workers.engines.sizes import BLOCK, RECENT_BLOCKS, SLAB_BLOCKS, packed_blocks, packed_ring_blocks
from workers.kv_dtype import StoredAs
from workers.modes import Context


@dataclass(frozen=True, slots=True)
class Group:
    """Where what belongs to one block of one head lies, in bytes from its beginning."""

    size: int
    v_codes: int
    k_scales: int
    k_zeros: int
    v_scales: int
    v_zeros: int


def group_of(stored: StoredAs, head_dim: int, width: int) -> Group:
    codes = BLOCK * head_dim * stored.bits // 8
    zeros = 1 if stored.has_zeros else 0
    k_scales = 2 * codes
    v_scales = k_scales + (1 + zeros) * head_dim * width
    return Group(
        size=stored.group_bytes(head_dim, width),
        v_codes=codes,
        k_scales=k_scales,
        k_zeros=k_scales + zeros * head_dim * width,
        v_scales=v_scales,
        v_zeros=v_scales + zeros * BLOCK * width,
    )


class PackedCache:
    """Packed blocks: bytes [L, B, K, group], found through a table of addresses on the device. Of the newest blocks keys and
    values [L, 2, B, K, 192, D], block b at b mod 3; of sinks [L, 2, B, K, S, D].

    `ring`: sinks and window, allocated once, block b in the table at b mod its length. None: every token; blocks are
    allocated eight at a time as they are needed.
    """

    def __init__(
        self,
        weights: Weights,
        batch: int,
        most_tokens: int,
        layers: int,
        stored: StoredAs,
        ring: RingSlots | None = None,
    ) -> None:
        self.stored, self.ring, self.batch, self.kv_heads = stored, ring, batch, weights.kv_heads
        self.head_dim, self.dtype, self.device = weights.head_dim, weights.dtype, weights.device
        self.group = group_of(stored, weights.head_dim, weights.dtype.itemsize)
        self.layers = layers
        self.most_tokens = most_tokens
        self.pool = BlockPool(weights.device)
        self.slabs: list[torch.Tensor] = []
        places = packed_blocks(most_tokens) if ring is None else packed_ring_blocks(ring.window)
        self.places = max(1, places)
        self.table = torch.zeros(self.places + 1, dtype=torch.int64, device=weights.device)
        shape = (layers, 2, batch, weights.kv_heads)
        self.recent = torch.zeros(
            *shape, RECENT_BLOCKS * BLOCK, weights.head_dim, dtype=weights.dtype, device=weights.device
        )
        sinks = 0 if ring is None else ring.sinks
        self.sinks = torch.zeros(*shape, sinks, weights.head_dim, dtype=weights.dtype, device=weights.device)
        if ring is not None:
            self._add_slab(self.places)

    @property
    def grows(self) -> bool:
        return self.ring is None

    @property
    def context(self) -> Context | None:
        return None if self.ring is None else Context(self.ring.sinks, self.ring.window)

    @property
    def far_limit(self) -> int:
        return 2**62 if self.ring is None else self.ring.far_limit

    @property
    def sliding_window(self) -> int:
        """As many of the last tokens as a query sees, itself counted."""
        return 2**30 if self.ring is None else self.ring.sliding_window

    def reserve(self, tokens: int) -> None:
        """Allocate what is missing for `tokens` tokens. Raises torch.OutOfMemoryError, the cache still usable."""
        if self.ring is not None:
            return
        while len(self.slabs) * SLAB_BLOCKS < packed_blocks(min(tokens, self.most_tokens)):
            self._add_slab(SLAB_BLOCKS)

    def _add_slab(self, blocks: int) -> None:
        block_bytes = self.layers * self.batch * self.kv_heads * self.group.size
        slab = self.pool.zeros(blocks, block_bytes, dtype=torch.uint8)
        first = len(self.slabs) * SLAB_BLOCKS
        address = slab.data_ptr() + block_bytes * torch.arange(blocks, device=self.device)
        there = min(blocks, self.places - first)
        self.table[first : first + there] = address[:there]
        self.slabs.append(slab)

    def packed(self, block: int, layer: int) -> torch.Tensor:
        """[B, K, bytes] of a block of the text, as a view."""
        place = block % self.places
        slab, row = (0, place) if self.ring is not None else divmod(place, SLAB_BLOCKS)
        shape = (self.layers, self.batch, self.kv_heads, self.group.size)
        return self.slabs[slab][row].view(shape)[layer]

    def fill(self, first: int, end: int) -> None:
        """Hold finite noise for the positions `first .. end`, as if they had been read. They are reserved."""
        self.recent.normal_()
        scales = slice(self.group.k_scales, self.group.v_zeros + BLOCK * self.dtype.itemsize)
        begun = 0 if self.ring is not None else first // BLOCK // SLAB_BLOCKS
        for slab in self.slabs[begun:]:
            groups = slab.view(-1, self.group.size)
            groups.random_(64)  # of fp8: below 2, and never infinite
            groups[:, scales].view(self.dtype).fill_(2**-5)

    def copy_from(self, one: Self, tokens: int) -> None:
        self.reserve(tokens)
        self.recent.copy_(one.recent)
        self.sinks.copy_(one.sinks)
        for slab, source in zip(self.slabs, one.slabs, strict=True):
            sequences = (len(slab), self.layers, -1, self.kv_heads * self.group.size)
            slab.view(sequences).copy_(source.view(sequences))

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
        return kernels.attend_packed(q_BMHD, k_BMKD, v_BMKD, self, layer, start, angles, how)

    def nbytes(self) -> int:
        return self.recent.nbytes + self.sinks.nbytes + sum(slab.nbytes for slab in self.slabs)

    def clear(self) -> None:
        """Give back what grows."""
        if self.ring is None:
            self.slabs.clear()
