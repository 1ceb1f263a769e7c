"""Shapes of current models, by kind.

Sets: `development`, which the prediction was developed with; `unseen`, predicted before its runs, whose records then showed how
the driver places segments; `second`, predicted before its runs, and used for nothing else.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.cell import Engine
from workers.engines.families import FAMILIES
from workers.models.shapes import shapes as known_shapes

_PROMPT_TOKENS = 2**17


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkShape:
    """`config`: config.json's content. `budgets_gib`: emulated cards on which a prompt of `prompt_tokens` runs out of memory."""

    name: str
    kind: str
    set: str
    budgets_gib: tuple[int, ...]
    prompt_tokens: int
    config: dict[str, Any]

    @property
    def engines(self) -> tuple[Engine, ...]:
        return ("eager", "graph") if self.config["model_type"] in FAMILIES else ("eager",)

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
            set=shape["set"],
            budgets_gib=tuple(shape["budgets_gib"]),
            prompt_tokens=shape.get("prompt_tokens", _PROMPT_TOKENS),
            config=shape["config"] if "config" in shape else known_shapes()[shape["known"]]["config"],
        )
        for name, shape in content.items()
    ]
