"""How far a model comes on a card in a mode, what fills the card there, and the cheapest change that goes further."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.fit.cards import CARDS, CardType
from orchestrator.predict.memory import (
    PredictedBy,
    Prediction,
    UnknownWeightsError,
    fits,
    largest_fitting,
    predict,
    refusal,
)
from orchestrator.predict.model_shapes import ModelShapes
from workers.allocator import DEFAULT, EXPANDABLE
from workers.cell import Cell
from workers.kv_dtype import AUTO, FP8
from workers.modes import MODES, Streaming

#: Of a text whose memory is that of any other: longer than several passes over a prompt.
_ANY_LENGTH = 2**20
#: Cards of one node that may hold a model together, as they are built in.
DEVICES = (2, 4, 8)
#: The shorter passes over a prompt that are worth a try.
_SHORT_CHUNK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class FitQuestion:
    """`cell`: model, mode, engine, batch, chunk and allocator; its `length` new tokens end the text. `streaming`: of a
    mode that forgets. `tokens`: of the whole text, None: how far it goes."""

    cell: Cell
    card: CardType
    streaming: Streaming
    tokens: int | None = None

    @property
    def cards(self) -> str:
        """The card, and how many hold the model together."""
        count = self.cell.devices
        return self.card.name if count == 1 else f"{count} x {self.card.name}"

    @property
    def mode(self) -> str:
        """The mode, with what is unusual about its caches."""
        return ", ".join([self.cell.mode, *axes.unusual(axes.read(self.cell), Role.POLICY)])

    def at(self, tokens: int) -> Cell:
        """A text of `tokens` tokens: a prompt, then the cell's new tokens."""
        new = min(self.cell.length, max(1, tokens - 1))
        return dataclasses.replace(self.cell, prompt_tokens=max(1, tokens - new), length=new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that would make it fit. `costs`: what is paid for it; empty: nothing."""

    words: str
    costs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """`longest_length`: tokens of the longest text, None: memory does not grow; 0: not even one token. `peak_bytes` and
    `parts`: of each card, of the text that was asked for, else of the longest; of a text in constant memory, of any; where nothing fits, of one token. `change`: the
    cheapest that makes the text fit, where it does not. `refused`: why there is no answer; all else is None then.
    """

    question: FitQuestion
    fits: bool | None = None
    longest_length: int | None = None
    peak_bytes: int | None = None
    parts: dict[str, int] = dataclasses.field(default_factory=dict)
    predicted_by: PredictedBy | None = None
    change: Change | None = None
    refused: str | None = None

    @property
    def is_constant(self) -> bool:
        """Whether a longer text takes no more memory. It may have an end all the same: where a whole pass over the prompt does
        not fit, or not even the weights.
        """
        if self.refused is not None:
            return False
        return self.longest_length is None or not self.question.cell.mode_spec.policy.grows


def fit(question: FitQuestion, shapes: ModelShapes) -> Fit:
    """Answer from the model's config. Raises nothing for a model or a mode that cannot be: see `Fit.refused`."""
    cell = question.cell
    target, draft = shapes.weighed(cell)
    if target is None:
        return Fit(question=question, refused=shapes.unknown[cell.model.target])
    device = question.card.profile()
    if reason := refusal(cell, device):
        return Fit(question=question, refused=reason)
    try:
        new = cell.length
        longest = largest_fitting(lambda prompt: question.at(prompt + new), target, draft, device)
        longest = longest if not longest else longest + new
        shown = question.tokens or (_ANY_LENGTH if longest is None else max(longest, 1))
        prediction = predict(question.at(shown), target, draft, device)
    except UnknownWeightsError as error:
        return Fit(question=question, refused=str(error))
    enough = None
    if question.tokens is not None:
        enough = longest is None or longest >= question.tokens
    return Fit(
        question=question,
        fits=enough,
        longest_length=longest,
        peak_bytes=prediction.peak_bytes,
        parts=_parts(prediction),
        predicted_by=prediction.predicted_by,
        change=_change(question, shapes, longest, enough),
    )


def _change(
    question: FitQuestion, shapes: ModelShapes, longest: int | None, enough: bool | None
) -> Change | None:
    if enough is False:
        return cheapest_change(question, shapes)
    return _first_that_fits(_more_devices(question), 1, shapes) if longest == 0 else None


def cheapest_change(question: FitQuestion, shapes: ModelShapes) -> Change | None:
    """The first of the changes, cheapest first, with which the text of `question.tokens` fits. None: none does."""
    return _first_that_fits(_changes(question), question.tokens or 1, shapes)


def _first_that_fits(
    changes: Iterator[tuple[Change, FitQuestion]], tokens: int, shapes: ModelShapes
) -> Change | None:
    for change, changed in changes:
        device = changed.card.profile()
        target, draft = shapes.weighed(changed.cell)
        if target is None or refusal(changed.cell, device):
            continue
        if fits(changed.at(tokens), target, draft, device):
            return change
    return None


def _more_devices(question: FitQuestion) -> Iterator[tuple[Change, FitQuestion]]:
    for devices in DEVICES:
        if devices > question.cell.devices:
            cell = dataclasses.replace(question.cell, devices=devices)
            change = Change(words=f"{devices} x {question.card.name}", costs="money")
            yield change, dataclasses.replace(question, cell=cell)


def _changes(question: FitQuestion) -> Iterator[tuple[Change, FitQuestion]]:
    """What could be changed, in the order of what it costs: nothing, time, sequences, precision, the text's middle, money."""

    def with_cell(**values: object) -> FitQuestion:
        return dataclasses.replace(question, cell=dataclasses.replace(question.cell, **values))  # type: ignore[arg-type]

    cell = question.cell
    chunk = cell.prefill_chunk
    shorter = chunk is None or chunk > _SHORT_CHUNK
    if cell.engine == "eager" and cell.allocator == DEFAULT:
        yield Change(words="expandable segments", costs=""), with_cell(allocator=EXPANDABLE)
    if shorter:
        words = f"a prompt in passes of {_SHORT_CHUNK} tokens"
        yield Change(words=words, costs="time to the first token"), with_cell(prefill_chunk=_SHORT_CHUNK)
        if cell.engine == "eager" and cell.allocator == DEFAULT:
            both = with_cell(prefill_chunk=_SHORT_CHUNK, allocator=EXPANDABLE)
            yield Change(words=f"expandable segments and {words}", costs="time to the first token"), both
    batch = cell.batch_size // 2
    while batch:
        yield (
            Change(words=f"a batch of {batch}", costs="sequences at a time"),
            with_cell(batch_size=batch),
        )
        batch //= 2
    if cell.mode_spec.policy.grows:
        if cell.kv_dtype == AUTO:
            words = f"keys and values in {FP8.name}"
            yield Change(words=words, costs="some of their precision"), with_cell(kv_dtype=FP8.name)
        mode = f"streaming{cell.mode_spec.decoder.suffix}"
        if mode in MODES:
            changed = with_cell(mode=mode, streaming=question.streaming)
            yield Change(words=f"mode {mode}", costs="the middle of the text"), changed
    yield from _more_devices(question)
    for card in sorted(CARDS, key=lambda card: card.total_bytes):
        if card.total_bytes > question.card.total_bytes:
            yield (
                Change(words=f"the card {card.name}", costs="money"),
                dataclasses.replace(question, card=card),
            )


def _parts(prediction: Prediction) -> dict[str, int]:
    """Bytes at the peak, by what they are; together the peak."""
    libraries = sum(
        part.size * part.count for part in prediction.parts if part.what.startswith(("libraries", "kernels"))
    )
    return {
        "weights": prediction.weights_bytes,
        "kv_cache": prediction.kv_bytes,
        "activations": prediction.workspace_bytes - libraries,
        "fragmentation": prediction.rounding_bytes,
        "libraries": libraries + prediction.context_bytes,
    }
