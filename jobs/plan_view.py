"""`oomline plan`, for a person and for a script."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.explain.devices import devices_needed
from orchestrator.forecast import CellForecast, Forecast
from orchestrator.names import Names
from orchestrator.predict.device import DeviceProfile
from orchestrator.spec import SweepSpec
from workers.libraries import library_versions
from workers.units import duration_text, size_text

#: Of a mode's name, in characters: what is longer wraps.
_LONGEST = 24


def plan_as_json(outlook: Forecast) -> dict[str, Any]:
    return {
        "cells": outlook.cells,
        "device": outlook.device.kind,
        "device_bytes": outlook.device.total_bytes,
        "predicted_device_s": round(outlook.device_seconds, 1),
        "predictions": [
            {
                "model": forecast.cell.model.target,
                "draft": forecast.cell.model.draft,
                "dtype": forecast.cell.model.dtype,
                "mode": forecast.cell.mode,
                "engine": forecast.cell.engine,
                "batch_size": forecast.cell.batch_size,
                "prompt_tokens": forecast.cell.prompt_tokens,
                "devices_per_cell": forecast.cell.devices,
                "budget_bytes": forecast.cell.budget,
                "length": forecast.cell.length,
                "predicted_peak_bytes": forecast.peak_bytes,
                "predicted_boundary": forecast.boundary,
                "predicted_by": forecast.predicted_by,
                "analytic_bytes_per_token": None if forecast.law is None else forecast.law.bytes_per_token,
                "analytic_constant_bytes": None if forecast.law is None else forecast.law.constant_bytes,
                "analytic_by": None if forecast.law is None else forecast.law.source,
                "predicted_s": round(forecast.seconds, 1),
            }
            for forecast in outlook.forecasts
        ],
        "differences": list(outlook.differences),
        "notes": list(outlook.notes),
        "unknown": [{"model": name, "reason": reason} for name, reason in outlook.unknown],
    }


def print_plan(spec: SweepSpec, outlook: Forecast) -> None:
    console = Console()
    console.print(Text.assemble((spec.name, "bold"), f": {outlook.cells} cells, {_time(spec, outlook)}"))
    if outlook.assumed_card:
        console.print(
            "budget `device` is shown for a card of 80 GB; name yours with --device, e.g. H200:141GB"
        )
    names = Names.of_refs(forecast.cell.model for forecast in outlook.forecasts)
    tables: dict[tuple[object, ...], list[CellForecast]] = {}
    for forecast in _longest_of_each(outlook.forecasts):
        # Of the conditions, the penalty alone changes no prediction.
        conditions = axes.read(forecast.cell, Role.SETTING, Role.CONDITION) | {
            "engine": "", "repetition_penalty": 1.0
        }  # fmt: skip
        tables.setdefault(tuple(conditions.values()), []).append(forecast)
    for forecasts in tables.values():
        console.print(_table(forecasts, names, outlook.device))
    if spec.boundary is not None and spec.boundary.reach != "decode":
        console.print(
            Text(
                f"token by token; the search (reach: {spec.boundary.reach}) reads its texts as prompts in chunks, which takes more "
                "room: its end, and the report's prediction of it, lie a little lower"
            )
        )
    if any(forecast.predicted_by == "rehearsal" for forecast in outlook.forecasts):
        console.print(Text(f"predicted for cells that run with {library_versions()}"))
    for line in (*outlook.differences, *outlook.notes):
        console.print(Text(f"note: {line}"))
    for name, reason in outlook.unknown:
        console.print(Text.assemble((name, "yellow"), f": no prediction: {reason}"))
    for name, positions in sorted(
        {(f.cell.model.target, f.max_positions) for f in outlook.forecasts if _beyond(f)}
    ):
        console.print(
            Text(f"{name} was trained on {positions:,} positions: longer cells run, and are marked")
        )


def _time(spec: SweepSpec, outlook: Forecast) -> str:
    """An upper bound for the measured cells, as far as anything is predicted of them."""
    if not outlook.forecasts:
        return "of which no time can be predicted"
    left_out = ["the search's probes"] if spec.boundary is not None else []
    left_out += ["what cannot be predicted"] if outlook.unknown else []
    without = f", without {' and '.join(left_out)}" if left_out else ""
    return f"at most about {duration_text(outlook.device_seconds)} on one {outlook.device.kind}{without}"


def _longest_of_each(forecasts: tuple[CellForecast, ...]) -> list[CellForecast]:
    longest: dict[object, CellForecast] = {}
    for forecast in forecasts:
        key = replace(forecast.cell, length=0, repetition_penalty=1.0)
        if key not in longest or longest[key].cell.length < forecast.cell.length:
            longest[key] = forecast
    return list(longest.values())


def _table(forecasts: Sequence[CellForecast], names: Names, device: DeviceProfile) -> Table:
    cell = forecasts[0].cell
    drafts = {forecast.cell.model.draft for forecast in forecasts} - {None}
    values = axes.read(cell, Role.CONDITION) | {"repetition_penalty": 1.0}
    dtype = f" ({cell.model.dtype})" if cell.model.target in names.several else ""
    card = f"{cell.model.target}{dtype} on {size_text(forecasts[0].budget_bytes)}"
    title = [
        card,
        *axes.unusual(values, Role.CONDITION),
        *(f"draft {name}" for name in drafts if len(drafts) == 1),
    ]
    table = Table(
        title=Text(", ".join(title), style="italic"),
        title_justify="left",
    )
    modes = [_mode(forecast, with_draft=len(drafts) > 1) for forecast in forecasts]
    # A name that is cut says nothing; other columns give way first.
    table.add_column("mode", no_wrap=max(map(len, modes)) <= _LONGEST)
    table.add_column("engine")
    table.add_column(f"peak at {cell.length:,}", justify="right")
    table.add_column("cache: bytes per token", justify="right")
    table.add_column("and once", justify="right")
    table.add_column("runs out after tokens", justify="right")
    for mode, forecast in zip(modes, forecasts, strict=True):
        law = forecast.law
        table.add_row(
            Text(mode),
            forecast.cell.engine,
            size_text(forecast.peak_bytes),
            "–" if law is None else f"{law.bytes_per_token:,}",
            "–" if law is None else size_text(law.constant_bytes),
            _boundary(forecast, device),
        )
    return table


def _mode(forecast: CellForecast, *, with_draft: bool) -> str:
    cell = forecast.cell
    mode = f"{cell.mode} ({cell.model.draft})" if with_draft and cell.model.draft else cell.mode
    return ", ".join([mode, *axes.unusual(axes.read(cell), Role.POLICY)])


def _beyond(forecast: CellForecast) -> bool:
    positions = forecast.cell.workload_spec.positions(forecast.cell)
    return forecast.max_positions is not None and positions > forecast.max_positions


def _boundary(forecast: CellForecast, device: DeviceProfile) -> str:
    if forecast.boundary is None:
        return "none"
    if forecast.boundary == 0:
        needed = devices_needed(
            forecast.peak_bytes, forecast.budget_bytes, device.reserve_bytes, device.context_bytes
        )
        return (
            "does not load" if needed is None or needed < 2 else f"does not load: {needed} devices at least"
        )
    return f"{forecast.boundary:,}"
