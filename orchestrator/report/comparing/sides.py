"""What is compared: each run on each kind of device."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.journal.folder import read_run
from orchestrator.journal.manifest import Manifest
from orchestrator.names import Names
from orchestrator.report import formats
from orchestrator.report.setting import mode_words
from orchestrator.spec import SweepSpec
from orchestrator.tables.boundary_rows import BoundaryRow
from orchestrator.tables.summary import KEY
from orchestrator.tables.write import derive

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """One run on one kind of device. `rows`: of `summary`, by cell; `boundaries`: by question."""

    label: str
    folder: str
    device_kind: str
    spec: SweepSpec | None
    manifest: Manifest | None
    rows: dict[Key, dict[str, Any]]
    boundaries: dict[Key, BoundaryRow]

    @property
    def allocator(self) -> str:
        return " ".join(self.manifest.environment.allocator.values()) if self.manifest else ""


def read_sides(folders: Sequence[str | Path]) -> list[Side]:
    """A, B, ... in the order of the folders; a run on several kinds of device is several sides.

    Raises `FolderError`, `SchemaTooNew`, `StoreError`.
    """
    return [side for number, folder in enumerate(folders) for side in _sides(number, str(folder))]


def _sides(number: int, folder: str) -> list[Side]:
    run = read_run(folder)
    with derive(run) as tables:
        summary, boundaries = tables.summary, tables.boundaries
    kinds = sorted(
        {kind for kind in summary["device_kind"] if kind} | {row.device_kind for row in boundaries}
    )
    name = chr(ord("A") + number % 26)
    key = [column for column in KEY if column != axes.DEVICE_KIND]
    return [
        Side(
            f"{name} ({kind})" if len(kinds) > 1 else name,
            folder,
            kind,
            run.spec,
            run.manifest,
            {
                tuple(row[column] for column in key): row
                for row in summary.filter(device_kind=kind).iter_rows(named=True)
            },
            {
                (*row.identity.values(), row.phase, row.axis): row
                for row in boundaries
                if row.device_kind == kind
            },
        )
        for kind in kinds or [""]
    ]


def names_of(sides: Sequence[Side]) -> Names:
    rows = [
        row
        for side in sides
        for row in (*side.rows.values(), *(r.identity for r in side.boundaries.values()))
    ]
    return Names.of((row["model"], row["dtype"], row["draft"]) for row in rows)


def boundary_words(names: Names, row: BoundaryRow) -> str:
    about = f"{names.row(dict(row.identity))} {mode_words(names, row.identity)}, {row.engine}"
    others = axes.unusual(row.identity, Role.CONDITION, but=["prompt_tokens"])
    return ", ".join([f"{about}, {formats.card(row.budget_bytes)}, {row.phase}", *others])


def cell_words(names: Names, row: dict[str, Any]) -> str:
    return ", ".join(
        [
            f"{names.row(row)} {mode_words(names, row)}, {row['engine']}",
            formats.card(row["budget_bytes"]),
            f"{row['prompt_tokens']:,} + {row['length']:,}",
            *axes.unusual(row, Role.CONDITION, but=["prompt_tokens"]),
        ]
    )
