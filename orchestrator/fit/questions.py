"""From what a person names to questions, answered on the cores that there are."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.fit.answer import Fit, FitQuestion, fit
from orchestrator.fit.cards import USUAL, card_named
from orchestrator.plan import expand
from orchestrator.predict.cache_law import CacheLaw, cache_law
from orchestrator.predict.model_shapes import CellShapes, ModelShapes
from orchestrator.predict.rehearsed.background import Call, answer_in_parallel
from orchestrator.preflight import refuse_bad_models
from orchestrator.spec import SweepSpec, parse_spec
from orchestrator.spec_error import SpecError
from workers.cell import Cell
from workers.modes import Streaming

#: New tokens at the end of a text: the prompt before them is read in passes.
NEW_TOKENS = 16
_CONFIG = "config.json"
_PROCESSES = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """`law`: of the first mode's cache, None where it cannot be told. `weights_bytes`: in the dtype asked for."""

    spec: SweepSpec
    tokens: int | None
    weights_bytes: int | None
    max_positions: int | None
    law: CacheLaw | None
    fits: tuple[Fit, ...]


def ask(sweep: dict[str, Any], cards: Sequence[str], tokens: int | None) -> Answers:
    """Answer for each card and each cell of `sweep`, the keys of a sweep file with one model. Raises `SpecError`."""
    spec = parse_spec({"name": "fit", "lengths": [NEW_TOKENS], "prompt_tokens": [1], **sweep})
    refuse_bad_models(spec)
    if tokens is not None and tokens <= NEW_TOKENS:
        raise SpecError(f"--tokens {tokens}: a text has more than its {NEW_TOKENS} new tokens")
    cells = expand(spec)
    if not cells:
        raise SpecError(f"modes: {', '.join(spec.modes)}: give a draft, --draft MODEL")
    streaming = Streaming(sinks=spec.streaming.sinks, window=spec.streaming.window)
    questions = [
        FitQuestion(cell=cell, card=card, streaming=streaming, tokens=tokens)
        for card in ([card_named(text) for text in cards] or USUAL)
        for cell in cells
    ]
    found = answer_all(questions)
    shapes = ModelShapes()
    known = shapes.weighed(cells[0])
    return Answers(
        spec=spec,
        tokens=tokens,
        weights_bytes=None if known.target is None else known.target.weights_bytes(cells[0].model.dtype),
        max_positions=None if known.target is None else known.target.max_positions,
        law=_law(cells[0], known),
        fits=tuple(found),
    )


def answer_all(questions: Sequence[FitQuestion]) -> list[Fit]:
    """In their order. Cards share a rehearsal; each of two processes makes its own."""
    cards = list(dict.fromkeys(question.card for question in questions))
    answer_in_parallel([Call(cards.index(q.card) % _PROCESSES, fit, (q, ModelShapes())) for q in questions])
    shapes = ModelShapes()
    return [fit(question, shapes) for question in questions]


def model_named(text: str) -> str:
    """A model's name as a sweep file has it; a path of a config.json stands for its shape."""
    path = Path(text)
    return f"random:{path.parent.resolve()}" if path.name == _CONFIG and path.is_file() else text


def _law(cell: Cell, shapes: CellShapes) -> CacheLaw | None:
    return None if shapes.target is None else cache_law(cell, shapes)
