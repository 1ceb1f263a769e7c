"""A prompt is read in chunks of one length; the first is shorter where they do not fill the prompt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from workers.engines.graph.model import CachedModel


@dataclass(frozen=True, slots=True)
class Prefill:
    """`last_BE`: the target's residual stream at the end of what was read. `chunk`: tokens of a pass at most.

    `readers`: the models that read it, the target last. A draft reads each chunk beside the target, so that both caches
    tell how far a prompt came.

    `synthetic`: only the first chunk and the last are read; caches hold noise for those between. Memory is the same: it
    depends on blocks and on the largest pass. What is generated then means nothing.
    """

    readers: tuple[CachedModel, ...]
    prompt_tokens: int
    chunk: int
    start: torch.Tensor
    last_BE: torch.Tensor
    synthetic: bool

    def read(
        self, prompt_BT: torch.Tensor, note: Callable[[int], None] = lambda read: None, kept: int = 0
    ) -> None:
        """`prompt_BT`: int64 on the device. Full caches grow chunk by chunk. `note`: is told how many tokens have been
        read, from `kept` on, which the caches hold already.
        """
        tokens = prompt_BT.shape[1]
        note(kept)
        for first, end in chunks(kept, tokens, self.chunk):
            for reader in self.readers:
                reader.cache.reserve(end)
            if self.synthetic and first > 0 and end < tokens:
                for reader in self.readers:
                    reader.cache.fill(first, end)
                note(end)
                continue
            self.start.fill_(first)
            for reader in self.readers:
                x_BME = reader.prefill(prompt_BT[:, first:end], self.start, alone=end - first == tokens)
            self.last_BE.copy_(x_BME[:, -1])
            del x_BME  # held on to, it keeps a segment of the allocator from becoming the next block
            note(end)


def new_prefill(
    readers: tuple[CachedModel, ...], batch: int, prompt_tokens: int, chunk: int, *, synthetic: bool
) -> Prefill:
    weights = readers[-1].weights
    start = torch.tensor(0, device=weights.device)
    last_BE = torch.empty(batch, weights.embedding_VE.shape[1], dtype=weights.dtype, device=weights.device)
    return Prefill(readers, prompt_tokens, chunk, start, last_BE, synthetic)


def chunks(kept: int, tokens: int, chunk: int) -> Iterator[tuple[int, int]]:
    """(first, end) of each chunk of the tokens behind `kept`, in their order."""
    end = kept + (tokens - kept - 1) % chunk + 1
    yield kept, end
    for first in range(end, tokens, chunk):
        yield first, first + chunk
