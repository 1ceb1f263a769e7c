"""What the graph engine keeps alive: buffers of fixed size, and the full cache in blocks that are never
copied.
"""

from orchestrator.predict.moment import Live, Moment
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.cell import Cell
from workers.modes import CachePolicy

#: Tokens per block of the full cache.
BLOCK = 256


def moments(cell: Cell, shape: ModelShape, draft: ModelShape | None) -> list[Moment]:
    tokens = cell.prompt_tokens + cell.length
    kv = _cache(cell, shape, tokens, "KV cache")
    if draft is not None:
        kv = (*kv, *_cache(cell, draft, tokens, "draft's KV cache"))
    rows = 1 if cell.speculation is None else cell.speculation.gamma + 1
    logits = cell.batch_size * rows * shape.vocab
    return [Moment("decode", kv, (Live("logits, float32", logits * 4, 2),))]


def _cache(cell: Cell, shape: ModelShape, tokens: int, what: str) -> tuple[Live, ...]:
    per_token = (
        cell.batch_size * shape.kv_heads * (shape.key_dim + shape.value_dim) * dtype_bytes(cell.model.dtype)
    )
    layers = len(shape.windows)
    if cell.mode_spec.policy is CachePolicy.FULL:
        return (Live(f"{what}, blocks", BLOCK * per_token * layers, -(-tokens // BLOCK)),)
    assert cell.streaming is not None
    return (Live(what, (cell.streaming.sinks + cell.streaming.window + 1) * per_token, layers),)
