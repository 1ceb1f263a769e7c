"""Nothing lost: a sweep under random faults. `python -m tests.benchmarks.soak [--cells N] [--every S] [--out FOLDER]`

A Ray cluster of a head and several nodes on this machine, real device hosts, small real cells. The sweep runs once
undisturbed and once while, every few seconds, a cell's process, a device's actor, a node's raylet or the driver itself
is killed with SIGKILL; a killed node is replaced, a killed driver started again with the same command. Prints what was
injected and what it cost, writes `soak.parquet`, and fails when anything was lost, doubled, left over or different, or
when a kind of fault never struck.
"""

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from orchestrator.journal.journal import Journal
from orchestrator.plan import expand
from orchestrator.spec import parse_spec
from tests.workers.host.cells import gpt_neox
from workers.attempt import Attempt
from workers.meters.host_memory import CELL_NAME
from workers.outcome import Outcome

NODES = 3
MARK = "OOMLINE_SOAK"  # in the environment of every process of this soak, wherever it is reparented to
_SERVER = "workers.host.forkserver_main"  # Ray's dashboard has fork servers of its own
KINDS = ("cell", "actor", "raylet", "driver")


def spec_of(folder: Path, cells: int) -> dict[str, Any]:
    lengths = [4 * k for k in range(1, 11)]
    return {
        "name": "soak",
        "models": [{"target": gpt_neox(folder / "model"), "dtype": "float32"}],
        "modes": ["baseline", "streaming"],
        "lengths": lengths,
        "prompt_tokens": [8],
        "streaming": {"sinks": 2, "window": 8},
        "repeats": -(-cells // (2 * len(lengths))),
        # The faults are ours, not the cells': nobody is to be quarantined for them.
        "max_attempts": 20,
        "max_crashes": 20,
    }


class Cluster:
    """A head without slots and `NODES` nodes of one CPU slot each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        self._nodes = Nodes(
            initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20}
        )
        self.address = str(self._nodes.address)
        for _ in range(NODES):
            self.add()

    def add(self) -> None:
        self._nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)

    def kill_one(self, draw: random.Random) -> None:
        node = draw.choice(
            [node for node in self._nodes.list_all_nodes() if node is not self._nodes.head_node]
        )
        node.kill_raylet()
        self._nodes.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._nodes.shutdown()


class SoakDriver:
    """The same command again and again, until it ends by itself."""

    def __init__(self, out: Path, spec_file: Path, address: str) -> None:
        self._command = [
            sys.executable,
            "-m",
            "tests.orchestrator.sweep.driver",
            str(out),
            str(spec_file),
            address,
        ]
        self.printed_ok = 0
        self.starts = 0
        self.process: subprocess.Popen[str]
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.printed_ok += " · ok · " in line
            print(f"  {line}", end="", flush=True) if "--verbose" in sys.argv else None


def marked(token: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == token and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def fork_servers(token: str) -> list[psutil.Process]:
    return [process for process in marked(token) if _SERVER in " ".join(_cmdline(process))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def inject(kind: str, token: str, cluster: Cluster, driver: SoakDriver, draw: random.Random) -> bool:
    """False when there was nothing of this kind to kill just now."""
    try:
        if kind == "driver":
            driver.process.kill()
            if driver.process.wait() != -signal.SIGKILL:
                return False  # it had come to its end
            driver.start()
            return True
        if kind == "raylet":
            cluster.kill_one(draw)
            cluster.add()
            return True
        servers = fork_servers(token)
        parents = {server.ppid() for server in servers}
        tops = [server for server in servers if server.pid not in parents]
        victims = (
            [child for server in servers for child in server.children() if child.name() == CELL_NAME]
            if kind == "cell"
            else [
                parent
                for server in tops
                if (parent := server.parent()) is not None and "ray::" in " ".join(_cmdline(parent))
            ]
        )
        if not victims:
            return False
        draw.choice(victims).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def finals(attempts: list[Attempt]) -> dict[str, Attempt]:
    done: dict[str, Attempt] = {}
    for attempt in attempts:
        if attempt.outcome not in (Outcome.INFRA_ERROR, Outcome.CRASHED, Outcome.HANG, Outcome.CANCELLED):
            assert attempt.cell.cell_id not in done, f"two outcomes of {attempt.cell}"
            done[attempt.cell.cell_id] = attempt
    return done


def deterministic(attempt: Attempt) -> tuple[object, ...]:
    measured = attempt.measured
    return (
        attempt.outcome,
        measured.new_tokens,
        measured.output_sha256,
        measured.prompt_sha256,
        measured.kv_cache_bytes,
        measured.weights_bytes,
        measured.eos_at,
        measured.in_effect,
    )


def play(
    out: Path, spec_file: Path, cluster: Cluster, disturb: Callable[[SoakDriver], None]
) -> tuple[SoakDriver, float]:
    began = time.monotonic()
    driver = SoakDriver(out, spec_file, cluster.address)
    while driver.process.poll() is None:
        disturb(driver)
    return driver, time.monotonic() - began


def _orphans(token: str) -> int:
    """Processes of the soak that outlive its cluster. Ray's own agents take a minute to end."""
    left_over = [
        process
        for process in marked(token)
        if "ray::" in (line := " ".join(_cmdline(process))) or _SERVER in line
    ]
    return len(psutil.wait_procs(left_over, timeout=120)[1])


def _compare(cells: int, calm: list[Attempt], wild: list[Attempt], printed_ok: int) -> dict[str, int]:
    """What the disturbed run lost, doubled or changed, against the undisturbed one."""
    expected, found = finals(calm), finals(wild)
    differing = [
        cell
        for cell in expected
        if cell in found and deterministic(expected[cell]) != deterministic(found[cell])
    ]
    return {
        "without_outcome": cells - len(found),
        "attempts_lost": max(0, printed_ok - sum(attempt.outcome is Outcome.OK for attempt in wild)),
        "duplicate_leases": len(wild) - len({attempt.lease_id for attempt in wild}),
        "differing_from_calm": len(differing),
    }


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--cells", type=int, default=500)
    options.add_argument("--every", type=float, default=5.0, help="mean seconds between two faults")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path())
    options.add_argument("--verbose", action="store_true", help="show the drivers' lines")
    return options.parse_args()


