"""Reads power, clocks, heat, energy and faults of a card through NVML.

On an H100 the energy counter moves every 100 ms and takes 3.4 ms to read; everything else takes microseconds.
"""

from collections.abc import Callable
from typing import Any

import pynvml

from workers.meters.state import Counters, StateReading

ENERGY_PERIOD_S = 0.1
_MIG = "a MIG slice: the card tells it of all slices together"
#: Reasons for which a clock is held down. An idle card and clocks that its owner has set are not among them.
_REASONS = {
    "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "sw_thermal_slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "hw_thermal_slowdown": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "hw_power_brake_slowdown": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
}


class CardState:
    """One card, or the card around a MIG slice. Implements `StateMeter`.

    Energy and power of a MIG slice are not offered: the counters are the whole card's. Its clocks, heat and throttle
    reasons are those of the card.
    """

    energy_source = "counter"
    energy_period_s = ENERGY_PERIOD_S

    def __init__(self, uuid: str) -> None:
        is_slice = uuid.startswith("MIG-")
        self.not_offered: dict[str, str] = {}
        handle = self._card_of(uuid, is_slice)
        self._power = None if is_slice else self._offered("power", lambda: _power_w(handle))
        self._energy = (
            None
            if is_slice
            else self._offered("energy", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
        )
        if is_slice:
            self.not_offered |= {"power": _MIG, "energy": _MIG}
        self._sm_clock = self._offered(
            "sm_clock", lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
        )
        self._memory_clock = self._offered(
            "memory_clock", lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)
        )
        self._temperature = self._offered(
            "temperature", lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
        )
        self._throttle = self._offered("throttle_reasons", lambda: _reasons(handle))
        self._replays = self._offered("pcie_replays", lambda: pynvml.nvmlDeviceGetPcieReplayCounter(handle))
        self._ecc = self._offered("ecc_errors", lambda: _ecc_errors(handle))

    def read(self) -> StateReading:
        return StateReading(
            power_w=_ask(self._power),
            sm_clock_mhz=_ask(self._sm_clock),
            memory_clock_mhz=_ask(self._memory_clock),
            temperature_c=_ask(self._temperature),
            throttle=_ask(self._throttle),
        )

    def counters(self) -> Counters:
        return Counters(_ask(self._energy), _ask(self._replays), _ask(self._ecc))

    def _card_of(self, uuid: str, is_slice: bool) -> Any:
        """None where the driver does not give the card around a slice: then nothing of it is offered."""
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if is_slice else handle
        except pynvml.NVMLError as error:
            self.not_offered["card"] = str(error)
            return None

    def _offered(self, quantity: str, ask: Callable[[], Any]) -> Callable[[], Any] | None:
        """`ask`, where the card answers it now."""
        if "card" in self.not_offered:
            return None
        try:
            ask()
        except pynvml.NVMLError as error:
            self.not_offered[quantity] = str(error)
            return None
        return ask


def _ask(ask: Callable[[], Any] | None) -> Any:
    """None where the card does not offer it, and where it does not answer any more."""
    if ask is None:
        return None
    try:
        return ask()
    except pynvml.NVMLError:
        return None


def _power_w(handle: Any) -> float:
    """The power of the moment where the card has it; `nvmlDeviceGetPowerUsage` is the mean of a second on some cards."""
    try:
        (field,) = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])
    except pynvml.NVMLError:
        return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1e3
    if field.nvmlReturn != pynvml.NVML_SUCCESS:
        return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1e3
    return float(field.value.uiVal) / 1e3


def _reasons(handle: Any) -> tuple[str, ...]:
    try:
        mask = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except pynvml.NVMLError_FunctionNotFound:  # drivers before 535
        mask = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return tuple(name for name, bit in _REASONS.items() if mask & bit)


def _ecc_errors(handle: Any) -> int:
    kinds = (pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
    return sum(pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, pynvml.NVML_VOLATILE_ECC) for kind in kinds)
