"""What a cell holds, and how far it comes on a card, by rehearsal. CUDA, the eager engine, `generate`.

Everything here raises `NotRehearsable` where a cell cannot be rehearsed: the formulas answer then.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

from orchestrator.predict.allocator.caching import CachingAllocator
from orchestrator.predict.allocator.settings import AllocatorSettings
from orchestrator.predict.caches import kept_tokens
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.rehearsed.passes import RehearsedPasses, ScoredPasses
from orchestrator.predict.rehearsed.prefix import Prefix
from orchestrator.predict.rehearsed.run import Rehearsal, RehearsedRun, ids_bytes
from orchestrator.predict.rehearsed.store import answered
from workers.allocator import DEFAULT, settings_text
from workers.cell import Cell, ModelRef, to_json
from workers.engines.sizes import eager_chunk
from workers.modes import GENERATE, SCORE, Layout
from workers.rehearsal.passes import ModeRefused, NotRehearsable

#: No text is longer.
_FAR = 2**31
#: The prompt whose ids stand for all where a prompt's end is first looked for.
_TYPICAL_PROMPT = 2**16
#: A prompt's or a batch's end is found to this share of it.
_SHARE = 1 / 2048
#: Prompts whose lengths differ by no more than this share may have a beginning in common, whatever their ids take.
_NEAR = 1 / 16
#: By all but the prompt: the last prompt whose beginning others continued.
_near: dict[object, int] = {}
#: A cache that evicts is filled in passes of no fewer tokens: each is rehearsed.
_FILLING = 64
#: Fields of a cell that its memory does not depend on, at the value that stands for all.
_ANY: dict[str, Any] = {"repeat": 0, "seed": 0, "corpus": "", "purpose": "probe", "budget": None}


class RehearsedPeak(NamedTuple):
    """Bytes of a run at its peak. `fits`: whether it ends. Where it does not: what it would hold, if there were more, without
    what the allocator merely keeps.
    """

    fits: bool
    phase: str
    weights_bytes: int
    kv_bytes: int
    peak_allocated: int
    peak_reserved: int


def peak(cell: Cell, device: DeviceProfile, kernels_bytes: int, *, loaded: bool = False) -> RehearsedPeak:
    """Of the whole run; `loaded`: of what comes after loading. `kernels_bytes`: beyond the context, what loads while the
    model runs.
    """
    check(cell, device)
    room = device.capacity(cell.budget) - device.context_bytes - kernels_bytes
    question = {"ask": "peak", **_content(cell, device), "room": room, "loaded": loaded}
    return RehearsedPeak(*answered(question, lambda: _peak(cell, device, room, loaded)))


def fits(cell: Cell, device: DeviceProfile, kernels_bytes: int) -> bool:
    """Whether the run ends: quicker than its peak, where it does not."""
    check(cell, device)
    room = device.capacity(cell.budget) - device.context_bytes - kernels_bytes
    question = {"ask": "fits", **_content(cell, device), "room": room}
    found: bool = answered(question, lambda: [_fits(cell, device, room)])[0]
    return found


def refusal(cell: Cell, device: DeviceProfile) -> str | None:
    """Why the engine refuses the cell's mode for this architecture; None where it does not, or cannot be asked."""

    def find() -> list[str | None]:
        try:
            _passes(*_normal(cell)).start(2)
        except ModeRefused as error:
            return [str(error)]
        except NotRehearsable:
            pass
        return [None]

    try:
        check(cell, device)
        found: str | None = answered({"ask": "refusal", **_content(cell, device)}, find)[0]
    except NotRehearsable:
        return None
    return found


