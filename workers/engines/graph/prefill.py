"""A prompt is read in chunks of one shape, the last one moved back over the one before it where it would be shorter.

A token that is read twice writes the same key to the same slot. So one captured graph reads a whole prompt into
rings: a chunk of 128 through Pythia-2.8B took more than 22 ms on an H100 launched one by one, 12.5 ms replayed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from workers.engines.graph.graphs import Stage
from workers.engines.graph.kernels.jit import ceil_div
from workers.engines.graph.model import CachedModel
from workers.engines.sizes import CHUNKS_WORTH_A_GRAPH


@dataclass(frozen=True, slots=True)
class Prefill:
    """`tokens_BM`: the chunk being read, which begins at `start`; `last_BE`: the target's final norm at its end.

    `readers`: the models that read it, the target last. A draft reads each chunk beside the target, so that both caches
    tell how far a prompt came.
    """

    readers: tuple[CachedModel, ...]
    prompt_tokens: int
    tokens_BM: torch.Tensor
    start: torch.Tensor
    last_BE: torch.Tensor
    stage: Stage

    @property
    def chunk(self) -> int:
        return self.tokens_BM.shape[1]

    def read(self, prompt_BT: torch.Tensor) -> None:
        """`prompt_BT`: int64 on the device, at least a chunk. Full caches grow chunk by chunk."""
        for first in starts(prompt_BT.shape[1], self.chunk):
            end = first + self.chunk
            for reader in self.readers:
                reader.cache.reserve(end)
            self.tokens_BM.copy_(prompt_BT[:, first:end])
            self.start.fill_(first)
            self.stage(end)

    @property
    def worth_a_graph(self) -> bool:
        """The pass over a growing cache differs from chunk to chunk."""
        chunks = ceil_div(self.prompt_tokens, self.chunk)
        return chunks >= CHUNKS_WORTH_A_GRAPH and not any(reader.cache.grows for reader in self.readers)


def new_prefill(readers: tuple[CachedModel, ...], batch: int, prompt_tokens: int, chunk: int) -> Prefill:
    """`chunk`: tokens of a pass, at most what the caches allow; a shorter prompt is one pass."""
    *drafts, target = readers
    weights = target.weights
    tokens_BM = torch.zeros(batch, min(chunk, prompt_tokens), dtype=torch.int64, device=weights.device)
    start = torch.tensor(0, device=weights.device)
    alone = tokens_BM.shape[1] == prompt_tokens
    last_BE = torch.empty(batch, weights.embedding_VE.shape[1], dtype=weights.dtype, device=weights.device)

    def read_chunk() -> None:
        for draft in drafts:
            draft.prefill(tokens_BM, start, alone=alone)
        last_BE.copy_(target.prefill(tokens_BM, start, alone=alone)[:, -1])

    return Prefill(readers, prompt_tokens, tokens_BM, start, last_BE, Stage(read_chunk))


def starts(prompt_tokens: int, chunk: int) -> Iterator[int]:
    """Where chunks begin. Each ends within the prompt; together they cover it."""
    for start in range(0, prompt_tokens, chunk):
        yield min(start, prompt_tokens - chunk)
