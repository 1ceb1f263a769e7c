"""Finds Ray, or starts it on this machine. A wrong address is told within seconds.

`ray.init` with a dead address blocks for minutes and ignores SIGTERM. So the address is first proved to be a gRPC
server.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Ray asks a head that does not let it in once a second, 20 times as it ships. Here the probe has found the head alive, so
# five will do; not for the processes that Ray starts, which wait for a head that is still coming up.
_RETRIES = "RAY_NUM_REDIS_GET_RETRIES"
_retries_before = os.environ.setdefault(_RETRIES, "5")

import ray  # noqa: E402
from ray.exceptions import AuthenticationError  # noqa: E402

_PROBE_S = 2.0
_FOLDER_RETURNS_S = 10.0
_LOCAL_OBJECT_STORE_BYTES = 100 * 2**20
#: Attempts are plain values far below this; nothing else travels through plasma.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HTTP2_SETTINGS = 4
_TOKEN_REMEDY = (
    "set RAY_AUTH_MODE=token and give the cluster's token in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, "
    "or in ~/.ray/auth_token (on the head, `ray get-auth-token` prints it)"
)


class ConnectError(Exception):
    """Ray cannot be found or started. One line: the address, where it came from, the remedy."""


@dataclass(frozen=True, slots=True)
class Target:
    """`address`: host:port of a cluster's head, or None to start Ray on this machine. `source`: who said so."""

    address: str | None
    source: str


def resolve(option: str | None, environ: Mapping[str, str]) -> Target:
    """Return the explicit option, else RAY_ADDRESS (which `ray job submit` sets for its drivers), else this machine.

    Raises ConnectError for an address that a driver cannot use.
    """
    text, source = (option, "--address") if option else (environ.get("RAY_ADDRESS"), "RAY_ADDRESS")
    if not text or text == "local":
        return Target(None, source if text else "default")
    if text == "auto":
        found = _running_here()
        if found is None:
            raise ConnectError(
                f"{source} is 'auto', but no Ray runs on this machine: start one with `ray start --head`"
            )
        return Target(found, source)
    if "://" in text:
        raise ConnectError(
            f"{source} is {text!r}: a driver needs the head's host:port (such as 10.0.0.1:6379); "
            "to run from outside the cluster use `ray job submit`"
        )
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal():
        raise ConnectError(f"{source} is {text!r}: write host:port, such as 10.0.0.1:6379, or 'local'")
    return Target(text, source)


def probe(target: Target, timeout_s: float = _PROBE_S) -> None:
    """Raise ConnectError unless a gRPC server answers at the address within about `timeout_s`."""
    assert target.address is not None
    host, _, port = target.address.rpartition(":")
    remedy = "give --address host:port of a running head, or unset RAY_ADDRESS to run on this machine"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return
            connection.sendall(_HTTP2_PREFACE)
            header = connection.recv(9)
    except OSError as error:
        raise ConnectError(f"no Ray at {target.address} (from {target.source}): {error}; {remedy}") from None
    if len(header) < 4 or header[3] != _HTTP2_SETTINGS:
        raise ConnectError(f"what listens at {target.address} (from {target.source}) is not Ray; {remedy}")


@contextlib.contextmanager
def connected(option: str | None, *, cpus: int | None = None) -> Iterator[Target]:
    """Make this process a Ray driver for the length of the block. `cpus`: of a Ray started here (default: its
    cores). A Ray that this process is connected to already is joined, and left as it is.

    Raises ConnectError within 5 s when the address is stale, and where this process is connected to another Ray.
    """
    if ray.is_initialized():
        yield _own_ray(option)
        return
    target = resolve(option, os.environ)
    # Socket paths must stay below 107 bytes: a long TMPDIR would not do.
    temp_dir = tempfile.mkdtemp(prefix="oom-", dir="/tmp") if target.address is None else None
    try:
        if temp_dir is None:
            _join(target)
        else:
            _start(temp_dir, cpus)
        yield target
    finally:
        try:
            ray.shutdown()
        finally:  # a second Ctrl-C may end the shutdown
            if temp_dir is not None:
                shutil.rmtree(temp_dir, ignore_errors=True)


