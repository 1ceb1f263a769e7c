"""What a sweep should need, before any device is touched: memory, boundary and time per cell, from configs alone."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from orchestrator.plan import expand
from orchestrator.predict.cache_law import CacheLaw, cache_law, difference
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.duration import predict_seconds
from orchestrator.predict.memory import PredictedBy, fits, predict, predict_boundary, refusal
from orchestrator.predict.model_shapes import CellShapes, ModelShapes
from orchestrator.predict.rehearsed import answers
from orchestrator.predict.rehearsed.background import Call, answer_in_parallel
from orchestrator.predict.shape import ModelShape
from orchestrator.spec import SweepSpec, parse_bytes
from orchestrator.spec_error import SpecError
from workers import kv_dtype
from workers.allocator import refusal_on_cpu
from workers.attempt import Device
from workers.cell import Cell, ModelRef
from workers.engines.preflight import refuse_by_config
from workers.engines.session import ModeUnsupported
from workers.models import LoadError

#: What an 80 GB card holds: stands in for `budget: device` where no device was named.
_TYPICAL_CARD = 80 * 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class CellForecast:
    """None: cannot be told from the config (see `Forecast.unknown`); `boundary` None: constant memory.

    `law`: of the caches. `predicted_by`: the source of `peak_bytes` and `boundary`.
    """

    cell: Cell
    budget_bytes: int
    peak_bytes: int
    boundary: int | None
    law: CacheLaw | None
    seconds: float
    max_positions: int | None
    predicted_by: PredictedBy

    @property
    def fits(self) -> bool:
        return self.boundary is None or self.cell.length <= self.boundary


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """`unknown`: models, and modes of them, of which nothing can be told here, with the reason. `assumed_card`: nobody named one.

    `differences`: where two sources tell another law of a model's cache, a line each. `notes`: what the sizes of a model's
    weights leave out, a line each.
    """

    cells: int
    device: DeviceProfile
    assumed_card: bool
    forecasts: tuple[CellForecast, ...]
    unknown: tuple[tuple[str, str], ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def device_seconds(self) -> float:
        return sum(forecast.seconds for forecast in self.forecasts)


def forecast(spec: SweepSpec, device: str | None = None) -> Forecast:
    """`device`: `cpu`, a card's name, or either with `:size` (`H100:80GiB`). Raises `SpecError`."""
    profile, assumed = profile_for(device)
    cells = expand(spec)
    shapes = ModelShapes()
    for cell in cells:
        shapes.weighed(cell)  # also of models whose modes are all refused: what is unknown of them is told
    possible = list(cells)
    told: dict[str, str] = {}
    if profile.allocator == "cpu":
        for name in dict.fromkeys(spec.allocator):
            if reason := refusal_on_cpu(name):
                told[f"allocator {name}"] = reason
                possible = [cell for cell in possible if cell.allocator != name]
        for name in dict.fromkeys(spec.kv_placement):
            if reason := kv_dtype.refusal_on_cpu(name):
                told[f"kv_placement {name}"] = reason
                possible = [cell for cell in possible if cell.kv_placement != name]
    refused = _refused_by_config(possible)
    possible = [cell for cell in possible if _mode(cell) not in refused]
    _rehearse(possible, shapes, profile)
    refused |= _refused_by_engine(possible, profile)
    possible = [cell for cell in possible if _mode(cell) not in refused]
    told |= {_words(mode): reason for mode, reason in refused.items()}
    return Forecast(
        cells=len(cells),
        device=profile,
        assumed_card=assumed and None in spec.budgets,
        forecasts=tuple(_forecast_cells(possible, shapes, profile)),
        unknown=tuple((shapes.unknown | told).items()),
        differences=tuple(_differences(possible, shapes)),
        notes=tuple(
            note for ref in dict.fromkeys(cell.model for cell in possible) for note in shapes.notes(ref)
        ),
    )


def _differences(cells: Iterable[Cell], shapes: ModelShapes) -> Iterator[str]:
    """Of models whose cache grows as transformers has it: what the formulas tell beside the rehearsal."""
    grows = (c.model for c in cells if c.engine == "eager" and c.mode_spec.policy.grows)
    told: dict[str, None] = {}
    for ref in dict.fromkeys(grows):
        for name in (ref.target, ref.draft):
            if name is not None and name not in shapes.unknown and (found := difference(ref, name)):
                told[found] = None
    yield from told


class _Mode(NamedTuple):
    """What an engine takes or refuses as a whole."""

    model: ModelRef
    mode: str
    engine: str
    kv_dtype: str
    kv_placement: str
    devices: int


def _mode(cell: Cell) -> _Mode:
    return _Mode(cell.model, cell.mode, cell.engine, cell.kv_dtype, cell.kv_placement, cell.devices)


