"""What a sweep will need, from Python."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from jobs.api.sweeps import Sweep, load_spec

if TYPE_CHECKING:
    import polars as pl

    from orchestrator.forecast import Forecast


@dataclass(frozen=True)
class Plan:
    """`forecast`: all that is predicted, as values."""

    forecast: Forecast

    @property
    def cells(self) -> int:
        """Cells of the sweep, for each kind of device, without the search's probes."""
        return self.forecast.cells

    @property
    def device_seconds(self) -> float:
        """Of all cells together, at most, on one device."""
        return self.forecast.device_seconds

    @property
    def unknown(self) -> dict[str, str]:
        """Models and modes of which nothing can be predicted, each with the reason."""
        return dict(self.forecast.unknown)

    @cached_property
    def predictions(self) -> pl.DataFrame:
        """One row for each cell but for its repeats; the columns are the keys of `oomline plan --json`."""
        import polars as pl

        from jobs.plan_view import plan_as_json

        return pl.DataFrame(plan_as_json(self.forecast)["predictions"], infer_schema_length=None)

    def to_json(self) -> str:
        """Return what `oomline plan --json` prints."""
        from jobs.plan_view import plan_as_json

        return json.dumps(plan_as_json(self.forecast), indent=2)


def plan(spec: Sweep, device: str | None = None) -> Plan:
    """Predict memory, boundary and time of every cell, from configs alone. No device is touched.

    `spec`: as of `load_spec`. `device`: a name, or `name:size` such as `H100:80GiB`; default: this machine's kind.
    Raises `SpecError`.
    """
    from orchestrator.forecast import forecast
    from orchestrator.preflight import refuse_bad_input

    sweep = load_spec(spec)
    refuse_bad_input(sweep)
    return Plan(forecast(sweep, device))
