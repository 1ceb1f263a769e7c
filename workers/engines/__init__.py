"""The engines by name. Each is imported only when a cell asks for it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.cell import Cell
    from workers.engines.session import Session
    from workers.models.load import LoadedModel

#: engine -> the module whose `open_session(cell, target, draft)` runs it
ENGINES = {"eager": "workers.engines.eager", "graph": "workers.engines.graph"}


def open_session(cell: "Cell", target: "LoadedModel", draft: "LoadedModel | None") -> "Session":
    """Raises `ModeUnsupported` when the architecture lacks what the mode needs; memory errors pass through."""
    session: Session = import_module(ENGINES[cell.engine]).open_session(cell, target, draft)
    return session
