"""`oomline status`, for a person."""

from rich.console import Console
from rich.table import Table

from orchestrator.status import RunStatus


def print_status(standing: RunStatus) -> None:
    console = Console()
    planned = f" of {standing.planned}" if standing.planned is not None else ""
    console.print(
        f"[bold]{standing.name}[/bold] is {standing.state}: {standing.reached}{planned} cells reached an outcome"
    )
    if standing.probes:
        console.print(f"{standing.probes} probes of the boundary search beside them")
    if standing.note:
        console.print(standing.note, markup=False)
    if standing.last_attempt_s_ago is not None:
        console.print(f"last attempt ended {_ago(standing.last_attempt_s_ago)} ago")
    if standing.outcomes:
        console.print(", ".join(f"{count} {outcome}" for outcome, count in standing.outcomes.items()))
    if standing.devices:
        table = Table()
        for header in ("device", "kind", "node", "attempts", "last ended"):
            table.add_column(header)
        for device in standing.devices:
            ago = "" if device.last_ended_s_ago is None else f"{_ago(device.last_ended_s_ago)} ago"
            table.add_row(device.uuid, device.kind, device.node, str(device.attempts), ago)
        console.print(table)
    for name in standing.set_aside:
        console.print(f"journal part set aside: {name}", markup=False)


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
