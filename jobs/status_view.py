"""`oomline status`, for a person."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.answer_view import print_answer
from orchestrator.status import RunStatus
from workers.units import duration_text


def print_status(status: RunStatus) -> None:
    console = Console()
    planned = f" of {status.planned}" if status.planned is not None else ""
    completed = f"{status.completed}{planned} cells have an outcome"
    console.print(Text.assemble((status.name, "bold"), f" is {status.state}: {completed}"))
    if status.probes:
        console.print(f"{status.probes} probes of the boundary search beside them")
    if status.note:
        console.print(Text(status.note))
    if status.last_attempt_s_ago is not None:
        console.print(f"last attempt ended {duration_text(status.last_attempt_s_ago)} ago")
    if status.outcomes:
        console.print(", ".join(f"{count} {outcome}" for outcome, count in status.outcomes.items()))
    if status.devices:
        table = Table()
        for header in ("device", "kind", "node", "attempts", "last ended"):
            table.add_column(header)
        for device in status.devices:
            ago = "" if device.last_ended_s_ago is None else f"{duration_text(device.last_ended_s_ago)} ago"
            table.add_row(*map(Text, (device.uuid, device.kind, device.node)), str(device.attempts), ago)
        console.print(table)
    if status.answer is not None:
        print_answer(status.answer, console)
    for name in status.set_aside:
        console.print(Text(f"journal part set aside: {name}"))
