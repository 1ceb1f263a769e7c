"""`ray job submit`, as the README says it: a real head, a real job, its logs, its tables."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
SWEEP = """
name: submitted
models: [{target: pocket, dtype: float32}]
modes: [baseline, streaming]
lengths: [24, 48]
prompt_tokens: 16
streaming: {sinks: 4, window: 16}
"""


def free_port() -> int:
    # Outside 10002-19999, where Ray's workers listen.
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if not 10002 <= port <= 19999:
            return port


def environment(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"  # the job's `python` is ours
    return {**kept, "PATH": path, "RAY_AUTH_MODE": "disabled", **extra}


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head of its own with its job server; yields the server's address."""
    import tempfile

    temp_dir = tempfile.mkdtemp(prefix="oomh-", dir="/tmp")  # short: socket paths end at 107 bytes
    port = free_port()
    command = ["ray", "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={port}"]
    command += [f"--temp-dir={temp_dir}", "--num-cpus=1", "--include-dashboard=true", "--disable-usage-stats"]
    command += ["--object-store-memory=100000000", f"--dashboard-agent-listen-port={free_port()}"]
    with open(Path(temp_dir) / "head.log", "w") as log:
        head = subprocess.Popen(
            command, env=environment(), stdout=log, stderr=log, start_new_session=True, cwd=temp_dir
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            listed = subprocess.run(
                ["ray", "job", "list", "--address", address],
                env=environment(),
                capture_output=True,
                check=False,
            )
            if listed.returncode == 0:
                break
            assert head.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(1)
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(30)


def ray_job(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ray", "job", words[0], "--address", address, *words[1:]],
        env=environment(),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=170,
        check=False,
    )


@pytest.mark.timeout(300)
def test_a_submitted_sweep_runs_logs_and_resumes(dashboard: str, tmp_path: Path) -> None:
    sweep, out = tmp_path / "sweep.yaml", tmp_path / "out"
    sweep.write_text(SWEEP)
    entrypoint = ["--", "python", "-m", "jobs", "run", str(sweep), "--out", str(out)]

    first = ray_job(dashboard, "submit", "--working-dir", ".", *entrypoint)
    assert first.returncode == 0, first.stdout + first.stderr
    job = re.search(r"raysubmit_\w+", first.stdout)
    assert job is not None
    logs = ray_job(dashboard, "logs", job[0]).stdout
    assert "4 cells computed, 0 reused" in logs
    assert f"report: {out / 'report.md'}" in logs
    assert "\r" not in logs

    attempts = pl.read_parquet(out / "tables" / "attempts.parquet")
    assert attempts.height == 4
    assert set(attempts["outcome"]) == {"ok"}
    assert attempts.select("new_tokens", "length").rows() == [(n, n) for n in attempts["length"]]
    assert attempts["device_kind"].unique().to_list() == ["cpu"]

    again = ray_job(dashboard, "submit", "--working-dir", ".", *entrypoint)
    assert again.returncode == 0, again.stdout
    assert "0 cells computed, 4 reused" in again.stdout
