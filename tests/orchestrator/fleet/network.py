"""Nodes with their own addresses: a network namespace each, joined by a bridge in a namespace of its own. Needs root."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NET = "10.97.13"
#: Ray gives a silent node about 60 s by default; a test has less.
_PATIENCE = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 6,
}
PORT = 6399


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def why_not() -> str | None:
    """Why this machine cannot have namespaces; None when it can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs the ip command"
    probe = f"oomp{secrets.token_hex(3)}"
    try:
        ip("netns", "add", probe)
        ip("netns", "del", probe)
    except subprocess.CalledProcessError as error:
        return f"cannot make network namespaces: {error.stderr.strip()}"
    return None


class Network:
    """`head`, then nodes by number; each with the address `10.97.13.<number + 1>`."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(2)
        self._bridge = f"oomb{self._token}"
        self.temp = Path(tempfile.mkdtemp(prefix="oomn-", dir="/tmp"))
        self._numbers: list[int] = []
        ip("netns", "add", self._bridge)
        ip("-n", self._bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", self._bridge, "link", "set", "br0", "up")

    @property
    def address(self) -> str:
        return f"{_NET}.1:{PORT}"

    def namespace(self, number: int) -> str:
        return f"oom{self._token}{number}"

    def command(self, number: int, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace(number), *words]

    def start_node(self, number: int, cpus: int) -> None:
        """Number 0 is the head. Returns once Ray says the node is up."""
        self._wire(number)
        where = (
            [f"--address={self.address}"]
            if number
            else ["--head", f"--port={PORT}", "--include-dashboard=false"]
        )
        if not number:
            where += [f"--system-config={json.dumps(_PATIENCE)}"]
        subprocess.run(
            self.command(
                number,
                *(sys.executable, "-m", "ray.scripts.scripts", "start", *where),
                *(f"--node-ip-address={_NET}.{number + 1}", f"--num-cpus={cpus}", "--disable-usage-stats"),
                *("--object-store-memory=80000000", f"--temp-dir={self.temp}/{number}"),
            ),
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )

    def cut(self, number: int) -> None:
        ip("-n", self._bridge, "link", "set", f"v{number}", "down")

    def restore(self, number: int) -> None:
        ip("-n", self._bridge, "link", "set", f"v{number}", "up")

    def kill(self, number: int) -> None:
        for pid in self.pids(number):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pids(self, number: int) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.namespace(number)).split()]

    def close(self) -> None:
        for number in self._numbers:
            self.kill(number)
            ip("netns", "del", self.namespace(number))
        ip("netns", "del", self._bridge)
        shutil.rmtree(self.temp, ignore_errors=True)

    def _wire(self, number: int) -> None:
        name = self.namespace(number)
        ip("netns", "add", name)
        self._numbers.append(number)
        ip("-n", name, "link", "set", "lo", "up")
        ip(
            "-n",
            name,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            f"v{number}",
            "netns",
            self._bridge,
        )
        ip("-n", self._bridge, "link", "set", f"v{number}", "master", "br0")
        ip("-n", self._bridge, "link", "set", f"v{number}", "up")
        ip("-n", name, "addr", "add", f"{_NET}.{number + 1}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        # Ray finds its own address by the default route; nobody answers there.
        ip("-n", name, "route", "add", "default", "via", f"{_NET}.254")


@contextlib.contextmanager
def network() -> Iterator[Network]:
    made = Network()
    try:
        yield made
    finally:
        made.close()
