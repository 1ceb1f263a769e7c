"""What the graph engine asks of a cache of one model. `full_cache`, `ring`, `packed_cache` and `by_window` implement it."""

from collections.abc import Callable
from typing import Protocol, Self

import torch

from workers.engines.graph.rope import Angles
from workers.engines.graph.weights import Attention
from workers.modes import Context


class AttentionKernels(Protocol):
    """Those of `kernels.Kernels` that caches call: each kind of cache its own."""

    @property
    def attend_ring(self) -> Callable[..., torch.Tensor]: ...

    @property
    def attend_blocks(self) -> Callable[..., torch.Tensor]: ...

    @property
    def attend_packed(self) -> Callable[..., torch.Tensor]: ...

    @property
    def attend_latent_ring(self) -> Callable[..., torch.Tensor]: ...

    @property
    def attend_latent_blocks(self) -> Callable[..., torch.Tensor]: ...


class GraphCache(Protocol):
    """Keys and values of all layers. `B` sequences, which all stand at the same position."""

    @property
    def grows(self) -> bool:
        """Whether its memory grows with the length."""

    @property
    def context(self) -> Context | None:
        """What a query sees. None: every token."""

    @property
    def far_limit(self) -> int:
        """The largest position of a query relative to the first tokens: at position t it is min(t, far_limit)."""

    def reserve(self, tokens: int) -> None:
        """Allocate what is missing for `tokens` tokens. Raises torch.OutOfMemoryError, the cache still usable."""

    def fill(self, first: int, end: int) -> None:
        """Hold finite noise for the positions `first .. end`, as if they had been read. They are reserved."""

    def copy_from(self, one: Self, tokens: int) -> None:
        """Hold in each sequence what `one`, a cache of one sequence, holds of its first `tokens` tokens. Raises
        torch.OutOfMemoryError."""

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
        """Write the keys and values of positions `start .. start + M` and attend over what they see: [B, M, H * D].

        Of latents both are the row of a token as the model's matrix gave it, neither normed nor rotated.
        """

    def nbytes(self) -> int:
        """Bytes of the keys and values in memory now."""

    def clear(self) -> None:
        """Give back what grows."""
