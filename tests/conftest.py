"""What every room's tests share: one Ray head for the whole session, started when the first test asks for it."""

import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

# Before torch is imported anywhere: the models are tiny, and threads that wait for each other on shared cores take many
# times longer than one that works.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before Ray is imported anywhere: token authentication, as Ray ships, with a token of our own; no token files in the
# person's home, no clusters of theirs.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_metrics_report_interval_ms"] = "500"  # noqa: SIM112 - the name is Ray's
# A node that is killed, with its port closed, is known to be gone after 5 s, not 15.
os.environ["RAY_health_check_period_ms"] = "1000"  # noqa: SIM112
os.environ["RAY_health_check_initial_delay_ms"] = "1000"  # noqa: SIM112
# Short, as socket paths must stay below 107 bytes; and our own, so that no other Ray's record is overwritten.
_TEMP_DIR = os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="oomt-", dir="/tmp")
_STATUS = pytest.StashKey[int]()

# How long an example takes says something of the machine, not of the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


#: Tests that start clusters, command lines or both. They wait more than they compute.
_ONE_AT_A_TIME = ("tests/jobs/", "tests/orchestrator/fleet/", "tests/test_every_mode.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep in one process, where there are several (`-n 2`), what shares the Ray of the session or starts one."""
    for item in items:
        if item.nodeid.startswith(_ONE_AT_A_TIME):
            item.add_marker(pytest.mark.xdist_group("clusters"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End here, with pytest's exit status: a process that has joined and left Ray many times may crash in the
    destructors of Ray's own log at interpreter exit ("ray_log_sink std::bad_alloc"), after every test has passed.
    """
    shutil.rmtree(_TEMP_DIR, ignore_errors=True)
    if _STATUS in config.stash and "ray" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator["Cluster"]:
    """A head with 2 CPU slots. A test that adds a node removes it."""
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20}
    )
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="session")
def ray_head(ray_cluster: "Cluster") -> str:
    """The head's address; connect with `orchestrator.fleet.connect.connected(address)`."""
    return str(ray_cluster.address)


@pytest.fixture
def ray_driver(ray_head: str) -> Iterator[str]:
    """This process as a driver of the shared head."""
    from orchestrator.fleet.connect import connected

    with connected(ray_head):
        yield ray_head
