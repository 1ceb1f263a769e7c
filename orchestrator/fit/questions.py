"""From what a person names to questions, answered on the cores that there are."""

import dataclasses
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orchestrator.fit.answer import Fit, FitQuestion, fit
from orchestrator.fit.cards import USUAL, card_named
from orchestrator.plan import expand
from orchestrator.predict.cache_law import CacheLaw, cache_law
from orchestrator.predict.model_shapes import CellShapes, ModelShapes
from orchestrator.predict.rehearsed.answers import prepare
from orchestrator.predict.rehearsed.background import Background, Call, background
from orchestrator.preflight import refuse_bad_models
from orchestrator.spec import SweepSpec, parse_spec
from orchestrator.spec_error import SpecError
from workers.cell import Cell
from workers.modes import Streaming

#: New tokens at the end of a text: the prompt before them is read in passes.
NEW_TOKENS = 16
#: Sequences at a time along a frontier.
BATCHES = (1, 2, 4, 8, 16)
_CONFIG = "config.json"
#: What a question about a mode of constant memory takes, as the size of a card takes it in another.
_CONSTANT_BYTES = 2**33


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """`law`: of the first mode's cache, None where it cannot be told. `weights_bytes`: in the dtype asked for. `frontier`: of
    every batch size of `BATCHES`, in the modes whose memory grows; empty where it was not asked for. `notes`: what the size of
    the weights leaves out.
    """

    spec: SweepSpec
    tokens: int | None
    weights_bytes: int | None
    max_positions: int | None
    law: CacheLaw | None
    fits: tuple[Fit, ...]
    notes: tuple[str, ...] = ()
    frontier: tuple[Fit, ...] = ()


def ask(
    sweep: dict[str, Any], cards: Sequence[str], tokens: int | None, *, with_frontier: bool = False
) -> Answers:
    """Answer for each card and each cell of `sweep`, the keys of a sweep file with one model. Raises `SpecError`."""
    spec = parse_spec({"name": "fit", "lengths": [NEW_TOKENS], "prompt_tokens": [1], **sweep})
    if tokens is not None and tokens <= NEW_TOKENS:
        raise SpecError(f"--tokens {tokens}: a text has more than its {NEW_TOKENS} new tokens")
    named = [card_named(text) for text in cards] or USUAL
    with ExitStack() as stack:
        helper = None
        if len(named) * len(spec.modes) > 1 and len(os.sched_getaffinity(0)) > 1:
            # It imports torch while this process does, and reads the config.
            helper = stack.enter_context(background(1))
            helper.begin([Call("", prepare, ())])
        refuse_bad_models(spec)
        cells = expand(spec)
        if not cells:
            raise SpecError(f"modes: {', '.join(spec.modes)}: give a draft, --draft MODEL")
        streaming = Streaming(sinks=spec.streaming.sinks, window=spec.streaming.window)
        questions = [
            FitQuestion(cell=cell, card=card, streaming=streaming, tokens=tokens)
            for card in named
            for cell in cells
        ]
        along = [
            dataclasses.replace(
                question, cell=dataclasses.replace(question.cell, batch_size=batch), tokens=None
            )
            for question in questions
            for batch in BATCHES
            if with_frontier and question.cell.mode_spec.policy.grows
        ]
        found = _answered([*questions, *along], helper)
    shapes = ModelShapes()
    known = shapes.weighed(cells[0])
    return Answers(
        spec=spec,
        tokens=tokens,
        weights_bytes=None if known.target is None else known.target.weights_bytes(cells[0].model.dtype),
        max_positions=None if known.target is None else known.target.max_positions,
        law=_law(cells[0], known),
        fits=tuple(found[: len(questions)]),
        notes=tuple(shapes.notes(cells[0].model)),
        frontier=tuple(found[len(questions) :]),
    )


def _answered(questions: Sequence[FitQuestion], helper: Background | None) -> list[Fit]:
    """In their order. Half of the work is the helper's."""
    shapes = ModelShapes()
    if helper is not None:
        own, others = _halves(questions)
        wait = helper.begin([Call("", fit, (question, ModelShapes())) for question in others])
        for question in own:
            fit(question, shapes)  # known from then on
        wait()
    return [fit(question, shapes) for question in questions]


def _halves(questions: Sequence[FitQuestion]) -> tuple[list[FitQuestion], list[FitQuestion]]:
    """Two parts that take about as long: a search's replays are as many as its card is large. Of several cells that grow
    each is in one part: what two cards share is rehearsed once.
    """
    growing = {question.cell for question in questions if question.cell.mode_spec.policy.grows}
    groups: dict[object, list[FitQuestion]] = {}
    for question in questions:
        groups.setdefault(question.cell if len(growing) > 1 else question, []).append(question)

    def cost(group: Sequence[FitQuestion]) -> int:
        return sum(q.card.total_bytes if q.cell in growing else _CONSTANT_BYTES for q in group)

    halves: tuple[list[FitQuestion], list[FitQuestion]] = ([], [])
    costs = [0, 0]
    for group in sorted(groups.values(), key=cost, reverse=True):
        smaller = costs.index(min(costs))
        halves[smaller].extend(group)
        costs[smaller] += cost(group)
    return halves


def model_named(text: str) -> str:
    """A model's name as a sweep file has it; a path of a config.json stands for its shape."""
    path = Path(text)
    return f"random:{path.parent.resolve()}" if path.name == _CONFIG and path.is_file() else text


def _law(cell: Cell, shapes: CellShapes) -> CacheLaw | None:
    return None if shapes.target is None else cache_law(cell, shapes)
