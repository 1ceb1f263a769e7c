"""What transformers' `generate` keeps alive at its hungriest moments. Read off transformers 5.23 and
`workers.engines.eager`.

Dynamic cache: a layer's K and V are one tensor each; a new token makes a longer copy by `torch.cat`, and the
old one lives until the copy is done. The streaming cache is a ring, written in place. Only the last
position's logits are computed while a prompt is read (`logits_to_keep`).
"""

import dataclasses
from collections.abc import Iterator

from orchestrator.predict.caches import kept_tokens, token_bytes
from orchestrator.predict.device import FIRST_PASS_KERNELS, Allocator
from orchestrator.predict.eager_stored import held_bytes, is_stored, read_back
from orchestrator.predict.moment import Live, Moment, total
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.cell import AUTO, Cell
from workers.engines.sizes import RECOMPUTE_TOKENS, eager_chunk, eager_slack
from workers.modes import Layout

#: Kernels that load when they are first called, outside torch's allocator. On a CPU the math library writes
#: them as it meets new shapes, 256 KiB each, and keeps scratch; verification and a draft bring many. Measured.
_KERNELS_BYTES: dict[Allocator, int] = {"cuda": FIRST_PASS_KERNELS, "cpu": 7 * 2**18}
_DRAFT_KERNELS_BYTES: dict[Allocator, int] = {"cuda": 0, "cpu": 11 * 2**18}
_FLOAT32 = 4
_INT64 = 8
#: float32 rows of the vocabulary alive at once while a token is chosen: the copy of the logits, the
#: processors' result (forced length, repetition penalty), and one operand in the making.
_LOGIT_COPIES = 3


def moments(cell: Cell, shape: ModelShape, draft: ModelShape | None) -> list[Moment]:
    """The end of the prompt's last pass, and the last step of the generation (or chunk of a text that is scored)."""
    if cell.mode_spec.policy.layout is Layout.NONE:
        return _windows(cell, shape)
    rows = cell.rows if cell.workload_spec.decodes else min(eager_chunk(cell) or 1, cell.length)
    found = [_moment("decode", cell, shape, draft, cell.workload_spec.positions(cell), rows)]
    if cell.prompt_tokens > 0:
        found.append(_moment("prefill", cell, shape, draft, cell.prompt_tokens, prompt_pass(cell)))
    return found


def kernels_bytes(cell: Cell, allocator: Allocator) -> int:
    """Beyond the context."""
    drafted = _DRAFT_KERNELS_BYTES[allocator] if cell.mode_spec.decoder.needs_draft else 0
    return _KERNELS_BYTES[allocator] + drafted


def prompt_pass(cell: Cell) -> int:
    """Prompt tokens read at a time."""
    return min(eager_chunk(cell) or cell.prompt_tokens, cell.prompt_tokens)


def cached_tokens(cell: Cell, window: int | None, tokens: int, rows: int) -> int:
    """Tokens of one layer in memory after `tokens` were read, `rows` of them in the last pass."""
    if cell.mode_spec.policy.layout is Layout.FIXED:
        tokens = cell.workload_spec.positions(cell)
    kept = kept_tokens(cell, window, tokens, rows)
    return kept + eager_slack(cell) if cell.mode_spec.policy.layout is Layout.RING else kept


def cache_bytes(cell: Cell, shape: ModelShape, tokens: int) -> int:
    """Bytes of one model's cache while decoding, `tokens` of each sequence read."""
    return total(_cache(cell, shape, tokens, cell.rows, "KV cache"))


def copied_bytes(cell: Cell, shape: ModelShape, tokens: int) -> int:
    """Bytes that `torch.cat` holds beside the cache while it makes one layer's longer keys or values."""
    return total(_copy(cell, shape, tokens, cell.rows))


def _moment(
    name: str, cell: Cell, shape: ModelShape, draft: ModelShape | None, tokens: int, rows: int
) -> Moment:
    kv = _cache(cell, shape, tokens, rows, "KV cache")
    if draft is not None:
        kv = (*kv, *_cache(cell, draft, tokens, rows, "draft's KV cache"))
    choosing = rows if name == "decode" else 1  # of a prompt, only the last logits are computed
    return Moment(name, kv, (*_pass(cell, shape, tokens, rows), *_choice(cell, shape, choosing, tokens)))