def largest_fitting(
    at: Callable[[int], Cell], device: DeviceProfile, kernels_bytes: int, guess: int | None
) -> int | None:
    """The largest value whose cell fits; None where memory does not grow with it; 0 where 1 does not fit.

    `guess`: where to look first.
    """
    one, two = at(1), at(2)
    check(one, device)
    room = device.capacity(one.budget) - device.context_bytes - kernels_bytes
    question = {
        "ask": "largest",
        **_content(one, device),
        "room": room,
        "second": _plain(two),
        "third": _plain(at(1000)),
    }

    def find() -> list[int | None]:
        if not one.mode_spec.policy.grows and one.batch_size == two.batch_size:
            if _fits(at(_FAR), device, room):
                return [None]
            # A prompt shorter than a whole pass needs less.
            first = eager_chunk(at(_FAR)) or 1
            return [_bisected(lambda value: _fits(at(value), device, room), first, max(1, first // 32))]
        first = guess or 1
        if one.mode_spec.policy.layout is Layout.FIXED:  # no run is the beginning of a longer one
            return [_bisected(lambda value: _fits(at(value), device, room), first, max(1, first // 32))]
        if not _is_scored(one) and (
            dataclasses.replace(one, length=two.length) == two and two.length == one.length + 1
        ):
            return [_longest(one, device, room)]
        chunk = eager_chunk(one)
        if chunk is not None and one.batch_size == two.batch_size:
            first = _longest_prompt(at, first, device, room)
            step = max(1, int(first * _SHARE))
        else:
            step = max(1, first // 32)
        return [_bisected(lambda value: _fits(at(value), device, room), first, step)]

    found: int | None = answered(question, find)[0]
    return found


def prepare() -> None:
    """Import what rehearsals need: seconds, in a process that will be asked."""
    import workers.rehearsal.eager  # noqa: F401


def is_rehearsed(cell: Cell, device: DeviceProfile) -> bool:
    """Whether a rehearsal is tried at all."""
    try:
        check(cell, device)
    except NotRehearsable:
        return False
    return True


def kin(cell: Cell) -> Cell:
    """Equal for cells that share their rehearsals."""
    prompt = 0 if cell.mode_spec.policy.grows else cell.prompt_tokens
    return dataclasses.replace(cell, length=1, prompt_tokens=prompt, allocator=DEFAULT, **_ANY)


def check(cell: Cell, device: DeviceProfile) -> None:
    """Raises `NotRehearsable` for what is not rehearsed at all, without a look at the model."""
    policy = cell.mode_spec.policy
    if cell.devices > 1:
        raise NotRehearsable("a model on several devices is not rehearsed")
    if device.allocator != "cuda" or cell.engine != "eager":
        raise NotRehearsable(f"the {cell.engine} engine on {device.kind} is not rehearsed")
    if _is_scored(cell) and policy.grows and policy.layout is Layout.APPENDED:
        return
    if cell.workload != GENERATE.name or policy.layout is Layout.NONE or cell.prompt_tokens < 1:
        raise NotRehearsable(f"{cell.mode}, {cell.workload}: not rehearsed")


def _is_scored(cell: Cell) -> bool:
    return cell.workload == SCORE.name


def _new_tokens(cell: Cell) -> int:
    """A text that is scored counts as a prompt, with which its run ends."""
    return 1 if _is_scored(cell) else cell.length


def _peak(cell: Cell, device: DeviceProfile, room: int, loaded: bool) -> RehearsedPeak:
    new = _new_tokens(cell)
    run = _run(cell, device, room).to(new)
    fits = run.fits(new)
    if not fits:
        run = _run(cell, device, None).to(new)
    point = run.at(new)
    if not loaded:
        reserved = max(point.peak_reserved, run.points[0].peak_reserved)
        point = max(point, run.points[0], key=lambda each: each.peak_allocated)._replace(
            peak_reserved=reserved
        )
    return RehearsedPeak(
        fits=fits,
        phase=point.phase,
        weights_bytes=run.weights_bytes,
        kv_bytes=point.kv_bytes,
        peak_allocated=point.peak_allocated,
        peak_reserved=point.peak_reserved if fits else max(point.peak_allocated, room + 1),
    )


def _longest(one: Cell, device: DeviceProfile, room: int) -> int | None:
    run = _run(one, device, room).to(_FAR)
    if run.failure is None:
        return None
    return run.failure.tokens - one.length + 1 if run.failure.phase == "decode" else 0


def _longest_prompt(at: Callable[[int], Cell], guess: int, device: DeviceProfile, room: int) -> int:
    """About the largest value that fits: prompts of all lengths share their first passes here, and with them ids of one
    length.
    """

    def run(value: int, ids_of: int) -> RehearsedRun:
        cell, chunk = _normal(at(value))
        emulated = cell.budget is not None
        return _live_run(cell, chunk, max(room, 0), emulated, device.runtime_bytes, ids_of)

    def fits(value: int) -> bool:
        return run(value, end).to(_new_tokens(at(value))).failure is None

    value = 2 * guess
    while value < _FAR:
        failure = run(value, _TYPICAL_PROMPT).to(1).failure
        if failure is not None:
            end = max(1, failure.tokens)
            first = max(1, end - (_normal(at(value))[0].prompt_tokens - value))
            return _bisected(fits, first, max(1, first // 32)) or 1
        value *= 2
    return value


def _fits(cell: Cell, device: DeviceProfile, room: int) -> bool:
    new = _new_tokens(cell)
    return _run(cell, device, room).to(new).fits(new)


def _bisected(fits: Callable[[int], bool], guess: int, step: int) -> int | None:
    """From `guess` outwards in growing steps, then by halving what lies between."""
    low, high = 0, guess
    if fits(high):
        while fits(high):
            low, high, step = high, high + step, 2 * step
            if high > _FAR:
                return None
    else:
        low = max(high - step, 0)
        while low and not fits(low):
            high, step = low, 2 * step
            low = max(low - step, 0)
    while high - low > max(1, int(low * _SHARE)):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _run(cell: Cell, device: DeviceProfile, room: int | None) -> RehearsedRun:
    """The run of `cell` at any length: one for all lengths, which goes on where it was left. `room`: bytes for torch's
    allocator, None: without end.
    """
    emulated = cell.budget is not None
    cell, chunk = _normal(cell)
    return _live_run(cell, chunk, None if room is None else max(room, 0), emulated, device.runtime_bytes)


def _normal(cell: Cell) -> tuple[Cell, int | None]:
    """The one cell of all that have its passes, and the chunks in which its prompt is read before them."""
    if _is_scored(cell):  # all but the last token are read
        cell = dataclasses.replace(cell, prompt_tokens=cell.length + 1)
    length = cell.length if cell.mode_spec.policy.layout is Layout.FIXED else 1
    cell = dataclasses.replace(cell, length=length, **_ANY)
    chunk = eager_chunk(cell)
    if not cell.mode_spec.policy.grows and chunk is not None:
        # The session reads the prompt by itself, and its passes are alike after the first.
        prompt = min(cell.prompt_tokens, 3 * chunk + 1)
        if cell.mode_spec.policy.layout is Layout.APPENDED:
            # Alike once the cache is full: a prompt that fills it stands for every text, those too that never do.
            chunk = max(chunk, _FILLING)
            prompt = kept_tokens(cell, None, _FAR, 1) + 3 * chunk + 1
            cell = dataclasses.replace(cell, prefill_chunk=chunk)
        cell, chunk = dataclasses.replace(cell, prompt_tokens=prompt), None
    return cell, chunk


@functools.lru_cache(maxsize=64)
def _live_run(
    cell: Cell,
    chunk: int | None,
    room: int | None,
    emulated: bool,
    library_bytes: int,
    ids_of: int | None = None,
) -> RehearsedRun:
    """`ids_of`: a prompt whose ids are as long; None: its own."""
    settings = AllocatorSettings.parse(settings_text(cell.allocator))
    limit = {"allowed_bytes" if emulated else "device_bytes": room}
    allocator = CachingAllocator(settings, **limit)
    if chunk is None or cell.prompt_tokens <= chunk or settings.garbage_collection_threshold:
        return _new_run(cell, chunk, allocator, library_bytes)
    kind = (dataclasses.replace(cell, prompt_tokens=1), chunk, emulated, library_bytes)
    wanted = ids_of or cell.prompt_tokens
    near = _near.get(kind, 0)
    if settings != AllocatorSettings() or abs(near - wanted) > wanted * _NEAR:
        # Ids that take blocks of one size are alike.
        block = allocator.rounded(ids_bytes(cell.batch_size, wanted))
        near = _near[kind] = 1 + block // ids_bytes(cell.batch_size, 2)
    shared = dataclasses.replace(cell, prompt_tokens=near)
    return _prefix(shared, chunk, emulated, library_bytes).of(cell.prompt_tokens, room, ids_of)


@functools.lru_cache(maxsize=4)
def _prefix(cell: Cell, chunk: int, emulated: bool, library_bytes: int) -> Prefix:
    allocator = CachingAllocator(AllocatorSettings.parse(settings_text(cell.allocator)))
    return Prefix(_new_run(cell, chunk, allocator, library_bytes), chunk, emulated=emulated)


def _new_run(cell: Cell, chunk: int | None, allocator: CachingAllocator, library_bytes: int) -> RehearsedRun:
    return RehearsedRun(
        _passes(cell, chunk),
        allocator,
        (library_bytes,),
        prompt_tokens=cell.prompt_tokens,
        chunk=chunk,
        batch_size=cell.batch_size,
    )


def _prompt_of(cell: Cell) -> int:
    """What a rehearsal must know of the prompt: in constant memory, how long its passes are; of a fixed cache, its size."""
    return 1 if _is_appended_to(cell) else cell.prompt_tokens


def _is_appended_to(cell: Cell) -> bool:
    return cell.mode_spec.policy.grows and cell.mode_spec.policy.layout is not Layout.FIXED


def _passes(cell: Cell, chunk: int | None) -> Rehearsal:
    return _passes_of(dataclasses.replace(cell, prompt_tokens=_prompt_of(cell), allocator=DEFAULT), chunk)


@functools.lru_cache(maxsize=16)
def _passes_of(cell: Cell, chunk: int | None) -> Rehearsal:
    from workers.rehearsal.eager import (
        EagerRehearsal,  # torch and transformers: seconds, which few commands need
    )

    if _is_scored(cell):
        assert chunk is not None  # a text is never scored at once
        return ScoredPasses(EagerRehearsal(cell), chunk)
    return RehearsedPasses(EagerRehearsal(cell), chunk, grows=_is_appended_to(cell))


def _content(cell: Cell, device: DeviceProfile) -> dict[str, Any]:
    """What an answer depends on: of the models their configurations too, which may change under one name."""
    names = [name for name in (cell.model.target, cell.model.draft) if name is not None]
    return {
        "cell": _plain(cell),
        "configs": [_config_hash(name, cell.model) for name in names],
        "library_bytes": device.runtime_bytes,
        "emulated": cell.budget is not None,
    }


def _plain(cell: Cell) -> dict[str, Any]:
    return to_json(dataclasses.replace(cell, **_ANY))


@functools.lru_cache(maxsize=256)  # asked for with every record of the journal
def _config_hash(name: str, ref: ModelRef) -> str:
    from workers.models import LoadError
    from workers.models.config import read_config

    try:
        config = read_config(name, ref)
    except LoadError as error:
        raise NotRehearsable(str(error)) from error
    text = f"{type(config).__name__} {config.to_json_string(use_diff=False)}"
    return hashlib.sha256(text.encode()).hexdigest()
