"""The last seconds before memory ran out, as the meter saw them."""

from orchestrator.report import formats
from orchestrator.report.document import Picture
from orchestrator.report.pictures.curves import ChartAxis, Curve, Limit, Panel, draw
from orchestrator.report.pictures.theme import picture
from workers.attempt import Attempt
from workers.units import GiB, MiB

_SECONDS = 5.0


def last_seconds(attempt: Attempt) -> Picture | None:
    """None with fewer than two samples in them."""
    taken = [(s.t_s, s.device_used_bytes) for s in attempt.samples if s.device_used_bytes is not None]
    if not taken:
        return None
    end = taken[-1][0]
    kept = [(t - end, used) for t, used in taken if t >= end - _SECONDS][-400:]
    if len(kept) < 2:
        return None
    cell = attempt.cell
    unit, name = (GiB, "GiB") if kept[-1][1] >= 2 * GiB else (MiB, "MiB")
    curve = Curve(
        "",
        cell.mode_spec.policy.colour,
        None,
        [t for t, _ in kept],
        [used / unit for _, used in kept],
        out_of_memory=True,
    )
    limits = (
        [Limit(f"budget {formats.card(cell.budget)}", y=cell.budget / unit)]
        if cell.budget is not None
        else []
    )
    panel = Panel(
        "The last seconds",
        ChartAxis("seconds before the end"),
        ChartAxis(f"memory ({name})"),
        [curve],
        limits,
        steps=True,
        width=520,
        height=180,
    )
    return picture(
        f"last-seconds-{cell.cell_id}", draw(panel), "The meter's last seconds.", "Memory just before the end"
    )
