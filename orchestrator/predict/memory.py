"""The memory of a cell: weights + caches + workspace + rounding + context, and the length at which they stop fitting.

By rehearsal (`rehearsed`) where the cell can be rehearsed: the engine's own passes through a model of torch's allocator.
Else by formulas, pure functions of a cell, the shapes of its models and a device profile: each engine's are in its own
file (`eager`, `graph`). Nothing is fitted; what was measured is in the `DeviceProfile`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from orchestrator.predict import eager, graph
from orchestrator.predict.caches import growth_per_token
from orchestrator.predict.device import Allocator, DeviceProfile, held
from orchestrator.predict.load import is_converted, loading
from orchestrator.predict.moment import Live, Moment, total
from orchestrator.predict.rehearsed import answers
from orchestrator.predict.shape import ModelShape, dtype_bytes
from workers.cell import Cell, Engine, ModelRef
from workers.rehearsal.passes import NotRehearsable

_MOMENTS: dict[Engine, Callable[[Cell, ModelShape, ModelShape | None], list[Moment]]] = {
    "eager": eager.moments,
    "graph": graph.moments,
}
_KERNELS: dict[Engine, Callable[[Cell, Allocator], int]] = {
    "eager": eager.kernels_bytes,
    "graph": graph.kernels_bytes,
}


def _kernels_bytes(cell: Cell, device: DeviceProfile) -> int:
    """Beyond the context: of libraries that load while the model runs, and what processes keep to exchange data."""
    return _KERNELS[cell.engine](cell, device.allocator) + device.peers_bytes(cell.devices)


_OfTokens = Callable[[Cell, ModelShape, int], int]
_CACHES: dict[Engine, _OfTokens] = {"eager": eager.cache_bytes, "graph": graph.cache_bytes}
_COPIES: dict[Engine, _OfTokens] = {"eager": eager.copied_bytes, "graph": graph.copied_bytes}

#: No search for a boundary looks further than this.
_FAR = 2**31


#: rehearsal: the engine's passes, replayed. formula: arithmetic on the config.
PredictedBy = Literal["rehearsal", "formula"]


class UnknownWeightsError(ValueError):
    """transformers cannot build the model from its config, so the size of its weights is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What must fit at the hungriest `moment`. The allocator may hold more while there is room (cached, but
    free).

    `weights_bytes`: target and draft. `kv_bytes`: their caches. `workspace_bytes`: everything else that is
    alive. `rounding_bytes`: what the allocator's segments add to all these, or what of
    them lies in room that was counted already. `bytes_per_token`: growth of the
    caches with one more token per sequence, all sequences together; 0 in a mode of constant memory. `parts`:
    the tensors. `predicted_by`: the source of all this.
    """

    weights_bytes: int
    kv_bytes: int
    workspace_bytes: int
    rounding_bytes: int
    context_bytes: int
    bytes_per_token: int
    moment: str
    parts: tuple[Live, ...]
    predicted_by: PredictedBy

    @property
    def peak_bytes(self) -> int:
        """Comparable, where it is `loaded`, with `Attempt.peak_device_bytes`: the driver's reserve is not in it."""
        return (
            self.weights_bytes
            + self.kv_bytes
            + self.workspace_bytes
            + self.rounding_bytes
            + self.context_bytes
        )


def predict(
    cell: Cell,
    shape: ModelShape,
    draft_shape: ModelShape | None,
    device: DeviceProfile,
    *,
    loaded: bool = False,
) -> Prediction:
    """`draft_shape` is read in speculative modes only. `loaded`: of what comes after loading, which is what an
    attempt's peaks are of. Raises `UnknownWeightsError`.
    """
    try:
        return _by_rehearsal(cell, shape, draft_shape, device, loaded=loaded)
    except NotRehearsable:
        return predict_by_formula(cell, shape, draft_shape, device, loaded=loaded)


