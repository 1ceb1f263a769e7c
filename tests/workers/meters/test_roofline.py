"""The share of its memory bandwidth that a decode used: the formula, and a real copy."""

import pytest
import torch

from workers.attempt import Measured, Step
from workers.meters.bandwidth import copy_bandwidth, matmul_flops
from workers.meters.process import own_memory
from workers.meters.roofline import roofline_fraction


def _steps(*points: tuple[int, int | None]) -> list[Step]:
    return [
        Step(token_index=index, t_s=0.0, allocated_bytes=None, reserved_bytes=None, kv_cache_bytes=kv)
        for index, kv in points
    ]


def _measured(**changes: float | None) -> Measured:
    known = {"tokens_per_s": 10.0, "copy_bandwidth_bytes_per_s": 1000.0, "step_weights_bytes": 40}
    return Measured(**(known | changes))  # type: ignore[arg-type]


def test_a_step_reads_its_weights_and_the_mean_of_its_cache() -> None:
    # 40 + 10 bytes need 0.05 s at 1,000 bytes per second; a step took 0.1 s.
    assert roofline_fraction(_measured(), _steps((0, 0), (100, 20)), 1) == pytest.approx(0.5)


def test_the_mean_is_over_tokens_not_over_checkpoints() -> None:
    assert roofline_fraction(_measured(), _steps((0, 0), (1, 0), (101, 20)), 1) == pytest.approx(
        (40 + 10 * 100 / 101) / 1000 / 0.1
    )


def test_a_batch_shares_the_weights() -> None:
    """Ten tokens a second of five sequences are two steps a second."""
    assert roofline_fraction(_measured(), _steps((9, 10)), 5) == pytest.approx(0.1)


def test_a_round_of_speculation_is_one_step() -> None:
    fraction = roofline_fraction(_measured(tokens_per_step=2.0), _steps((9, 10)), 1)
    assert fraction == pytest.approx(0.25)


@pytest.mark.parametrize("missing", ["tokens_per_s", "copy_bandwidth_bytes_per_s", "step_weights_bytes"])
def test_what_is_not_known_gives_no_fraction(missing: str) -> None:
    assert roofline_fraction(_measured(**{missing: None}), _steps((9, 10)), 1) is None
    assert roofline_fraction(_measured(), _steps((9, None)), 1) is None


def test_a_copy_is_measured_and_leaves_nothing_behind() -> None:
    before = own_memory().data
    found = copy_bandwidth(torch.device("cpu"))
    assert found is not None
    assert 1e8 < found < 1e13
    assert own_memory().data - before < 2**20


def test_a_round_in_which_a_core_was_taken_away_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: rounds of 30, 30, 10, 30 and 11 ms."""
    edges = [edge for took in (0.03, 0.03, 0.01, 0.03, 0.011) for edge in (0.0, took)]
    monkeypatch.setattr("workers.meters.bandwidth.time.perf_counter", iter(edges * 2).__next__)
    assert copy_bandwidth(torch.device("cpu")) == pytest.approx(2 * 64 * 2**20 / 0.01)
    assert matmul_flops() == pytest.approx(4 * 2 * 256**3 / 0.01)
