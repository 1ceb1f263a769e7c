"""Energy, clocks and throttling of a card: a fake NVML is read along a run of known power."""

from pathlib import Path

import pynvml
import pytest

from tests.workers.meters.fake_nvml import MeteredNvml
from workers.attempt import Phase
from workers.machine_state import MachineState
from workers.meters.cpu_state import CpuState
from workers.meters.machine_load import MachineTimes, load_between, machine_times
from workers.meters.nvml.state import CardState
from workers.meters.state_record import StateEdge, StateRecord, machine_state


def _run(nvml: MeteredNvml, meter: CardState, prefill: float, decode: float, done: float) -> MachineState:
    """Read as the sampler does: every 50 ms, and at the edges."""
    record = StateRecord()
    edges = {Phase.PREFILL: prefill, Phase.DECODE: decode, Phase.DONE: done}
    for tick in range(int(prefill * 20), int(done * 20) + 1):
        nvml.now_s = tick / 20
        record.add(nvml.now_s, meter.read())
    for phase, at_s in edges.items():
        nvml.now_s = at_s
        times = MachineTimes(at_s, busy=at_s, stolen=0.0, ours={1: at_s}, cell=at_s, waited=0.0)
        record.edges[phase] = StateEdge(at_s, meter.counters(), times)
    state = machine_state(
        record,
        energy_source=meter.energy_source,
        energy_period_s=meter.energy_period_s,
        not_offered=meter.not_offered,
        new_tokens=100,
    )
    assert state is not None
    return state


def test_energy_of_a_long_phase_is_the_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = MeteredNvml(monkeypatch)
    state = _run(nvml, CardState("GPU-1"), 1.03, 2.04, 4.57)
    assert (state.energy_prefill_source, state.energy_decode_source) == ("counter", "counter")
    assert state.energy_decode_j == pytest.approx(300 * 1.96 + 100 * 0.57, abs=2 * 0.1 * 300)
    assert state.energy_per_token_j == pytest.approx(state.energy_decode_j / 100)
    assert state.power_mean_w == pytest.approx(state.energy_j / 3.54)
    assert (state.power_max_w, state.sm_clock_median_mhz, state.memory_clock_median_mhz) == (300, 1980, 2619)
    assert (state.temperature_max_c, state.throttle_reasons, state.throttled_pct) == (45, "none", 0)
    assert (state.pcie_replays, state.ecc_errors, state.not_offered) == (0, 0, None)


