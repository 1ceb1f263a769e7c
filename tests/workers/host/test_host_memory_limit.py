"""Host memory: the cell that holds most is ended before Ray's monitor would choose for itself."""

from tests.workers.host.cells import lease
from workers.attempt import Outcome


def test_full_host_ends_the_largest_cell_with_evidence(host, model, monkeypatch):
    monkeypatch.setattr(host, "_host_memory_limit", 0.0001)
    attempt = host.run(lease(model, fault="hoard@decode"))
    assert attempt.outcome is Outcome.OOM_HOST
    assert "host memory in use" in attempt.failure.error_message
    assert attempt.device_dirty is None
