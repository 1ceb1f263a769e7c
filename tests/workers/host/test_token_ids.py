"""Where a cell's ids come from."""

from pathlib import Path

import pytest

from tests.workers.host.cells import lease
from workers.host.device_host import PRELOAD, DeviceHost
from workers.outcome import Outcome


def test_memory_is_the_same_whether_or_not_this_node_had_the_text(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tokenises in a process of its own, and maps what it kept."""
    monkeypatch.setenv("OOMLINE_CACHE", str(tmp_path))
    host = DeviceHost("node/cpu0", 2**30, preload=PRELOAD)
    try:
        first = host.run(lease(model, prompt_tokens=2000, length=32))
        assert list(tmp_path.glob("tokens/*/ids.npy"))
        second = host.run(lease(model, prompt_tokens=2000, length=32))
    finally:
        host.close()
    assert first.outcome is second.outcome is Outcome.OK
    assert first.measured.prompt_sha256 == second.measured.prompt_sha256
    assert first.output_ids == second.output_ids
    assert first.peak_device_bytes == second.peak_device_bytes
