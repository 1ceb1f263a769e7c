"""Memory of the blocks of a cache that grows."""

from contextlib import nullcontext

import torch


class BlockPool:
    """Allocates blocks. On a GPU in a pool of their own within torch's allocator.

    In the common pool a block takes a part of what the last pass gave back, and the next pass needs new memory: the longer
    the prompt, the more is reserved and not used. Here the passes find their memory again, so that what a length needs
    does not depend on how it was reached.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.MemPool() if device.type == "cuda" else None

    def zeros(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Raises torch.OutOfMemoryError."""
        with nullcontext() if self._pool is None else torch.cuda.use_mem_pool(self._pool, self._device):
            return torch.zeros(shape, dtype=dtype, device=self._device)
