"""What the graph engine keeps alive: a full cache in blocks that are never copied, or a ring; a small
captured step.

Read off `workers.engines.graph`. Prompts are read in plain torch, into rings in passes of 128 tokens, into a full cache a
whole prompt in one pass unless the cell says otherwise.
"""

from orchestrator.predict.caches import kept_tokens, stored_as, token_bytes
from orchestrator.predict.device import Allocator
from orchestrator.predict.moment import Live, Moment, total
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.cell import Cell
from workers.engines.sizes import (
    BLOCK,
    LATENT_QUERIES,
    RECENT_BLOCKS,
    RING_QUERIES,
    SLAB_BLOCKS,
    graph_chunk,
    graph_slack,
    packed_blocks,
    packed_ring_blocks,
)
from workers.kv_dtype import StoredAs
from workers.modes import Layout

#: Device memory outside torch's allocator, beyond the context: Triton's kernels and the captured graphs. Measured on an H200,
#: torch 2.11: 72 MiB in 12 of 14 cells of four shapes (docs/results/h200-2026-11-28-predictions.md).
_KERNELS_BYTES: dict[Allocator, int] = {"cuda": 72 * 2**20, "cpu": 3 * 2**19}
_FLOAT32 = 4
_INT32 = 4


def moments(cell: Cell, shape: ModelShape, draft: ModelShape | None) -> list[Moment]:
    """The end of the prompt's last pass, and the last step of the generation (or chunk of a text that is scored)."""
    rows = cell.rows if cell.workload_spec.decodes else min(_chunk(cell), cell.length)
    tokens = cell.workload_spec.positions(cell) + cell.rows - 1
    found = [_moment("decode", cell, shape, draft, tokens, rows)]
    if cell.prompt_tokens > 0:
        found.append(_moment("prefill", cell, shape, draft, cell.prompt_tokens, prompt_pass(cell)))
    return found


def kernels_bytes(cell: Cell, allocator: Allocator) -> int:
    """Beyond the context."""
    return _KERNELS_BYTES[allocator]


def prompt_pass(cell: Cell) -> int:
    """Prompt tokens read at a time."""
    return min(_chunk(cell), cell.prompt_tokens)


def _chunk(cell: Cell) -> int:
    return graph_chunk(cell, cell.prompt_tokens, grows=not _is_ring(cell))


def _is_ring(cell: Cell) -> bool:
    return cell.mode_spec.policy.layout is Layout.RING


def cache_bytes(cell: Cell, shape: ModelShape, tokens: int) -> int:
    """Bytes of one model's cache while decoding, `tokens` of each sequence read. A full cache grows by blocks."""
    return total(_cache(cell, shape, tokens + cell.rows - 1, "KV cache"))


def copied_bytes(cell: Cell, shape: ModelShape, tokens: int) -> int:
    """Nothing is copied while decoding."""
    return 0


def _moment(
    name: str, cell: Cell, shape: ModelShape, draft: ModelShape | None, tokens: int, rows: int
) -> Moment:
    kv = _cache(cell, shape, tokens, "KV cache")
    if draft is not None:
        kv = (*kv, *_cache(cell, draft, tokens, "draft's KV cache"))
    logits = cell.batch_size * (rows if name == "decode" else 1) * shape.vocab
    work = (
        Live("logits, float32, and their processed copy", logits * _FLOAT32, 2),
        *_pass(cell, shape, tokens, rows),
    )
    if not cell.mode_spec.policy.grows:
        return Moment(name, kv, work)  # output ids are kept there too, 4 bytes a token: 4 MB for a million
    return Moment(name, kv, (*work, Live("output ids", cell.batch_size * cell.length * _INT32)))


