"""The state of a device and its machine while a cell ran: energy, power, clocks, heat, the load of others."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """Of the run, from prefill to its end. None: not offered by the device, or not known; `not_offered` tells why.

    `energy_j` is of the whole device, idle power included: subtract `device_idle_power_w` times the duration for what
    the run added. Its two sources: the device's counter, and the integral of power samples for a phase shorter than
    ten periods of the counter.
    """

    host_cores: int
    energy_j: float | None = None  # prefill and decode
    energy_prefill_j: float | None = None
    energy_decode_j: float | None = None
    energy_per_token_j: float | None = None  # of the decode, over the new tokens of all sequences
    energy_prefill_source: str | None = None  # counter | power_samples | rapl
    energy_decode_source: str | None = None
    power_mean_w: float | None = None
    power_max_w: float | None = None
    sm_clock_median_mhz: float | None = None
    memory_clock_median_mhz: float | None = None
    cpu_clock_median_mhz: float | None = None
    temperature_max_c: float | None = None
    throttle_reasons: str | None = None  # joined by commas; "none" where the device was asked and gave none
    throttled_pct: float | None = None  # of the readings
    pcie_replays: int | None = None  # during the run
    ecc_errors: int | None = None  # during the run, corrected or not
    host_steal_pct: float | None = None  # of the time that the machine wanted to compute
    host_other_load: float | None = None  # cores kept busy by processes that are no cell and no host of one
    cpu_wait_pct: float | None = None  # of the time that the cell wanted to compute, it waited for a core
    not_offered: str | None = None  # `quantity: reason; ...`