def _words(mode: _Mode) -> str:
    words = f"{mode.model.target}, mode {mode.mode}"
    if mode.kv_dtype != kv_dtype.AUTO:
        words += f", kv_dtype {mode.kv_dtype}"
    if mode.kv_placement != kv_dtype.DEVICE:
        words += f", kv_placement {mode.kv_placement}"
    return words if mode.devices == 1 else f"{words}, {mode.devices} devices"


def _refused_by_engine(cells: Iterable[Cell], profile: DeviceProfile) -> dict[_Mode, str]:
    """The modes that an engine refuses once it sees the model, where a rehearsal can tell."""
    one_of_each = {_mode(cell): cell for cell in cells}
    reasons = {mode: refusal(cell, profile) for mode, cell in one_of_each.items()}
    return {mode: reason for mode, reason in reasons.items() if reason is not None}


def _refused_by_config(cells: Iterable[Cell]) -> dict[_Mode, str]:
    """The modes that an architecture cannot have, and why: their cells end in `load_error`."""
    refused: dict[_Mode, str] = {}
    for cell in {_mode(cell): cell for cell in cells}.values():
        try:
            refuse_by_config(cell)
        except ModeUnsupported as error:
            refused[_mode(cell)] = str(error)
        except LoadError:
            pass  # told of the model as a whole
    return refused


def _forecast_cells(
    cells: Sequence[Cell], shapes: ModelShapes, profile: DeviceProfile
) -> Iterator[CellForecast]:
    """One per cell but for its repeats. Work is linear in the cells: a boundary is searched for once for all lengths."""
    repeats = Counter(dataclasses.replace(cell, repeat=0) for cell in cells)
    boundaries: dict[Cell, int | None] = {}
    laws: dict[Cell, CacheLaw | None] = {}
    for cell, count in repeats.items():
        target, draft = shapes.weighed(cell)
        if target is None:
            continue
        any_length = dataclasses.replace(cell, length=1)
        if any_length not in boundaries:
            boundaries[any_length] = _boundary(any_length, target, draft, profile)
        law_of = dataclasses.replace(any_length, prompt_tokens=1, budget=None)
        if law_of not in laws:
            laws[law_of] = cache_law(law_of, CellShapes(target, draft))
        prediction = predict(cell, target, draft, profile)
        yield CellForecast(
            cell=cell,
            budget_bytes=profile.total_bytes if cell.budget is None else cell.budget,
            peak_bytes=prediction.peak_bytes,
            boundary=boundaries[any_length],
            law=laws[law_of],
            seconds=predict_seconds(cell, target, draft, profile) * count,
            max_positions=target.max_positions,
            predicted_by=prediction.predicted_by,
        )


def _rehearse(cells: Iterable[Cell], shapes: ModelShapes, profile: DeviceProfile) -> None:
    """Ask at once for whatever the cells' rehearsals tell, so that models share the cores that are there."""
    weighed = {cell: shapes.weighed(cell) for cell in cells if answers.is_rehearsed(cell, profile)}
    answer_in_parallel(
        [
            Call(answers.kin(cell), _ask, (cell, known, profile))
            for cell, known in weighed.items()
            if known.target is not None
        ]
    )


def _ask(cell: Cell, shapes: CellShapes, profile: DeviceProfile) -> None:
    assert shapes.target is not None
    if refusal(cell, profile) is not None:
        return
    _boundary(dataclasses.replace(cell, length=1), shapes.target, shapes.draft, profile)
    predict(cell, shapes.target, shapes.draft, profile)


def _boundary(
    any_length: Cell, target: ModelShape, draft: ModelShape | None, profile: DeviceProfile
) -> int | None:
    """None where the caches are bounded: what is left to grow (8 bytes of ids per token) meets no card's end."""
    if not any_length.mode_spec.policy.grows and fits(any_length, target, draft, profile):
        return None
    return predict_boundary(any_length, target, draft, profile)


def profile_for(device: str | None) -> tuple[DeviceProfile, bool]:
    """Return the device to predict for, and whether its size is an assumption. Raises `SpecError`."""
    if device is None:
        device = "NVIDIA" if Path("/dev/nvidiactl").exists() else "cpu"
    kind, _, size = device.partition(":")
    try:
        total = parse_bytes(size) if size else None
    except ValueError as error:
        raise SpecError(f"--device {device}: {size!r} is not valid: {error}") from None
    if total is None:
        total = _host_bytes() if kind == "cpu" else _TYPICAL_CARD
    named = kind if kind == "cpu" or kind.startswith(("NVIDIA", "Tesla")) else f"NVIDIA {kind}"
    stand_in = Device(kind=named, uuid="plan", node="plan", total_bytes=total)
    return DeviceProfile.of(stand_in), not size and kind != "cpu"


def _host_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)
