"""Shapes of current models, by kind: some the prediction was developed with, some it never saw."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.models.shapes import shapes as known_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkShape:
    """`config`: config.json's content. `budgets_gib`: emulated cards on which a long prompt runs out of memory."""

    name: str
    kind: str
    developed_with: bool
    budgets_gib: tuple[int, ...]
    config: dict[str, Any]

    def write(self, folder: Path) -> str:
        """Put its config.json under `folder`; returns the model's name in a cell."""
        home = folder / self.name
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.json").write_text(json.dumps(self.config))
        return f"random:{home}"


def benchmark_shapes() -> list[BenchmarkShape]:
    content = json.loads((Path(__file__).parent / "shapes.json").read_text())
    return [
        BenchmarkShape(
            name=name,
            kind=shape["kind"],
            developed_with=shape["developed_with"],
            budgets_gib=tuple(shape["budgets_gib"]),
            config=shape["config"] if "config" in shape else known_shapes()[shape["known"]]["config"],
        )
        for name, shape in content.items()
    ]