def _cache(cell: Cell, shape: ModelShape, tokens: int, what: str) -> tuple[Live, ...]:
    """Layers with a window of their own keep a ring of it; the policy decides for the others."""
    if stored := stored_as(cell):
        return _packed(cell, shape, stored, tokens, what)
    keys, values = (cell.batch_size * size for size in token_bytes(cell, shape))
    seeing_all = shape.windows.count(None)
    slots = sum(window + graph_slack(cell) for window in shape.windows if window is not None)
    blocks: tuple[Live, ...] = ()
    if _is_ring(cell):
        slots += seeing_all * ring_slots(cell)
    elif seeing_all:
        blocks = (Live(f"{what}, blocks", BLOCK * seeing_all * (keys + values), -(-tokens // BLOCK)),)
    if not slots:
        return blocks
    if shape.attention == "mla":
        return *blocks, Live(f"{what}, latents", slots * (keys + values))
    return *blocks, Live(f"{what}, keys", slots * keys), Live(f"{what}, values", slots * values)


def _packed(cell: Cell, shape: ModelShape, stored: StoredAs, tokens: int, what: str) -> tuple[Live, ...]:
    """Codes and scales in blocks, the newest tokens and the sinks in the model's dtype (`workers.engines.graph.packed_cache`)."""
    width, heads = dtype_bytes(cell.model.dtype), cell.batch_size * shape.kv_heads
    block = heads * stored.group_bytes(shape.key_dim, width)
    token = heads * (shape.key_dim + shape.value_dim) * width
    windows: list[int | None] = list(shape.windows)
    sinks = 0
    if _is_ring(cell):
        context = cell.mode_spec.policy.context(cell.streaming)
        assert context is not None
        sinks = context.sinks * windows.count(None)
        windows = [context.window + 1 if window is None else window for window in windows]
    slabs = -(-packed_blocks(tokens) // SLAB_BLOCKS)
    grown = windows.count(None)
    in_rings = sum(packed_ring_blocks(window - 1) for window in windows if window is not None)
    newest = len(windows) * RECENT_BLOCKS * BLOCK + sinks
    live = [Live(f"{what}, newest tokens and sinks", newest * token)]
    if grown and slabs:
        live.append(Live(f"{what}, packed blocks", SLAB_BLOCKS * grown * block, slabs))
    if in_rings:
        live.append(Live(f"{what}, packed rings", in_rings * block))
    return tuple(live)


def ring_slots(cell: Cell) -> int:
    """Slots of one layer: what is kept, and the slack."""
    return kept_tokens(cell, None, 0, 1) + graph_slack(cell)


def _pass(cell: Cell, shape: ModelShape, tokens: int, rows: int) -> tuple[Live, ...]:
    """Activations of one pass in plain torch: the projections of a layer are alive while the next one's are
    made.
    """
    width = dtype_bytes(cell.model.dtype)
    row = cell.batch_size * rows
    projected = (shape.heads + 2 * shape.kv_heads) * shape.key_dim  # mla: more than it is
    hidden, inner = shape.hidden, shape.intermediate
    if shape.parallel_residual:
        # residual, its two norms, the zeros it began with; attended; both layers' projections, one activated
        # copy
        numbers = 4 * hidden + hidden + 2 * (projected + inner) + inner
    else:
        # residual, its norm, zeros; the last layer's MLP, or the attended; gate and up with their product
        numbers = 3 * hidden + hidden + inner + 3 * inner
    live = [Live("activations", row * numbers * width)]
    # The sums back to the residual's width are float32: two parts, stacked, added.
    summed = Live("sums, float32", row * hidden * _FLOAT32 * 4)
    wide = Live("activations while they are summed", row * (4 * hidden + projected + 2 * inner) * width)
    if summed.size + wide.size > live[0].size:
        live = [wide, summed]
    if shape.attention == "mla":
        # Queries, and what they read, are as wide as a latent, some tokens at a time.
        latent = cell.batch_size * min(rows, LATENT_QUERIES) * shape.heads * (shape.key_dim + shape.value_dim)
        live.append(Live("queries as wide as a latent", latent * width, 2))
        live.append(Live("latents merged, float32", latent * _FLOAT32, 3))
    elif _is_ring(cell) and rows > 1:
        queries = min(rows, RING_QUERIES)
        scores = cell.batch_size * queries * shape.heads * (ring_slots(cell) + queries)
        live.append(Live("scores of the ring, float32, and their copies", scores * _FLOAT32, 5))
    elif 1 < rows < tokens:
        # As plain torch merges them; the kernel that a CUDA device has keeps a quarter of it.
        live.append(Live("blocks merged, float32", row * shape.heads * shape.key_dim * _FLOAT32, 4))
    return tuple(live)
