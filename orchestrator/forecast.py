"""What a sweep should need, before any device is touched: memory, boundary and time per cell, from configs alone."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.plan import expand, refuse_bad_models, refuse_missing_corpus
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.duration import predict_seconds
from orchestrator.predict.memory import UnknownWeightsError, fits, predict, predict_boundary, smallest_budget
from orchestrator.predict.shape import ModelShape, ShapeError, shape_for
from orchestrator.spec import SpecError, SweepSpec, parse_bytes
from workers.attempt import Device
from workers.cell import Cell
from workers.models import LoadError

#: What an 80 GB card holds: stands in for `budget: device` where no device was named.
_TYPICAL_CARD = 80 * 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class CellForecast:
    """None: cannot be told from the config (see `Forecast.unknown`); `boundary` None: constant memory."""

    cell: Cell
    budget_bytes: int
    peak_bytes: int
    boundary: int | None
    bytes_per_token: int
    seconds: float
    max_positions: int | None

    @property
    def fits(self) -> bool:
        return self.boundary is None or self.cell.length <= self.boundary


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """`unknown`: models of which nothing can be told here, with the reason. `assumed_card`: nobody named one."""

    cells: int
    device: DeviceProfile
    assumed_card: bool
    forecasts: tuple[CellForecast, ...]
    unknown: tuple[tuple[str, str], ...]

    @property
    def device_seconds(self) -> float:
        return sum(forecast.seconds for forecast in self.forecasts)


def forecast(spec: SweepSpec, device: str | None = None) -> Forecast:
    """`device`: `cpu`, a card's name, or either with `:size` (`H100:80GiB`). Raises `SpecError`."""
    profile, assumed = _profile(device)
    cells = expand(spec)
    shapes, unknown = _shapes(cells)
    return Forecast(
        cells=len(cells),
        device=profile,
        assumed_card=assumed and None in spec.budgets,
        forecasts=tuple(_forecast_cells(cells, shapes, profile)),
        unknown=tuple(unknown.items()),
    )


def refuse_bad_input(spec: SweepSpec) -> None:
    """Everything that can be known wrong before any device is touched. Raises `SpecError`."""
    refuse_bad_models(spec)
    refuse_missing_corpus(spec)
    refuse_budgets_below_weights(spec)


def refuse_budgets_below_weights(spec: SweepSpec) -> None:
    """A budget on which not even one token would fit in some mode. Raises `SpecError` with the smallest that would do.

    Judged without what a device would add (context, driver reserve), so that nothing is refused that could run.
    """
    bare = dataclasses.replace(_profile("cpu")[0], context_bytes=0)
    cells = {
        (c.model, c.mode, c.engine, c.batch_size, c.budget): c for c in expand(spec) if c.budget is not None
    }
    shapes, _ = _shapes(list(cells.values()))
    for cell in cells.values():
        target, draft = shapes.get(cell.model.target), shapes.get(cell.model.draft or "")
        if target is None or (cell.model.draft is not None and draft is None):
            continue
        assert cell.budget is not None
        try:
            needed = smallest_budget(cell, target, draft, bare)
        except UnknownWeightsError:
            continue
        if needed > cell.budget:
            raise SpecError(
                f"budgets: {cell.budget / 2**20:,.0f} MiB is below what {cell.model.target!r} needs for one token in "
                f"mode {cell.mode!r} (oom_load): at least {needed / 2**20:,.0f} MiB, plus the device's own context"
            )


def _forecast_cells(
    cells: list[Cell], shapes: dict[str, ModelShape], profile: DeviceProfile
) -> Iterator[CellForecast]:
    for cell in cells:
        target = shapes.get(cell.model.target)
        draft = shapes.get(cell.model.draft) if cell.model.draft else None
        if cell.repeat or target is None or (cell.model.draft is not None and draft is None):
            continue
        prediction = predict(cell, target, draft, profile)
        yield CellForecast(
            cell=cell,
            budget_bytes=profile.total_bytes if cell.budget is None else cell.budget,
            peak_bytes=prediction.peak_bytes,
            boundary=_boundary(cell, target, draft, profile),
            bytes_per_token=prediction.bytes_per_token,
            seconds=predict_seconds(cell, target, draft, profile)
            * sum(_twins(cell, other) for other in cells),
            max_positions=target.max_positions,
        )


def _boundary(cell: Cell, target: ModelShape, draft: ModelShape | None, profile: DeviceProfile) -> int | None:
    """None where the caches are bounded: what is left to grow (8 bytes of ids per token) meets no card's end."""
    if cell.mode_spec.policy.bounded and fits(dataclasses.replace(cell, length=1), target, draft, profile):
        return None
    return predict_boundary(cell, target, draft, profile)


def _twins(cell: Cell, other: Cell) -> bool:
    return dataclasses.replace(other, repeat=cell.repeat) == cell


def _shapes(cells: list[Cell]) -> tuple[dict[str, ModelShape], dict[str, str]]:
    shapes: dict[str, ModelShape] = {}
    unknown: dict[str, str] = {}
    for cell in cells:
        for name in (cell.model.target, cell.model.draft):
            if name is None or name in shapes or name in unknown:
                continue
            try:
                shape = shape_for(name, cell.model)
                if shape.weights_bytes(cell.model.dtype) is None:
                    raise UnknownWeightsError("transformers cannot build it from its config")
                shapes[name] = shape
            except (LoadError, ShapeError, UnknownWeightsError) as error:
                unknown[name] = str(error)
    return shapes, unknown


def _profile(device: str | None) -> tuple[DeviceProfile, bool]:
    """The device to predict for, and whether its size is an assumption."""
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
