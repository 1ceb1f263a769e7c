"""Gives the loop its predictions by cell and device. Reads the models' configs for them."""

import contextlib
import dataclasses

from orchestrator.boundary.question import Question
from orchestrator.boundary.search import Search
from orchestrator.boundary.start import fit_to_device, predicted, search_for
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.duration import predict_seconds, predict_step_seconds
from orchestrator.predict.memory import UnknownWeightsError, predict
from orchestrator.predict.model_shapes import CellShapes, ModelShapes
from orchestrator.predict.rehearsed import answers, store
from orchestrator.predict.rehearsed.background import Background, Call
from orchestrator.sweep.work.kind_queue import PredictedPeak
from workers.attempt import Device
from workers.cell import Cell

#: For a model whose config the driver cannot read. Its cells will most likely end in a load error, soon.
_UNKNOWN_S = 60.0


class Predictions:
    """Implements `kind_queue.Estimates`. Reads each model's config once.

    `background`: rehearses while the loop goes on. None: all is rehearsed at once, which may take seconds.
    """

    def __init__(self, background: Background | None = None) -> None:
        self._background = background
        self._shapes = ModelShapes()
        self._profiles: dict[Device, DeviceProfile] = {}

    def seconds(self, cell: Cell, device: Device) -> float:
        target, draft = self._shapes.of(cell)
        if target is None:
            return _UNKNOWN_S
        return predict_seconds(cell, target, draft, self._profile(device))

    def step_seconds(self, cell: Cell, device: Device) -> float:
        target, draft = self._shapes.of(cell)
        return 0.0 if target is None else predict_step_seconds(cell, target, draft, self._profile(device))

    def foresee(self, cell: Cell, device: Device) -> None:
        shapes = self._shapes.of(cell)
        if shapes.target is not None:
            self._is_ready(dataclasses.replace(cell, repeat=0, seed=0), cell, shapes, device)

    def peak(self, cell: Cell, device: Device) -> PredictedPeak | None:
        target, draft = self._shapes.of(cell)
        if target is None:
            return None
        with self._without_rehearsals():
            try:
                found = predict(cell, target, draft, self._profile(device), loaded=True)
            except UnknownWeightsError:
                return None
        return PredictedPeak(found.peak_bytes, found.predicted_by)

    def bytes_too_large(self, cell: Cell) -> int | None:
        """None also where neither the config nor the headers of the files tell."""
        target, draft = self._shapes.of(cell)
        if target is None or cell.budget is None:
            return None
        drafts = [draft] if draft is not None and cell.mode_spec.decoder.needs_draft else []
        sizes = [shape.weights_bytes(cell.model.dtype) for shape in (target, *drafts)]
        needed = sum(size for size in sizes if size is not None)
        return needed if None not in sizes and needed > cell.budget else None

    def start(self, question: Question, device: Device) -> tuple[Question, Search] | None:
        """A model of unknown shape is searched from the bottom up."""
        shapes = self._shapes.of(question.cell)
        if shapes.target is None:
            return question, search_for(question, question.resolution)
        if not self._is_ready(question, question.probe(1, 0), shapes, device):
            return None
        with self._without_rehearsals():
            return _started(question, shapes, self._profile(device))

    def _is_ready(self, asked: Question | Cell, cell: Cell, shapes: CellShapes, device: Device) -> bool:
        """Whether all is known that predicts what `asked` asks: `cell`, or cells like it."""
        profile = self._profile(device)
        if self._background is None or not answers.is_rehearsed(cell, profile):
            return True
        call = Call(answers.kin(cell), _predict, (asked, shapes, profile))
        return self._background.is_ready((asked, profile), call)

    def _without_rehearsals(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._background is None else store.known_only()

    def _profile(self, device: Device) -> DeviceProfile:
        if device not in self._profiles:
            self._profiles[device] = DeviceProfile.of(device)
        return self._profiles[device]


def _predict(asked: Question | Cell, shapes: CellShapes, profile: DeviceProfile) -> None:
    """Ask all that the answer to `asked` hangs on: in a process of its own, which keeps the answers."""
    assert shapes.target is not None
    with contextlib.suppress(UnknownWeightsError):
        if isinstance(asked, Question):
            _started(asked, shapes, profile)
        else:
            predict(asked, shapes.target, shapes.draft, profile, loaded=True)


def _started(question: Question, shapes: CellShapes, profile: DeviceProfile) -> tuple[Question, Search]:
    assert shapes.target is not None
    question = fit_to_device(question, shapes.target, shapes.draft, profile)
    try:
        return question, search_for(question, predicted(question, shapes.target, shapes.draft, profile))
    except UnknownWeightsError:
        return question, search_for(question, question.resolution)
