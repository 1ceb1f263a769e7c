"""What transformers' `generate` keeps alive at its hungriest moments. Read off transformers 5.23.

Dynamic cache: a layer's K and V are one tensor each; a new token makes a longer copy by `torch.cat`, the old
one lives until the copy is done. Prefill asks for the last position's logits only (`logits_to_keep`).
"""

from orchestrator.predict.moment import Live, Moment
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.cell import Cell
from workers.modes import CachePolicy

_FLOAT32 = 4
_INT64 = 8
#: float32 rows of the vocabulary alive at once while a token is chosen: the copy of the logits, the
#: processors' result (forced length, repetition penalty), and one operand in the making.
_LOGIT_COPIES = 3


def moments(cell: Cell, shape: ModelShape, draft: ModelShape | None) -> list[Moment]:
    """The end of the prompt's last pass, and the last step of the generation."""
    tokens = cell.prompt_tokens + cell.length - 1  # the last new token is never read
    rows = 1 if cell.speculation is None else cell.speculation.gamma + 1
    prompt_pass = (
        cell.prompt_tokens if cell.prefill_chunk is None else min(cell.prefill_chunk, cell.prompt_tokens)
    )
    if cell.mode_spec.policy.bounded and cell.streaming is not None:
        prompt_pass = min(prompt_pass, chunk_of_ring(cell))
    decode = Moment(
        "decode",
        _caches(cell, shape, draft, tokens, rows),
        (
            *_copy(cell, shape, tokens, rows),
            *_pass(cell, shape, tokens, rows),
            *_choice(cell, shape, rows, tokens),
        ),
    )
    if cell.prompt_tokens == 0:
        return [decode]
    prefill = Moment(
        "prefill",
        _caches(cell, shape, draft, cell.prompt_tokens, prompt_pass),
        (
            *(
                _copy(cell, shape, cell.prompt_tokens, prompt_pass)
                if prompt_pass < cell.prompt_tokens
                else ()
            ),
            *_pass(cell, shape, cell.prompt_tokens, prompt_pass),
            *_choice(cell, shape, 1, cell.prompt_tokens),
        ),
    )
    return [prefill, decode]


def chunk_of_ring(cell: Cell) -> int:
    """Prompt tokens that a ring takes in one pass: as many as its window."""
    assert cell.streaming is not None
    return cell.streaming.window


def cached_tokens(cell: Cell, window: int | None, tokens: int, rows: int) -> int:
    """Tokens that one layer holds after `tokens` were read, `rows` in the last pass."""
    policy = cell.mode_spec.policy
    if policy is CachePolicy.FULL:
        return tokens if window is None else min(tokens, window - 1 + rows)
    assert cell.streaming is not None
    return cell.streaming.sinks + cell.streaming.window + 1 + rows


def _caches(
    cell: Cell, shape: ModelShape, draft: ModelShape | None, tokens: int, rows: int
) -> tuple[Live, ...]:
    live = _cache(cell, shape, tokens, rows, "KV cache")
    return live if draft is None else (*live, *_cache(cell, draft, tokens, rows, "draft's KV cache"))


def _cache(cell: Cell, shape: ModelShape, tokens: int, rows: int, what: str) -> tuple[Live, ...]:
    dtype, batch = cell.model.dtype, cell.batch_size
    live = []
    for window in sorted(set(shape.windows), key=lambda window: window or 0):
        layers = shape.windows.count(window)
        held = cached_tokens(cell, window, tokens, rows) * batch
        live += [
            Live(f"{what}, keys", held * shape.key_bytes(dtype), layers),
            Live(f"{what}, values", held * shape.value_bytes(dtype), layers),
        ]
    return tuple(live)


def _copy(cell: Cell, shape: ModelShape, tokens: int, rows: int) -> tuple[Live, ...]:
    """The old tensor beside its longer copy, of one layer's K or V at a time. A ring writes in place."""
    if cell.mode_spec.policy.bounded:
        return ()
    held = max(cached_tokens(cell, window, tokens, rows) for window in set(shape.windows)) * cell.batch_size
    largest = max(shape.key_bytes(cell.model.dtype), shape.value_bytes(cell.model.dtype))
    return (Live("concatenation copy of one layer", held * largest),)


def _pass(cell: Cell, shape: ModelShape, tokens: int, rows: int) -> tuple[Live, ...]:
    """Activations of one pass over `rows` tokens per sequence, `tokens` in the cache afterwards."""
    width = dtype_bytes(cell.model.dtype)
    row = cell.batch_size * rows * width
    query = shape.heads * shape.key_dim
    inside_attention = query + 3 * (query + 2 * shape.kv_heads * shape.key_dim)
    inside_mlp = shape.hidden + (3 if shape.gated_mlp else 2) * shape.intermediate
    live = [
        # embeddings, the residual stream, its normalised copy: alive through every layer
        Live("hidden states", row * shape.hidden, 3),
        Live("inside a layer", row * max(inside_attention, inside_mlp)),
    ]
    if cell.model.attn_implementation == "eager":
        scores = cell.batch_size * shape.heads * rows * tokens
        live.append(
            Live("attention scores, their float32 softmax and its copy", scores * (2 * width + _FLOAT32))
        )
    if rows > 1 and (rows < tokens or cell.model.attn_implementation == "eager"):
        # sdpa drops the mask of a whole prompt (causal) and of one row (sees all); others are spelt out as
        # bool and turned into the scores' dtype by the kernel
        live.append(Live("attention mask", rows * tokens * (1 + width)))
        if shape.kv_heads < shape.heads:
            repeated = cell.batch_size * shape.heads * tokens * (shape.key_dim + shape.value_dim) * width
            live.append(Live("keys and values repeated for the masked kernel", repeated))
    return tuple(live)


def _choice(cell: Cell, shape: ModelShape, rows: int, tokens: int) -> tuple[Live, ...]:
    logits = cell.batch_size * rows * shape.vocab
    live = (
        Live("logits", logits * dtype_bytes(cell.model.dtype)),
        Live("logits, float32", logits * _FLOAT32, _LOGIT_COPIES),
    )
    if cell.mode_spec.policy.bounded:
        return live  # ids and mask grow there too, by 32 bytes a token: 32 MB after a million
    # ids and attention mask, each beside its longer copy
    return (*live, Live("token ids and mask", cell.batch_size * tokens * _INT64, 4))
