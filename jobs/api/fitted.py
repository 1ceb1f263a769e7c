"""How far a model goes on a card, from Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from orchestrator.fit.questions import Answers

MODES = ("baseline", "streaming")


@dataclass(frozen=True)
class FitResult:
    """`answers`: all that is told, as values."""

    answers: Answers

    @cached_property
    def fits(self) -> pl.DataFrame:
        """One row for each card and mode: does it fit, how far it goes, the peak. The parts of the peak are columns
        `part_*_bytes`."""
        import polars as pl

        from jobs.fit_view import fit_as_json

        rows = []
        for row in fit_as_json(self.answers)["fits"]:
            parts = {f"part_{name}_bytes": size for name, size in row.pop("parts").items()}
            change = row.pop("change")
            rows.append({**row, **parts, "change": None if change is None else change["words"]})
        return pl.DataFrame(rows, infer_schema_length=None)

    def to_json(self) -> str:
        """Return what `oomline fit --json` prints."""
        from jobs.fit_view import fit_as_json

        return json.dumps(fit_as_json(self.answers), indent=2)

    def __str__(self) -> str:
        from jobs.fit_view import sentences

        return "\n".join(sentences(self.answers))


def fit(
    model: str,
    tokens: int | None = None,
    *,
    cards: Sequence[str] = (),
    modes: Sequence[str] = MODES,
    batch: int = 1,
    draft: str | None = None,
    dtype: str = "bfloat16",
    engine: str = "eager",
    allocator: str = "default",
    prefill_chunk: int | None = 2048,
    kv_dtypes: Sequence[str] = ("auto",),
    devices: Sequence[int] = (1,),
    frontier: bool = False,
) -> FitResult:
    """Tell how far a model goes on each card in each mode, or whether `tokens` fit: from its config, without a GPU.

    `model`: as in a sweep file, or the path of a config.json. `cards`: names (`H100`) or sizes (`24GiB`); default: four
    common ones. `batch`: sequences. `prefill_chunk`: tokens of the prompt per pass, None: all in one. `devices`: cards
    that hold the model together, the answer is each one's. `frontier`: for
    1 to 16 sequences too (`FitResult.answers.frontier`), which takes several times as long. Raises `SpecError`.
    """
    from orchestrator.fit.questions import ask, model_named

    return FitResult(
        ask(
            {
                "models": [{"target": model_named(model), "draft": draft, "dtype": dtype}],
                "modes": list(modes),
                "engines": [engine],
                "batch_sizes": [batch],
                "allocator": [allocator],
                "prefill_chunk": prefill_chunk,
                "kv_dtype": list(kv_dtypes),
                "devices_per_cell": list(devices),
            },
            list(cards),
            tokens,
            with_frontier=frontier,
        )
    )