def predict_by_formula(
    cell: Cell,
    shape: ModelShape,
    draft_shape: ModelShape | None,
    device: DeviceProfile,
    *,
    loaded: bool = False,
) -> Prediction:
    """As `predict`, without a rehearsal."""
    draft = draft_shape if cell.mode_spec.decoder.needs_draft else None
    weights = _weights(cell.model.target, cell.model, shape, device)
    if draft is not None:
        assert cell.model.draft is not None
        weights += _weights(cell.model.draft, cell.model, draft, device)
    libraries = Live("libraries and the process itself", device.runtime_bytes)
    kernels = Live("kernels and graphs", _kernels_bytes(cell, device))
    moments = [] if loaded else [loading(cell, shape, draft, device)]
    for running in _MOMENTS[cell.engine](cell, shape, draft):
        moments.append(Moment(running.name, running.kv, (*running.work, kernels)))
    used, hungriest = -1, None
    for moment in moments:
        moment = Moment(moment.name, moment.kv, (*moment.work, libraries))
        alive = [*weights, *((live.size, live.count) for live in (*moment.kv, *moment.work))]
        if (now := held(alive, device)) > used:
            used, hungriest = now, moment
    assert hungriest is not None
    weights_bytes = sum(size * count for size, count in weights)
    kv_bytes, workspace_bytes = total(hungriest.kv), total(hungriest.work)
    return Prediction(
        weights_bytes=weights_bytes,
        kv_bytes=kv_bytes,
        workspace_bytes=workspace_bytes,
        rounding_bytes=used - weights_bytes - kv_bytes - workspace_bytes,
        context_bytes=device.context_bytes,
        bytes_per_token=bytes_per_token(cell, shape, draft),
        moment=hungriest.name,
        parts=(*hungriest.kv, *hungriest.work),
        predicted_by="formula",
    )


def _by_rehearsal(
    cell: Cell,
    shape: ModelShape,
    draft_shape: ModelShape | None,
    device: DeviceProfile,
    *,
    loaded: bool,
) -> Prediction:
    """Raises `NotRehearsable`."""
    kernels_bytes = _kernels_bytes(cell, device)
    peak = answers.peak(cell, device, kernels_bytes, loaded=loaded)
    parts = (
        Live("KV cache", peak.kv_bytes),
        Live("libraries", device.runtime_bytes),
        Live("kernels and graphs", kernels_bytes),
        Live(
            "activations and temporaries",
            peak.peak_allocated - peak.weights_bytes - peak.kv_bytes - device.runtime_bytes,
        ),
    )
    return Prediction(
        weights_bytes=peak.weights_bytes,
        kv_bytes=peak.kv_bytes,
        workspace_bytes=total(parts[1:]),
        rounding_bytes=peak.peak_reserved - peak.peak_allocated,
        context_bytes=device.context_bytes,
        bytes_per_token=bytes_per_token(cell, shape, draft_shape),
        moment=peak.phase,
        parts=parts,
        predicted_by="rehearsal",
    )


def refusal(cell: Cell, device: DeviceProfile) -> str | None:
    """Why the engine refuses the cell's mode for this architecture, where a rehearsal can tell; else None."""
    return answers.refusal(cell, device)


def bytes_per_token(cell: Cell, shape: ModelShape, draft_shape: ModelShape | None) -> int:
    """Growth of the caches with one more token per sequence, all sequences of the batch together."""
    growth = growth_per_token(cell, shape)
    if cell.mode_spec.decoder.needs_draft and draft_shape is not None:
        growth += growth_per_token(cell, draft_shape)
    return growth * cell.batch_size


def cache_bytes(cell: Cell, shape: ModelShape, tokens: int) -> int:
    """Bytes of one model's cache while decoding, `tokens` of each sequence read."""
    return _CACHES[cell.engine](cell, shape, tokens)


def copied_bytes(cell: Cell, shape: ModelShape, tokens: int) -> int:
    """Bytes alive beside one model's cache while its tensors are made longer, `tokens` of each sequence read."""
    return _COPIES[cell.engine](cell, shape, tokens)


