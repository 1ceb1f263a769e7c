"""What the graph engine keeps alive: a full cache in blocks that are never copied, or a ring; a small
captured step.

Read off `workers.engines.graph`. Prompts are read in plain torch, into rings in passes of 128 tokens, into a full cache a
whole prompt in one pass unless the cell says otherwise.
"""

from orchestrator.predict.device import Allocator
from orchestrator.predict.moment import Live, Moment
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.cell import Cell
from workers.modes import CachePolicy

#: Device memory outside torch's allocator, beyond the context: Triton's kernels and the captured graphs (32
#: layers, one or six captures alike). Measured.
_KERNELS_BYTES: dict[Allocator, int] = {"cuda": 82 * 2**20, "cpu": 3 * 2**19}
#: Of the graph that reads a prompt's chunks into rings: its nodes, and cuBLAS's workspace for its stream. Measured.
_CHUNK_GRAPH_BYTES = 56 * 2**20
#: Chunks from which on it is captured (`workers.engines.graph.prefill`).
_CHUNKS_WORTH_A_GRAPH = 4
#: Tokens per block of the full cache (`workers.engines.graph.full_cache`).
BLOCK = 64
#: A ring's room beyond its window; it bounds a pass, too (`workers.engines.graph.ring`).
_SLACK = 127
_FLOAT32 = 4
_INT32 = 4


def moments(cell: Cell, shape: ModelShape, draft: ModelShape | None) -> list[Moment]:
    gamma = cell.speculation.gamma if cell.speculation else 0
    found = [_moment("decode", cell, shape, draft, cell.prompt_tokens + cell.length - 1 + gamma, gamma + 1)]
    if cell.prompt_tokens > 0:
        found.append(_moment("prefill", cell, shape, draft, cell.prompt_tokens, prompt_pass(cell)))
    return found


def kernels_bytes(cell: Cell, allocator: Allocator) -> int:
    """Beyond the context."""
    chunks = -(-cell.prompt_tokens // prompt_pass(cell)) if cell.prompt_tokens else 0
    captured = allocator == "cuda" and cell.mode_spec.policy.bounded and chunks >= _CHUNKS_WORTH_A_GRAPH
    return _KERNELS_BYTES[allocator] + captured * _CHUNK_GRAPH_BYTES


def prompt_pass(cell: Cell) -> int:
    asked = min(cell.prefill_chunk or cell.prompt_tokens, cell.prompt_tokens)
    return min(asked, _SLACK + 1) if cell.mode_spec.policy.bounded else asked


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
    if cell.mode_spec.policy.bounded:
        return Moment(name, kv, work)  # output ids are kept there too, 4 bytes a token: 4 MB for a million
    return Moment(name, kv, (*work, Live("output ids", cell.batch_size * cell.length * _INT32)))


def _cache(cell: Cell, shape: ModelShape, tokens: int, what: str) -> tuple[Live, ...]:
    dtype, layers = cell.model.dtype, len(shape.windows)
    keys, values = cell.batch_size * shape.key_bytes(dtype), cell.batch_size * shape.value_bytes(dtype)
    if cell.mode_spec.policy is CachePolicy.FULL:
        return (Live(f"{what}, blocks", BLOCK * layers * (keys + values), -(-tokens // BLOCK)),)
    slots = ring_slots(cell)
    return Live(f"{what}, keys", slots * layers * keys), Live(f"{what}, values", slots * layers * values)


def ring_slots(cell: Cell) -> int:
    assert cell.streaming is not None
    gamma = cell.speculation.gamma if cell.speculation else 0
    return cell.streaming.sinks + cell.streaming.window + 1 + max(gamma, _SLACK)


def _pass(cell: Cell, shape: ModelShape, tokens: int, rows: int) -> tuple[Live, ...]:
    """Activations of one pass in plain torch: the projections of a layer are alive while the next one's are
    made.
    """
    width = dtype_bytes(cell.model.dtype)
    row = cell.batch_size * rows
    projected = (shape.heads + 2 * shape.kv_heads) * shape.key_dim
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
    if cell.mode_spec.policy.bounded and rows > 1:
        scores = row * shape.heads * ring_slots(cell)
        live.append(Live("scores of the ring, float32, and their copies", scores * _FLOAT32, 5))
    elif 1 < rows < tokens:
        # As plain torch merges them; the kernel that a CUDA device has keeps a quarter of it.
        live.append(Live("blocks merged, float32", row * shape.heads * shape.key_dim * _FLOAT32, 4))
    return tuple(live)
