"""Sizes that the engines use and the memory predictions read. Free of torch, so that both can import it."""

from workers.cell import Cell

#: Eager engine, constant memory: prompt tokens read in one pass, unless the cell says otherwise.
STREAMING_CHUNK = 128
#: Scoring: tokens read in one pass, unless the cell says otherwise.
SCORE_CHUNK = 128
#: Eager engine, recompute: tokens of all windows that one pass reads together.
RECOMPUTE_TOKENS = 4096
#: Graph engine: tokens in one block of the full cache.
BLOCK = 64
#: Graph engine, keys and values in fewer bits: blocks of newest tokens that are in the model's dtype, and blocks of older ones
#: that are allocated at once.
RECENT_BLOCKS, SLAB_BLOCKS = 3, 8
#: Graph engine: free slots of a ring beside what a query sees. Drafted tokens fit in it. It is the
#: same for plain and speculative decoding: the same keys in the same slots, hence the same sums, bit for bit.
RING_SLACK = 127
#: Graph engine: prompt tokens that one pass reads into a ring, unless the cell says otherwise.
RING_CHUNK = 2048
#: Graph engine, plain torch: queries of such a pass that are scored at once.
RING_QUERIES = 256
#: Graph engine, attention over latents: queries of a pass that are as wide as a latent at once.
LATENT_QUERIES = 256
#: Width of the buckets in which scores are summed: `SCORE_FINE` positions up to `SCORE_COARSE_FROM`, then `SCORE_COARSE`.
SCORE_FINE, SCORE_COARSE, SCORE_COARSE_FROM = 128, 4096, 65536


def eager_chunk(cell: Cell) -> int | None:
    """Tokens per pass while the eager engine reads a text. None: all of it at once, which needs memory that grows.

    A prompt in constant memory is read up to its last token before `generate` takes over, so a chunk is never larger.
    """
    if not cell.workload_spec.decodes:
        return cell.prefill_chunk or SCORE_CHUNK
    if cell.mode_spec.policy.grows:
        return cell.prefill_chunk
    return max(1, min(cell.prefill_chunk or STREAMING_CHUNK, cell.prompt_tokens - 1))


def eager_slack(cell: Cell) -> int:
    """Free slots of a ring in the eager engine: the largest pass of the cell fits, decoding or reading."""
    return max(cell.rows, eager_chunk(cell) or 1) - 1


def graph_slack(cell: Cell) -> int:
    """Free slots of a ring in the graph engine."""
    return max(cell.rows - 1, RING_SLACK)


def graph_chunk(cell: Cell, prompt_tokens: int, *, grows: bool) -> int:
    """Tokens per pass while the graph engine reads a text. `grows`: its cache grows with the text."""
    if not cell.workload_spec.decodes:
        return cell.prefill_chunk or SCORE_CHUNK
    return cell.prefill_chunk or (prompt_tokens if grows else RING_CHUNK)


def packed_blocks(tokens: int) -> int:
    """Graph engine, full cache in fewer bits: blocks that are packed once `tokens` tokens were read."""
    return max(0, (tokens - 1) // BLOCK - (RECENT_BLOCKS - 2))


def packed_ring_blocks(window: int) -> int:
    """Graph engine, ring in fewer bits: its packed blocks. `window`: tokens that a query sees before itself."""
    return -(-window // BLOCK) + 2