def _own_ray(option: str | None) -> Target:
    """The Ray that the caller has started or joined."""
    address = ray.get_runtime_context().gcs_address
    if option not in (None, "auto", address):
        raise ConnectError(
            f"--address is {option!r}, but this process is connected to Ray at {address}: leave the address out, or call "
            "ray.shutdown() before"
        )
    return Target(address, "this process")


@contextlib.contextmanager
def elsewhere(folder: str) -> Iterator[None]:
    """Work in `folder` for the length of the block, then return to the folder at the same path as before.

    Ray takes the folder of a submitted job away and unpacks it again while its driver joins: the one that the process
    was in is gone, and the new one may take a moment.
    """
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        until = time.monotonic() + _FOLDER_RETURNS_S
        while True:
            try:
                os.chdir(before)
                break
            except FileNotFoundError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.05)


def _join(target: Target) -> None:
    probe(target)
    try:
        with elsewhere("/"):  # as in `_start`
            ray.init(address=target.address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError:
        raise ConnectError(
            f"Ray at {target.address} asks for a token, and there is none here: {_TOKEN_REMEDY}"
        ) from None
    except ConnectionError as error:
        raise ConnectError(
            f"Ray at {target.address} answers and does not let this driver in ({' '.join(str(error).split())}). "
            f"It most likely uses token authentication: {_TOKEN_REMEDY}; or it runs another version of Ray"
        ) from error
    except RuntimeError as error:
        raise ConnectError(f"cannot join Ray at {target.address}: {' '.join(str(error).split())}") from error


def _start(temp_dir: str, cpus: int | None) -> None:
    # The default policy ends several workers at once, this one a worker at a time.
    os.environ.setdefault("RAY_worker_killing_policy_by_group", "true")
    _provide_token()
    # Ray puts the folder that it is started in before everything else on the path of its workers: a file numpy.py
    # there would be imported by Ray itself, before an actor can put the path in order.
    with _hangups_blocked(), elsewhere(temp_dir):
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=slices(os.environ),
            include_dashboard=False,
            object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=temp_dir,
        )


def _provide_token() -> None:
    """Give a Ray that starts here a token in the environment where Ray could not keep one in the person's home."""
    environ = os.environ
    if environ.get("RAY_AUTH_MODE", "token") != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & {
        *environ
    }:
        return
    folder = Path.home() / ".ray"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_kept = (folder / "auth_token").is_file() or os.access(folder, os.W_OK)
    except OSError:
        is_kept = False
    if not is_kept:
        environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def _hangups_blocked() -> Iterator[None]:
    """Block SIGHUP in every process started within. A terminal that closes tells Ray's processes as well as the
    driver, which ends them itself once the report is written."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def slices(environ: Mapping[str, str]) -> int | None:
    """Return how many MIG slices CUDA_VISIBLE_DEVICES names. None when it names none: Ray's own count of cards is right
    then."""
    named = [
        name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip().startswith("MIG-")
    ]
    return len(named) or None


def _running_here() -> str | None:
    path = os.path.join(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() or None
    except OSError:
        return None


def describe_cluster(option: str | None) -> dict[str, dict[str, str]]:
    """Return every node that is alive, by name: its address and what it offers. Raises `ConnectError`."""
    with connected(option):
        return {
            f"{node['NodeName']} ({node['NodeID'][:8]})": {
                "address": node["NodeManagerAddress"],
                **{key: f"{value:g}" for key, value in sorted(node["Resources"].items()) if key.isupper()},
                "accelerators": ", ".join(
                    key.partition(":")[2] for key in node["Resources"] if key.startswith("accelerator_type:")
                )
                or "none",
            }
            for node in ray.nodes()
            if node["Alive"]
        }