def _set_environment(work: Path) -> str:
    """For every process of this soak. Returns the token that marks them."""
    token = os.environ[MARK] = secrets.token_hex(8)
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(16)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["RAY_raylet_start_wait_time_s"] = "120"  # noqa: SIM112 - the name is Ray's; nodes start while others die
    os.environ["RAY_TMPDIR"] = str(work)
    return token


def main() -> None:
    chosen = _options()
    work = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
    token = _set_environment(work)
    draw = random.Random(chosen.seed)
    injected: Counter[str] = Counter()
    cluster = Cluster()

    def disturb(driver: SoakDriver) -> None:
        until = time.monotonic() + draw.expovariate(1 / chosen.every)
        while time.monotonic() < until and driver.process.poll() is None:
            time.sleep(0.1)
        if driver.process.poll() is None:
            kind = draw.choices(KINDS, weights=(6, 4, 2, 2))[0]
            injected[kind] += inject(kind, token, cluster, driver, draw)

    try:
        raw = spec_of(work, chosen.cells)
        cells = len(expand(parse_spec(raw)))
        spec_file = work / "spec.json"
        spec_file.write_text(json.dumps(raw))
        calm, calm_s = play(work / "calm", spec_file, cluster, lambda driver: time.sleep(0.2))
        wild, wild_s = play(work / "wild", spec_file, cluster, disturb)
        expected, attempts = (Journal.open(work / run, writable=False).attempts() for run in ("calm", "wild"))
    finally:
        cluster.close()
    wrong = _compare(cells, expected, attempts, wild.printed_ok)
    wrong |= {"orphans": _orphans(token), "exit_status": wild.process.returncode}
    row = {
        "cells": cells,
        **wrong,
        **{f"{kind}_kills": injected[kind] for kind in KINDS},
        "driver_starts": wild.starts,
        "attempts": len(attempts),
        "calm_s": calm_s,
        "wild_s": wild_s,
        "time_overhead": wild_s / calm_s,
    }
    frame = pl.DataFrame([row])
    with pl.Config(tbl_rows=-1, float_precision=2):
        print(frame.transpose(include_header=True, column_names=["value"]))
    print(Counter(str(attempt.outcome) for attempt in attempts))
    chosen.out.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(chosen.out / "soak.parquet")
    shutil.rmtree(work, ignore_errors=True)
    missed = [kind for kind in KINDS if not injected[kind]]
    sys.exit(1 if any(wrong.values()) or missed or calm.process.returncode else 0)


if __name__ == "__main__":
    main()