def _windows(cell: Cell, shape: ModelShape) -> list[Moment]:
    """Without a cache: the first window, whose logits are all scored, and a batch of windows, each for its last logits."""
    context = cell.mode_spec.policy.context(cell.streaming)
    assert context is not None
    tokens = context.sinks + context.window + 1
    batch = dataclasses.replace(cell, batch_size=max(1, RECOMPUTE_TOKENS // tokens))
    first = (*_pass(cell, shape, tokens, tokens), *_choice(cell, shape, tokens, tokens))
    others = (*_pass(batch, shape, tokens, tokens), *_choice(batch, shape, 1, tokens))
    return [Moment("decode", (), others), Moment("prefill", (), first)]


def _cache(cell: Cell, shape: ModelShape, tokens: int, rows: int, what: str) -> tuple[Live, ...]:
    key_bytes, value_bytes = token_bytes(cell, shape)
    live: list[Live] = []
    for window in sorted(set(shape.windows), key=lambda window: window or 0):
        layers = shape.windows.count(window)
        kept = cached_tokens(cell, window, tokens, rows)
        for part, size in (("keys", key_bytes), ("values", value_bytes)):
            held = held_bytes(cell, size, kept) if is_stored(cell) else kept * size
            live.append(Live(f"{what}, {part}", cell.batch_size * held, layers))
    if cell.mode_spec.policy.layout is Layout.APPENDED:
        other = shape.other_cache.bytes(tokens, cell.model.dtype)
        live.append(Live(f"{what}, states and what else layers keep", cell.batch_size * other))
    return tuple(live)


def _pass(cell: Cell, shape: ModelShape, tokens: int, rows: int) -> tuple[Live, ...]:
    """Activations of one pass over `rows` tokens per sequence, `tokens` in the cache afterwards: what lives
    through every layer, and the hungriest of four places within one."""
    row = cell.batch_size * rows * dtype_bytes(cell.model.dtype)
    queries, keys = shape.heads * shape.key_dim, shape.kv_heads * shape.key_dim
    # While keys are rotated (after the queries; three temporaries), this layer's are not in the cache yet.
    rotation = max(4 * queries + 2 * keys, 2 * queries + 5 * keys) - 2 * keys
    if (
        cell.mode_spec.policy.own_attention
    ):  # queries twice, keys once, in one tensor, and three of its size to rotate it
        rotation = queries + 2 * keys + 4 * (2 * queries + keys)
    projections = Live("attention: queries, keys, values", row * (2 * queries + 2 * keys))
    inner = (3 if shape.gated_mlp else 2) * shape.intermediate
    places = (
        (Live("attention: projections and their rotation", row * rotation),),
        (projections, *_copy(cell, shape, tokens, rows)),
        (projections, *_scores(cell, shape, tokens, rows)),
        (Live("MLP: its inner projections", row * (inner + shape.parallel_residual * shape.hidden)),),
    )
    hungriest = max(places, key=total)
    # The embeddings, the residual stream and its normalised copy.
    return Live("hidden states", row * shape.hidden, 3), *hungriest


def _copy(cell: Cell, shape: ModelShape, tokens: int, rows: int) -> tuple[Live, ...]:
    """The old tensor beside its longer copy, of one layer's K or V at a time; a first pass has nothing to
    copy.
    """
    if cell.mode_spec.policy.layout is not Layout.APPENDED or rows >= tokens:
        return ()
    longest = max((cached_tokens(cell, window, tokens, rows) for window in set(shape.windows)), default=0)
    if is_stored(cell):
        return read_back(cell, shape, longest)
    kept = longest * cell.batch_size
    return (Live("concatenation copy of one layer", kept * max(token_bytes(cell, shape))),)


def _scores(cell: Cell, shape: ModelShape, tokens: int, rows: int) -> list[Live]:
    """What the attention itself takes, by implementation."""
    width = dtype_bytes(cell.model.dtype)
    if cell.mode_spec.policy.own_attention:
        slots = cached_tokens(cell, None, tokens, rows)
        scores = cell.batch_size * shape.heads * rows * slots
        # Near and far scores of every slot, their sum with the mask, its softmax.
        return [Live("scores of the ring, float32", scores * _FLOAT32, 4)]
    live = []
    # A fixed cache shows a query what is not written yet: there is always a mask, as long as the cache.
    fixed = cell.mode_spec.policy.layout is Layout.FIXED
    tokens = max(tokens, cell.workload_spec.positions(cell)) if fixed else tokens
    asked = cell.model.attn_implementation
    eager = (shape.chosen_attention if asked == AUTO else asked) == "eager"
    if eager:
        # Raw and masked scores, or scores and their float32 softmax: 8 bytes each way.
        live.append(
            Live("attention scores and their softmax", cell.batch_size * shape.heads * rows * tokens * 8)
        )
    if eager or fixed or 1 < rows < tokens:
        # sdpa needs no mask for a whole prompt (causal) or a single row (sees all); else it is spelt out as
        # bool and turned into the scores' dtype by the kernel.
        live.append(Live("attention mask", cell.batch_size * rows * tokens * (1 + width)))
    if shape.expanded is not None:
        live += _expanded(cell, shape, shape.expanded, tokens, rows)
    if 1 < shape.kv_heads < shape.heads and (eager or fixed or 1 < rows < tokens):
        # The kernels that take a mask take no grouped queries. A single head is repeated as a view of itself.
        repeated = cell.batch_size * shape.heads * tokens * (shape.key_dim + shape.value_dim) * width
        live.append(Live("keys and values, repeated for each query head", repeated))
    return live


def _expanded(
    cell: Cell, shape: ModelShape, numbers: tuple[int, int], tokens: int, rows: int
) -> Iterator[Live]:
    """What one layer makes of all its latents (MLA), and a CPU's attention of heads whose keys and values differ in size."""
    width, (keys, values) = dtype_bytes(cell.model.dtype), numbers
    made = (
        2 * keys + values - shape.heads * shape.value_dim
    )  # keys and values at once, then keys with their rotated part
    yield Live("latents expanded, of one layer", cell.batch_size * tokens * made * width)
    if keys != values:
        yield Live("keys, scaled", cell.batch_size * tokens * keys * width)
        yield Live(
            "attention scores and their softmax", cell.batch_size * shape.heads * rows * tokens * width, 2
        )


def _choice(cell: Cell, shape: ModelShape, rows: int, tokens: int) -> tuple[Live, ...]:
    logits = cell.batch_size * rows * shape.vocab
    live = (
        Live("logits", logits * dtype_bytes(cell.model.dtype)),
        Live("logits, float32", logits * _FLOAT32, _LOGIT_COPIES),
    )
    if not cell.mode_spec.policy.grows:
        return live  # ids and mask grow there too, by 32 bytes a token: 32 MB after a million
    # ids and attention mask, each beside its longer copy
    return (*live, Live("token ids and mask", cell.batch_size * tokens * _INT64, 4))