def fits(cell: Cell, shape: ModelShape, draft_shape: ModelShape | None, device: DeviceProfile) -> bool:
    try:
        return answers.fits(cell, device, _kernels_bytes(cell, device))
    except NotRehearsable:
        return predict_by_formula(cell, shape, draft_shape, device).peak_bytes <= device.capacity(cell.budget)


def predict_boundary(
    cell: Cell,
    shape: ModelShape,
    draft_shape: ModelShape | None,
    device: DeviceProfile,
    phase: str = "decode",
) -> int | None:
    """The largest length that fits, None when none is too long, 0 when not even one token fits.

    `phase` decode: new tokens after `cell.prompt_tokens`. prefill: prompt tokens in passes of
    `cell.prefill_chunk`.
    """

    def at(length: int) -> Cell:
        if phase.startswith("prefill"):
            return dataclasses.replace(cell, prompt_tokens=length, length=1)
        return dataclasses.replace(cell, length=length)

    return largest_fitting(at, shape, draft_shape, device)


class PredictedBoundary(NamedTuple):
    """`value`: the largest whose cell fits; None when memory does not grow with it; 0 when 1 does not fit."""

    value: int | None
    predicted_by: PredictedBy


def largest_fitting(
    at: Callable[[int], Cell], shape: ModelShape, draft_shape: ModelShape | None, device: DeviceProfile
) -> int | None:
    """The largest value whose cell fits; None when memory does not grow with the value; 0 when 1 does not
    fit.
    """
    return predicted_largest(at, shape, draft_shape, device).value


def predicted_largest(
    at: Callable[[int], Cell], shape: ModelShape, draft_shape: ModelShape | None, device: DeviceProfile
) -> PredictedBoundary:
    """As `largest_fitting`, with its source. Raises `UnknownWeightsError`."""
    one = at(1)
    try:
        answers.check(one, device)
        kernels_bytes = _kernels_bytes(one, device)
        guess = largest_by_formula(at, shape, draft_shape, device)
        found = answers.largest_fitting(at, device, kernels_bytes, guess)
        return PredictedBoundary(found, "rehearsal")
    except NotRehearsable:
        return PredictedBoundary(largest_by_formula(at, shape, draft_shape, device), "formula")


def largest_by_formula(
    at: Callable[[int], Cell], shape: ModelShape, draft_shape: ModelShape | None, device: DeviceProfile
) -> int | None:
    """As `largest_fitting`, without a rehearsal."""

    def ok(value: int) -> bool:
        predicted = predict_by_formula(at(value), shape, draft_shape, device)
        return predicted.peak_bytes <= device.capacity(at(value).budget)

    if not ok(1):
        return 0
    high = 2
    while ok(high):
        if high >= _FAR:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if ok(middle) else (low, middle)
    return low


def smallest_budget(
    cell: Cell, shape: ModelShape, draft_shape: ModelShape | None, device: DeviceProfile
) -> int:
    """Bytes of the smallest card on which the first token of `cell` would fit."""
    first = dataclasses.replace(cell, length=1, budget=0)
    return predict_by_formula(first, shape, draft_shape, device).peak_bytes - device.capacity(first.budget)


def _weights(name: str, ref: ModelRef, shape: ModelShape, device: DeviceProfile) -> list[tuple[int, int]]:
    """(bytes, blocks of memory). On a CPU too when the files stay mapped: private mappings count against the data
    limit.
    """
    if shape.is_quantised and shape.stored_tensors is not None:
        return list(shape.stored_tensors)
    if shape.is_quantised or shape.weight_numels is None or shape.fixed_bytes is None:
        raise UnknownWeightsError(f"{name}: the size of its weights cannot be told from its config")
    width = dtype_bytes(ref.dtype)
    if is_converted(name, ref, shape, device):
        return [
            (sum(numel * count for numel, count in shape.weight_numels) * width, 1),
            (shape.fixed_bytes, 1),
        ]
    return [*((numel * width, count) for numel, count in shape.weight_numels), (shape.fixed_bytes, 1)]
