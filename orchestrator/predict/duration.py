"""How long a cell should take: for order, time limits and stalls, never for a table. Errs on the long
side.
"""

from orchestrator.predict.caches import token_bytes
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.eager import cached_tokens
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.cell import Cell
from workers.modes import Layout

#: Share of the memory bandwidth that decoding uses (transformers less, but is launch bound there).
_BANDWIDTH_SHARE = 0.5
#: Seconds of Python and kernel launches per layer and pass.
_LAUNCH_S = {"cuda": {"eager": 1.0e-3, "graph": 5.0e-5}, "cpu": {"eager": 1.0e-3, "graph": 1.0e-3}}
#: Multiply-adds per second of one device in matrix products, well below any card of the last years.
_FLOPS = {"cuda": 2.0e13, "cpu": 2.0e10}
#: Start of a process, first calls, capture and compilation.
_START_S = {"eager": 20.0, "graph": 120.0}


def predict_seconds(
    cell: Cell, shape: ModelShape, draft_shape: ModelShape | None, device: DeviceProfile
) -> float:
    """Seconds from lease to result: load, prompt, and one pass per new token (none accepted, when
    speculative).
    """
    draft = draft_shape if cell.mode_spec.decoder.needs_draft else None
    load_rate = device.bandwidth_bytes_per_s / 20  # from a disk or the page cache, over the bus
    load = sum(_bytes(part, cell) for part in (shape, draft) if part is not None) / load_rate
    running = _prompt_s(cell, shape, device) + _generate_s(cell, shape, device)
    if draft is not None:
        assert cell.speculation is not None
        drafting = cell.speculation.gamma * _generate_s(cell, draft, device)
        running += _prompt_s(cell, draft, device) + drafting
    texts = -(-cell.workload_spec.texts(cell) // cell.batch_size)
    seconds = _START_S[cell.engine] + load + texts * running
    return seconds * (2 if cell.purpose == "measure" else 1)  # warmed up once at its own shape


def predict_step_seconds(
    cell: Cell, shape: ModelShape, draft_shape: ModelShape | None, device: DeviceProfile
) -> float:
    """Seconds of the slowest single step that reports progress: a stall is many times this."""
    step = _pass_s(cell, shape, device, cell.prompt_tokens + cell.length)
    if cell.mode_spec.decoder.needs_draft and draft_shape is not None and cell.speculation is not None:
        step += cell.speculation.gamma * _pass_s(cell, draft_shape, device, cell.prompt_tokens + cell.length)
    return max(step, _prompt_s(cell, shape, device))


def _generate_s(cell: Cell, shape: ModelShape, device: DeviceProfile) -> float:
    """The mean pass is the one halfway, as its cost is linear in the tokens cached."""
    new_tokens = cell.workload_spec.new_tokens(cell)
    return new_tokens * _pass_s(cell, shape, device, cell.prompt_tokens + new_tokens // 2)


def _pass_s(cell: Cell, shape: ModelShape, device: DeviceProfile, tokens: int) -> float:
    policy = cell.mode_spec.policy
    kv = sum(cached_tokens(cell, window, tokens, 1) for window in shape.windows) * sum(
        token_bytes(cell, shape)
    )
    # The eager engine reads the cache, and copies it: read, written.
    kv *= cell.batch_size * (3 if cell.engine == "eager" and policy.layout is Layout.APPENDED else 1)
    read = (_bytes(shape, cell) + kv) / (device.bandwidth_bytes_per_s * _BANDWIDTH_SHARE)
    context = policy.context(cell.streaming)
    if policy.layout is Layout.NONE and context is not None:
        read += _matrix_s(cell, shape, device, context.window)
    return read + shape.layers * _LAUNCH_S[device.allocator][cell.engine]


def _prompt_s(cell: Cell, shape: ModelShape, device: DeviceProfile) -> float:
    tokens = cell.prompt_tokens
    if cell.synthetic and cell.prefill_chunk is not None:
        tokens = min(tokens, 2 * cell.prefill_chunk)
    passes = 1 if cell.prefill_chunk is None else -(-tokens // cell.prefill_chunk)
    return passes * _pass_s(cell, shape, device, cell.prompt_tokens // 2) + _matrix_s(
        cell, shape, device, tokens
    )


def _matrix_s(cell: Cell, shape: ModelShape, device: DeviceProfile, tokens: int) -> float:
    products = tokens * _bytes(shape, cell) / dtype_bytes(cell.model.dtype)
    scores = tokens * tokens * shape.heads * shape.key_dim * shape.layers
    return cell.batch_size * (products + scores) / _FLOPS[device.allocator]


def _bytes(shape: ModelShape, cell: Cell) -> int:
    """Weights, or a guess of them for a model that cannot be built from its config."""
    known = shape.weights_bytes(cell.model.dtype)
    if known is not None:
        return known
    guess = (
        shape.layers * shape.hidden * (4 * shape.hidden + 3 * shape.intermediate) + shape.vocab * shape.hidden
    )
    return guess * dtype_bytes(cell.model.dtype)
