"""Sizes that the engines use and the memory predictions read. Free of torch, so that both can import it."""

#: Eager engine, streaming and window: prompt tokens read in one pass, unless the cell says otherwise.
STREAMING_CHUNK = 128
#: Scoring: tokens read in one pass, unless the cell says otherwise.
SCORE_CHUNK = 128
#: Eager engine, recompute: tokens of all windows that one pass reads together.
RECOMPUTE_TOKENS = 4096
#: Graph engine: tokens in one block of the full cache.
BLOCK = 64
#: Graph engine: free slots of a ring beside what a query sees. Drafted tokens and the prefill chunk fit in it. It is the
#: same for plain and speculative decoding: the same keys in the same slots, hence the same sums, bit for bit.
RING_SLACK = 127
#: Graph engine: prompts of fewer chunks are not captured, as a capture runs the chunk once more.
CHUNKS_WORTH_A_GRAPH = 4
#: Width of the buckets in which scores are summed: `SCORE_FINE` positions up to `SCORE_COARSE_FROM`, then `SCORE_COARSE`.
SCORE_FINE, SCORE_COARSE, SCORE_COARSE_FROM = 128, 4096, 65536
