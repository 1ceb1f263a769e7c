"""What a cell's cache policy keeps of a model, in tokens and bytes. The policy says so itself (`workers.modes`)."""

from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.cell import Cell
from workers.kv_dtype import GROUP, STORED_AS, StoredAs

#: Two lengths between which growth is measured: beyond every window that a model or a policy has.
_FAR = 2**24


def token_bytes(cell: Cell, shape: ModelShape) -> tuple[int, int]:
    """Bytes of one kept token's keys, and of its values, in one layer of one sequence.

    An attention of the eager engine's own is given latents (MLA) expanded, and keeps them so.
    """
    policy, width = cell.mode_spec.policy, dtype_bytes(cell.model.dtype)
    numbers = shape.kv_heads * shape.key_dim, shape.kv_heads * shape.value_dim
    if cell.engine == "eager" and policy.own_attention and shape.expanded is not None:
        numbers = shape.expanded
    return policy.token_bytes(numbers[0], width), policy.token_bytes(numbers[1], width)


def stored_as(cell: Cell) -> StoredAs | None:
    """In how many bits the graph engine keeps keys and values; None: in the model's dtype. The eager engine's are rehearsed."""
    return STORED_AS.get(cell.kv_dtype) if cell.engine == "graph" else None


def kept_tokens(cell: Cell, layer_window: int | None, tokens: int, rows: int) -> int:
    """Tokens that one layer keeps once `tokens` were read, `rows` of them in the last pass. A ring's slack is not in it."""
    return cell.mode_spec.policy.kept(cell.streaming, tokens, rows, layer_window)


def growth_per_token(cell: Cell, shape: ModelShape) -> int:
    """Bytes by which one sequence's cache grows with each token, in the long run."""
    tokens = sum(
        kept_tokens(cell, window, 2 * _FAR, 1) - kept_tokens(cell, window, _FAR, 1)
        for window in shape.windows
    )
    growth = tokens * sum(token_bytes(cell, shape)) // _FAR
    if stored := stored_as(cell):
        return (
            tokens
            * shape.kv_heads
            * stored.group_bytes(shape.key_dim, dtype_bytes(cell.model.dtype))
            // (GROUP * _FAR)
        )
    if not cell.mode_spec.policy.grows:
        return growth
    return growth + shape.other_cache.numels_per_token * dtype_bytes(cell.model.dtype)
