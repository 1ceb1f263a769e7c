"""Gives the loop its predictions by cell and device. Reads the models' configs for them."""

from orchestrator.boundary.question import Question
from orchestrator.boundary.search import Search
from orchestrator.boundary.start import fit_to_device, predicted, search_for
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.duration import predict_seconds, predict_step_seconds
from orchestrator.predict.memory import UnknownWeightsError, predict
from orchestrator.predict.model_shapes import ModelShapes
from workers.attempt import Device
from workers.cell import Cell

#: For a model whose config the driver cannot read. Its cells will most likely end in a load error, soon.
_UNKNOWN_S = 60.0


class Predictions:
    """Implements `kind_queue.Estimates`. Reads each model's config once."""

    def __init__(self) -> None:
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

    def peak_bytes(self, cell: Cell, device: Device) -> int | None:
        target, draft = self._shapes.of(cell)
        if target is None:
            return None
        try:
            return predict(cell, target, draft, self._profile(device), loaded=True).peak_bytes
        except UnknownWeightsError:
            return None

    def start(self, question: Question, device: Device) -> tuple[Question, Search]:
        """A model of unknown shape is searched from the bottom up."""
        target, draft = self._shapes.of(question.cell)
        if target is None:
            return question, search_for(question, question.resolution)
        profile = self._profile(device)
        question = fit_to_device(question, target, draft, profile)
        try:
            return question, search_for(question, predicted(question, target, draft, profile))
        except UnknownWeightsError:
            return question, search_for(question, question.resolution)

    def _profile(self, device: Device) -> DeviceProfile:
        if device not in self._profiles:
            self._profiles[device] = DeviceProfile.of(device)
        return self._profiles[device]
