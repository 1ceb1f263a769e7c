"""`ray job submit`, as the README says it: a head and a second node, real jobs, their logs, their tables."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from orchestrator.journal.folder import read_run
from orchestrator.journal.manifest import environment as environment_here
from orchestrator.status import read_status

ROOT = Path(__file__).parents[2]
SWEEP = """
name: submitted
models: [{target: workers/models/data/pocket, dtype: float32}]  # in the working directory, as the corpus
corpus: tests/data/words.txt
modes: [baseline, streaming]
lengths: [24, 48]
repeats: 24
prompt_tokens: 16
streaming: {sinks: 4, window: 16}
"""
CELLS = 96


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
    return {**kept, "PATH": path, **extra}


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """A cluster of two nodes with one CPU each and a job server; yields the server's address."""
    temp_dir = tempfile.mkdtemp(prefix="oomh-", dir="/tmp")  # short: socket paths end at 107 bytes
    port, gcs = free_port(), free_port()
    head = ["--head", f"--port={gcs}", f"--dashboard-port={port}", f"--temp-dir={temp_dir}"]
    head += ["--include-dashboard=true"]
    address = f"http://127.0.0.1:{port}"
    nodes = [start_node(temp_dir, *head)]
    try:
        await_nodes(1, address, nodes[0], temp_dir)  # before, a second one may find no head to join
        nodes.append(start_node(temp_dir, f"--address=127.0.0.1:{gcs}"))
        await_nodes(2, address, nodes[0], temp_dir)
        yield address
    finally:
        for node in reversed(nodes):
            node.send_signal(signal.SIGTERM)
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:  # one that lingers must not leave the others running
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
        shutil.rmtree(temp_dir, ignore_errors=True)


def start_node(temp_dir: str, *words: str) -> subprocess.Popen[bytes]:
    command = ["ray", "start", "--block", "--num-cpus=1", "--disable-usage-stats", *words]
    command += ["--object-store-memory=100000000", f"--dashboard-agent-listen-port={free_port()}"]
    with open(Path(temp_dir) / "nodes.log", "a") as log:
        return subprocess.Popen(
            command, env=environment(), stdout=log, stderr=log, start_new_session=True, cwd=temp_dir
        )


def await_nodes(number: int, address: str, head: subprocess.Popen[bytes], temp_dir: str) -> None:
    """Until the job server answers and lists the nodes: a sweep that begins with one may end with it."""

    def ask() -> None:
        for path, count in (("api/jobs/", 0), ("api/v0/nodes", number)):
            if state_of(address, path).count('"ALIVE"') < count:
                raise OSError("a node is missing")

    await_answer(ask, OSError, head, temp_dir)


def state_of(address: str, path: str) -> str:
    """What Ray's dashboard tells, as JSON text."""
    token = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{address}/{path}", headers=token), timeout=10
    ) as answer:
        return str(answer.read().decode())


def await_answer(
    ask: Callable[[], None], not_yet: type[Exception], head: subprocess.Popen[bytes], temp_dir: str
) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            return ask()
        except not_yet:
            log = (Path(temp_dir) / "nodes.log").read_text()
            assert head.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.2)


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


def devices_with_an_outcome(out: Path) -> int:
    if not (out / "manifest.json").exists():
        return 0
    return len(read_status(str(out)).devices)


@pytest.mark.timeout(400)
def test_a_submitted_sweep_uses_both_nodes_stops_and_resumes(dashboard: str, tmp_path: Path) -> None:
    sweep, out = tmp_path / "sweep.yaml", tmp_path / "out"
    sweep.write_text(SWEEP)
    environ = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}})
    line = ["--working-dir", ".", "--runtime-env-json", environ, "--"]
    line += ["OOMLINE_REVISION=v0.1.0-7-gabc", "python", "-m", "jobs", "run", str(sweep), "--out", str(out)]

    first = ray_job(dashboard, "submit", "--no-wait", *line)
    assert first.returncode == 0, first.stdout + first.stderr
    job = re.search(r"raysubmit_\w+", first.stdout)
    assert job is not None
    deadline = time.monotonic() + 120
    while devices_with_an_outcome(out) < 2:
        assert time.monotonic() < deadline, ray_job(dashboard, "logs", job[0]).stdout
        time.sleep(0.3)
    stopped = ray_job(dashboard, "stop", job[0])
    assert "stopped" in stopped.stdout + stopped.stderr
    standing = read_status(str(out))
    assert standing.state == "stopped"
    assert 2 <= standing.completed < CELLS
    assert (out / "report.md").exists()

    logs = ray_job(dashboard, "logs", job[0]).stdout
    assert len(re.findall(r"device \S+ joined", logs)) == 2
    assert f"report: {out / 'report.md'}" in logs
    assert "\r" not in logs

    again = ray_job(dashboard, "submit", *line)
    assert again.returncode == 0, again.stdout
    left = CELLS - standing.completed
    assert f"{left} cell{'s' * (left != 1)} computed, {standing.completed} reused" in again.stdout
    attempts = pl.read_parquet(out / "tables" / "attempts.parquet")
    final = attempts.filter(pl.col("final"))
    assert final["outcome"].to_list() == ["ok"] * CELLS
    assert final.select("new_tokens", "length").rows() == [(n, n) for n in final["length"]]
    assert final["device_uuid"].n_unique() == 2
    assert set(attempts["outcome"]) <= {"ok", "cancelled"}

    manifest = read_run(out).manifest
    assert manifest is not None
    told = [session.environment for session in manifest.sessions]
    here = environment_here()
    assert [(there.code_revision, there.sources) for there in told if there] == [
        ("v0.1.0-7-gabc", here.sources)
    ] * 2
    assert len(re.findall(r"device \S+ joined", (out / "logs/session-1.txt").read_text())) == 2
    assert f"{left} cell" in (out / "logs/session-2.txt").read_text()

    tasks = [
        task["name"]
        for task in json.loads(state_of(dashboard, "api/v0/tasks?limit=1000"))["data"]["result"]["result"]
    ]
    cells = [name for name in tasks if name.startswith(("baseline eager", "streaming eager"))]
    assert len(cells) >= CELLS
    assert len(tasks) < len(cells) + 30, tasks
