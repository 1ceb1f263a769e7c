from types import SimpleNamespace

import pynvml
import pytest
import torch

from jobs import doctor
from workers.host.devices import CardSlot
from workers.meters.nvml import Card, MemorySource, NoDevice, list_uuids, resolve

CARDS = ["GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", "GPU-aaaa-1"),
        ("2", "GPU-cccc-3"),
        ("GPU-aabb-2", "GPU-aabb-2"),
        ("GPU-c", "GPU-cccc-3"),
        ("MIG-1234/5/6", "MIG-1234/5/6"),
    ],
)
def test_resolve(visible, expected):
    assert resolve(visible, CARDS) == expected


@pytest.mark.parametrize("visible", ["3", "", "GPU-aa", "GPU-dddd", "NoDevFiles"])
def test_what_fits_no_card_or_several_is_refused(visible):
    with pytest.raises(NoDevice, match="CUDA_VISIBLE_DEVICES"):
        resolve(visible, CARDS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_no_driver_is_said_in_one_line():
    with pytest.raises(NoDevice, match="no NVIDIA driver"):
        Card.visible({})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_card_that_cuda_sees():
    card = Card(list_uuids()[0])
    memory = card.memory()
    assert memory.total_bytes >= torch.cuda.get_device_properties(0).total_memory
    assert 0 <= memory.used_bytes < memory.total_bytes
    assert memory.reserve_bytes > 0
    assert card.read().device_bytes is not None
    with pytest.raises(NoDevice):
        Card("GPU-00000000-0000-0000-0000-000000000000")


class FakeNvml:
    """What the pynvml functions of one card answer. `offers`: the versions of the memory call that it has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *offers: int) -> None:
        self.offers = offers
        self.lost = False
        answers = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: "handle",
            "nvmlDeviceGetHandleByUUID": lambda uuid: "handle",
            "nvmlDeviceGetUUID": lambda handle: "GPU-fake",
            "nvmlDeviceGetName": lambda handle: "NVIDIA GB10",
            "nvmlSystemGetDriverVersion": lambda: "580.95",
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [],
            "nvmlDeviceGetMemoryInfo": self.memory,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, answer)

    def memory(self, handle: str, version: int | None = None) -> SimpleNamespace:
        if self.lost:
            raise pynvml.NVMLError_GpuIsLost()
        wanted = 1 if version is None else 2
        if wanted not in self.offers:
            raise pynvml.NVMLError_NotSupported() if not self.offers else pynvml.NVMLError_FunctionNotFound()
        return SimpleNamespace(total=80 * 2**30, used=2**30, reserved=2**28)


@pytest.mark.parametrize(
    ("offers", "source", "reserve"),
    [((1, 2), MemorySource.NVML, 2**28), ((1,), MemorySource.NVML_V1, 0)],
)
def test_a_driver_without_the_second_memory_call_is_read_by_the_first(monkeypatch, offers, source, reserve):
    FakeNvml(monkeypatch, *offers)
    card = Card("GPU-fake")
    memory = card.memory()
    assert (card.memory_source, memory.total_bytes, memory.used_bytes) == (source, 80 * 2**30, 2**30)
    assert memory.reserve_bytes == reserve
    assert card.read().device_bytes == 2**30


def test_a_card_that_shares_the_machines_memory_is_metered_by_the_machine(monkeypatch):
    FakeNvml(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    slot = CardSlot()
    assert slot.device.memory_source == "host"
    assert slot.device.total_bytes > slot.idle_bytes > 0
    assert slot.meter.read().device_bytes > 0
    slot.idle_bytes = 0  # another program freed its part meanwhile
    assert slot.what_is_left() is None


def test_a_card_that_is_lost_in_a_run_is_unknown_and_not_clean(monkeypatch):
    nvml = FakeNvml(monkeypatch, 1, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("workers.host.devices._CLEAN_LIMIT_S", 0.0)
    slot = CardSlot()
    nvml.lost = True
    assert slot.meter.read().device_bytes is None
    assert "GPU is lost" in slot.what_is_left()


@pytest.mark.parametrize(
    ("offers", "words"), [((), "CPU and GPU share memory"), ((1,), "counts as in use"), ((1, 2), "NVML\n")]
)
def test_doctor_says_where_memory_is_read(monkeypatch, offers, words):
    FakeNvml(monkeypatch, *offers)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert words in doctor.examine(None, as_json=False)


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetName", "nvmlSystemGetDriverVersion"])
def test_a_card_of_which_nvml_says_nothing_is_refused_in_one_line(monkeypatch, call):
    FakeNvml(monkeypatch, 1, 2)
    monkeypatch.setattr(pynvml, call, _refuse)
    with pytest.raises(NoDevice, match="GPU-fake: Unknown Error"):
        Card("GPU-fake")


def test_one_card_of_several_that_fell_off_the_bus_costs_no_other(monkeypatch):
    FakeNvml(monkeypatch, 1, 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: "handle" if index else _refuse())
    assert list_uuids() == ["", "GPU-fake"]
    assert Card.visible({"CUDA_VISIBLE_DEVICES": "1"}).uuid == "GPU-fake"
    with pytest.raises(NoDevice, match="CUDA_VISIBLE_DEVICES=0: the NVIDIA driver does not find that card"):
        Card.visible({"CUDA_VISIBLE_DEVICES": "0"})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told = doctor.examine(None, as_json=False)
    assert "card 0\n    not usable" in told
    assert "GPU-fake\n    kind" in told
    readiness = told.splitlines()[-1]
    assert readiness.startswith(
        ("readiness: ready: 1 GPU (", "readiness: not ready for its GPUs: the torch here")
    )


def _refuse(*_: object) -> None:
    raise pynvml.NVMLError_Unknown()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_doctor_tells_why_there_are_no_cards(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "no NVIDIA driver here: NVML" in doctor.examine(None, as_json=False)


def test_doctor_names_a_card_that_cannot_be_used(monkeypatch):
    FakeNvml(monkeypatch, 1, 2).lost = True
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "not usable" in doctor.examine(None, as_json=False)
