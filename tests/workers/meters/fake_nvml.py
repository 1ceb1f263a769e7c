"""The pynvml functions of one card with a clock of its own: draws power, counts it in ticks, and lacks what it is told to
lack."""

from types import SimpleNamespace

import pynvml
import pytest

_CALLS = {
    "energy": "nvmlDeviceGetTotalEnergyConsumption",
    "power": "nvmlDeviceGetPowerUsage",
    "clocks": "nvmlDeviceGetClockInfo",
    "temperature": "nvmlDeviceGetTemperature",
    "throttle": "nvmlDeviceGetCurrentClocksEventReasons",
    "pcie": "nvmlDeviceGetPcieReplayCounter",
    "ecc": "nvmlDeviceGetTotalEccErrors",
}


class MeteredNvml:
    """`now_s`: the time there. Power is 100 W, and 300 W from 2 s to 4 s. The energy counter moves every 100 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lacks: str) -> None:
        self.now_s = 0.0
        self.reasons = 0
        self.lost = False
        answers = {
            "energy": lambda handle: int(1e3 * self.energy_j(int(self.now_s * 10 + 1e-6) / 10)),
            "power": lambda handle: int(1e3 * self.power_w(self.now_s)),
            "clocks": lambda handle, kind: 1980 if kind == pynvml.NVML_CLOCK_SM else 2619,
            "temperature": lambda handle, sensor: 41 + int(self.now_s),
            "throttle": lambda handle: self.reasons,
            "pcie": lambda handle: 3,
            "ecc": lambda handle, kind, counter: 1,
        }
        for name, call in _CALLS.items():
            monkeypatch.setattr(pynvml, call, self._answer(answers[name], name in lacks))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetFieldValues", self._answer(self._instant, "power" in lacks))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
        monkeypatch.setattr(
            pynvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", lambda handle: f"card of {handle}"
        )

    def power_w(self, at_s: float) -> float:
        return 300.0 if 2.0 <= at_s < 4.0 else 100.0

    def energy_j(self, at_s: float) -> float:
        return 5000.0 + 100.0 * at_s + 200.0 * min(max(at_s - 2.0, 0.0), 2.0)

    def _instant(self, handle: str, fields: list[int]) -> list[SimpleNamespace]:
        value = SimpleNamespace(uiVal=int(1e3 * self.power_w(self.now_s)))
        return [SimpleNamespace(nvmlReturn=pynvml.NVML_SUCCESS, value=value)]

    def _answer(self, answer, is_lacking: bool):
        def call(*args):
            if is_lacking:
                raise pynvml.NVMLError_NotSupported()
            if self.lost:
                raise pynvml.NVMLError_GpuIsLost()
            return answer(*args)

        return call
