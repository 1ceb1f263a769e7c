"""transformers' caches in fewer bits, eager engine: what they hold of a layer, and what a step takes beside it.

Read off transformers 5.23 and hqq 0.2.8. fp8: a byte a number, one scale for a layer. int8, int4: codes, of 64 numbers a scale and a
zero in the model's dtype; the newest tokens, 127 at most, as they are.
"""

from orchestrator.predict.caches import token_bytes
from orchestrator.predict.moment import Live
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.cell import Cell
from workers.kv_dtype import AUTO, FP8, STORED_AS

#: Tokens that are kept as they are before all is quantised again; numbers that share a scale and a zero.
_NEWEST, _GROUP = 128, 64
_FLOAT32 = 4


def is_stored(cell: Cell) -> bool:
    """Whether the eager engine keeps keys and values in fewer bits."""
    return cell.engine == "eager" and cell.kv_dtype != AUTO


def held_bytes(cell: Cell, numbers_bytes: int, tokens: int) -> int:
    """Bytes of one layer's keys (or values) of one sequence, `tokens` read. `numbers_bytes`: of a token in the model's dtype."""
    width = dtype_bytes(cell.model.dtype)
    numbers = numbers_bytes // width
    if cell.kv_dtype == FP8.name:
        return tokens * numbers
    newest = max(0, tokens - cell.prompt_tokens) % _NEWEST
    codes = (tokens - newest) * numbers
    return codes * STORED_AS[cell.kv_dtype].bits // 8 + 2 * codes * width // _GROUP + newest * numbers_bytes


def read_back(cell: Cell, shape: ModelShape, tokens: int) -> tuple[Live, ...]:
    """While a step reads one layer: keys in the model's dtype, and values on their way there."""
    key_bytes, value_bytes = (tokens * cell.batch_size * size for size in token_bytes(cell, shape))
    if cell.kv_dtype == FP8.name:
        wide = value_bytes // dtype_bytes(cell.model.dtype) * _FLOAT32
        return (
            Live("keys of one layer, read back", key_bytes),
            Live("values of one layer, float32, before and after their scale", wide, 2),
        )
    return (
        Live("keys of one layer, read back, and joined with the newest", key_bytes, 2),
        Live("values of one layer, read back, and joined with the newest", value_bytes, 2),
    )