def test_energy_of_a_phase_below_ten_ticks_is_integrated_from_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter would be off by up to 100 ms at each edge: here by half of the phase."""
    state = _run(MeteredNvml(monkeypatch), CardState("GPU-1"), 2.1, 2.4, 3.39)
    assert (state.energy_prefill_source, state.energy_decode_source) == ("power_samples", "power_samples")
    assert state.energy_prefill_j == pytest.approx(90, rel=1e-6)
    assert state.energy_decode_j == pytest.approx(297, rel=1e-6)


def test_a_card_without_a_counter_is_integrated_at_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    state = _run(MeteredNvml(monkeypatch, "energy"), CardState("GPU-1"), 1.0, 1.5, 5.0)
    assert state.energy_decode_source == "power_samples"
    assert state.energy_j == pytest.approx(100 * 2 + 300 * 2, rel=0.03)
    assert state.not_offered == "energy: Not Supported"


@pytest.mark.parametrize("uuid", ["GPU-1", "MIG-1"])
def test_without_counter_and_power_there_is_no_energy_and_a_reason(
    monkeypatch: pytest.MonkeyPatch, uuid: str
) -> None:
    lacks = () if uuid.startswith("MIG") else ("energy", "power")
    state = _run(MeteredNvml(monkeypatch, *lacks), CardState(uuid), 1.0, 1.5, 5.0)
    assert (state.energy_j, state.energy_per_token_j, state.power_max_w) == (None, None, None)
    assert state.energy_decode_source is None
    assert {words.split(":")[0] for words in state.not_offered.split("; ")} == {"energy", "power"}
    assert ("all slices" in state.not_offered) == uuid.startswith("MIG")
    assert (state.sm_clock_median_mhz, state.temperature_max_c) == (1980, 46)


def test_a_card_that_offers_nothing_crashes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    every = ("energy", "power", "clocks", "temperature", "throttle", "pcie", "ecc")
    state = _run(MeteredNvml(monkeypatch, *every), CardState("GPU-1"), 1.0, 1.5, 5.0)
    assert (state.energy_j, state.sm_clock_median_mhz, state.throttle_reasons, state.ecc_errors) == (
        None,
    ) * 4
    assert state.not_offered.count("Not Supported") == 8


def test_a_slice_whose_card_the_driver_does_not_give_offers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = MeteredNvml(monkeypatch)

    def refuse(handle: str) -> str:
        raise pynvml.NVMLError_NoPermission()

    monkeypatch.setattr(pynvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", refuse)
    state = _run(nvml, CardState("MIG-1"), 1.0, 1.5, 5.0)
    assert (state.energy_j, state.sm_clock_median_mhz, state.throttle_reasons) == (None, None, None)
    assert "card: Insufficient Permissions" in state.not_offered


def test_a_driver_before_535_is_asked_by_the_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = MeteredNvml(monkeypatch)

    def is_missing(handle: str) -> int:
        raise pynvml.NVMLError_FunctionNotFound()

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", is_missing)
    older = lambda handle: pynvml.nvmlClocksThrottleReasonHwSlowdown  # noqa: E731
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", older)
    assert _run(nvml, CardState("GPU-1"), 1.0, 1.5, 5.0).throttle_reasons == "hw_slowdown"


def test_a_card_that_is_lost_while_it_runs_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = MeteredNvml(monkeypatch)
    meter = CardState("GPU-1")
    nvml.lost = True
    state = _run(nvml, meter, 1.0, 1.5, 5.0)
    assert (state.energy_j, state.power_max_w, state.throttle_reasons) == (None, None, None)


def test_throttling_is_named_and_an_idle_card_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = MeteredNvml(monkeypatch)
    nvml.reasons = pynvml.nvmlClocksEventReasonGpuIdle
    assert _run(nvml, CardState("GPU-1"), 1.0, 1.5, 5.0).throttle_reasons == "none"
    nvml.reasons = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    state = _run(nvml, CardState("GPU-1"), 1.0, 1.5, 5.0)
    assert set(state.throttle_reasons.split(",")) == {"sw_power_cap", "hw_thermal_slowdown"}
    assert state.throttled_pct == 100


def test_a_long_run_keeps_its_maximum_and_few_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = MeteredNvml(monkeypatch)
    meter, record = CardState("GPU-1"), StateRecord()
    for tick in range(50_000):
        nvml.now_s = tick / 20
        record.add(nvml.now_s, meter.read())
    assert len(record.readings) <= 4096
    assert record.power_max_w == 300


def _times(at: float, **changes: object) -> MachineTimes:
    known = {"busy": 0.0, "stolen": 0.0, "ours": {}, "cell": 0.0, "waited": 0.0}
    return MachineTimes(at=at, **(known | changes))  # type: ignore[arg-type]


def test_load_of_others_is_what_we_did_not_use() -> None:
    load = load_between(_times(10.0), _times(12.0, busy=3.0, stolen=1.0, ours={7: 1.8}, cell=1.5, waited=0.5))
    assert load.host_other_load == pytest.approx(0.6)
    assert load.host_steal_pct == pytest.approx(25)
    assert load.cpu_wait_pct == pytest.approx(25)


def test_a_cell_that_has_ended_tells_no_wait_and_an_instant_tells_nothing() -> None:
    load = load_between(_times(10.0), _times(12.0, busy=3.0, cell=None, waited=None))
    assert (load.cpu_wait_pct, load.host_other_load) == (None, 1.5)
    assert load_between(_times(10.0), _times(10.01, busy=0.01)).host_other_load is None


def test_a_fork_server_that_ends_meanwhile_makes_no_load_of_others() -> None:
    """It takes the account of all its cells with it."""
    before, after = _times(10.0, ours={7: 600.0, 8: 1.0}), _times(12.0, busy=2.0, ours={8: 3.0})
    assert load_between(before, after).host_other_load == pytest.approx(0)


def test_a_host_and_its_cells_are_ours_and_a_stranger_is_not(tmp_path: Path) -> None:
    """A host (10) with a server (11) and a cell (12), and a stranger (13): ticks of their own, and of ended children."""
    (tmp_path / "stat").write_text("cpu  900 0 0 0 0 0 0 0 0 0")
    for pid, name, parent, own, ended in (
        (10, "ray::DeviceActo", 1, 30, 999),
        (11, "oomline-server", 10, 20, 400),
        (12, "oomline-cell", 11, 100, 0),
        (13, "a (stranger)", 1, 300, 0),
    ):
        (tmp_path / str(pid)).mkdir()
        rest = f"S {parent} {'0 ' * 9}{own} 0 {ended} 0"
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {rest}")
    assert machine_times(12, tmp_path).ours == {10: 0.3, 11: pytest.approx(5.2)}


def test_energy_of_processors_is_counted_over_its_wrap(tmp_path) -> None:
    package = tmp_path / "sys/class/powercap/intel-rapl:0"
    package.mkdir(parents=True)
    (package / "max_energy_range_uj").write_text("9999999")
    counter = package / "energy_uj"
    counter.write_text("9000000")
    meter = CpuState(tmp_path)
    before = meter.counters().energy_j
    counter.write_text("500000")
    assert meter.counters().energy_j - before == pytest.approx(1.5)
    assert list(meter.not_offered) == ["cpu_clock"]
    assert CpuState(tmp_path / "elsewhere").counters().energy_j is None


def test_a_core_that_goes_offline_leaves_the_clocks_of_the_others(tmp_path: Path) -> None:
    clocks = [tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq" for core in range(2)]
    for path, khz in zip(clocks, (2_000_000, 3_000_000), strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(str(khz))
    meter = CpuState(tmp_path)
    assert meter.read().cpu_clock_mhz == 2500
    clocks[0].unlink()
    assert meter.read().cpu_clock_mhz == 3000
