"""Host memory: the cell that holds most is ended before Ray's monitor would choose for itself."""

import pytest

from tests.workers.host.cells import lease
from workers.meters.host_memory import limit_below_ray
from workers.outcome import Outcome


def test_full_host_ends_the_largest_cell_with_evidence(host, model, monkeypatch):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.0501")
    attempt = host.run(lease(model, fault="hoard@decode"))
    assert attempt.outcome is Outcome.OOM_HOST
    assert "host memory in use" in attempt.failure.error_message
    assert attempt.device_dirty is None


@pytest.mark.parametrize(("environ", "monitor"), [({}, 0.95), ({"RAY_memory_usage_threshold": "0.8"}, 0.8)])
def test_the_limit_is_below_the_level_at_which_ray_acts(environ, monitor):
    assert monitor - 0.1 < limit_below_ray(environ) < monitor
