from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.host import cells
from workers.host.device_host import PRELOAD, DeviceHost

GiB = 2**30
#: The room's own engine of faults on top of what every cell needs; the graph engine is not run here.
WITH_FAULTS = (
    *(m for m in PRELOAD if not m.startswith("workers.engines.graph")),
    "tests.workers.host.misbehaving",
)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cells.gpt_neox(tmp_path_factory.mktemp("models") / "gpt-neox")


@pytest.fixture(scope="session")
def learned_positions(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cells.gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceHost]:
    """One warm device host for all tests: each leaves it able to run the next."""
    host = DeviceHost("node/cpu0", GiB, preload=WITH_FAULTS)
    yield host
    host.close()


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    return f"random:{tmp_path / 'missing'}"
