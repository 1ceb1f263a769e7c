"""From a question to its search on one kind of device: prompt, prediction, floor."""

import dataclasses

from orchestrator.boundary.question import Question
from orchestrator.boundary.search import MARGINS, Search
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.memory import UnknownWeightsError, bytes_per_token, largest_fitting
from orchestrator.predict.shape import ModelShape

#: The floor is this part of the prediction: cheap to run, and passed even by a prediction that is ten times
#: too high.
_FLOOR = 16


def fit_to_device(
    question: Question, shape: ModelShape, draft_shape: ModelShape | None, device: DeviceProfile
) -> Question:
    """The question with what only the models and a device can decide: the long prompt, the ceiling of learned
    positions, the bytes of a token.

    The long prompt of `decode_after_prefill` is the largest power of two within half of the predicted decode
    boundary (of `max_length`, where memory is constant or unknown): rough on purpose, so that a slightly
    different measured context gives the same cells.
    """
    if question.phase == "decode_after_prefill":
        short = dataclasses.replace(question, phase="decode")
        try:
            boundary = predicted(short, shape, draft_shape, device)
        except UnknownWeightsError:
            boundary = None
        half = min(question.max_value if boundary is None else boundary, question.max_value) // 2
        prompt = 2 ** max(half.bit_length() - 1, 0)
        question = dataclasses.replace(
            question,
            cell=dataclasses.replace(question.cell, prompt_tokens=max(prompt, question.cell.prompt_tokens)),
        )
    ends = shape.learned_positions and question.cell.mode_spec.policy.absolute_positions
    if ends and shape.max_positions is not None and question.axis == "length":
        prompt = 0 if question.phase.startswith("prefill") else question.cell.prompt_tokens
        ceiling = max(shape.max_positions - prompt, 1)
        question = dataclasses.replace(question, max_value=min(question.max_value, ceiling))
    shapes = [
        shape,
        *([draft_shape] if draft_shape is not None and question.cell.mode_spec.decoder.needs_draft else []),
    ]
    if all(window is None for each in shapes for window in each.windows):
        growth = bytes_per_token(question.cell, shape, draft_shape)
        question = dataclasses.replace(question, bytes_per_token=growth or None)
    return question


def predicted(
    question: Question, shape: ModelShape, draft_shape: ModelShape | None, device: DeviceProfile
) -> int | None:
    """The question's own boundary: the largest value predicted to fit. Raises `UnknownWeightsError`."""
    return largest_fitting(lambda value: question.probe(value, 0), shape, draft_shape, device)


def search_for(question: Question, predicted: int | None) -> Search:
    """`predicted`: from `predicted`; where the weights are unknown, hand in `question.resolution`: it
    climbs.
    """
    # Of the engine that takes no noise, a synthetic search trusts the prediction to the token, then confirms it.
    exactly = question.reach == "synthetic" and not question.scouts
    floor = question.resolution
    if predicted is not None:
        floor = max(floor, min(predicted, question.max_value) // _FLOOR)
    return Search(
        predicted=predicted,
        floor=floor,
        resolution=question.resolution,
        max_value=question.max_value,
        confirm=question.confirm,
        scouts=question.scouts,
        margins=(0.0, *MARGINS) if exactly else MARGINS,
    )
