"""A whole search on one device, a probe at a time."""

from collections.abc import Callable

from orchestrator.boundary.question import Question
from orchestrator.boundary.replay import observe
from orchestrator.boundary.start import fit_to_device, predicted, search_for
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.model_shapes import ModelShapes
from workers.attempt import Attempt, Device
from workers.cell import Cell

_SHAPES = ModelShapes()


def search(question: Question, device: Device, run: Callable[[Cell], Attempt]) -> list[Attempt]:
    """The attempts of all probes, in their order. Each must say something about memory."""
    target, draft = _SHAPES.of(question.cell)
    assert target is not None, _SHAPES.unknown
    profile = DeviceProfile.of(device)
    question = fit_to_device(question, target, draft, profile)
    machine = search_for(question, predicted(question, target, draft, profile))
    attempts = []
    while not machine.done:
        (probe,) = machine.next_probes(1)
        attempt = run(question.probe(probe.value, probe.confirmation))
        assert observe(question, machine, probe, attempt), attempt
        attempts.append(attempt)
    return attempts
