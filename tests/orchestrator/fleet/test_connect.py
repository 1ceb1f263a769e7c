"""Finding Ray: the right address wins, a wrong one is a message within seconds."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.fleet.connect import ConnectError, Target, connected, elsewhere, probe, resolve, slices


@pytest.mark.parametrize(
    ("option", "environ", "expected"),
    [
        (None, {}, Target(None, "default")),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, Target("10.0.0.1:6379", "RAY_ADDRESS")),
        ("10.0.0.2:6379", {"RAY_ADDRESS": "10.0.0.1:6379"}, Target("10.0.0.2:6379", "--address")),
        ("local", {"RAY_ADDRESS": "10.0.0.1:6379"}, Target(None, "--address")),
        (None, {"RAY_ADDRESS": ""}, Target(None, "default")),
        ("[::1]:6379", {}, Target("[::1]:6379", "--address")),
    ],
)
def test_who_says_where_ray_is(option: str | None, environ: dict[str, str], expected: Target) -> None:
    assert resolve(option, environ) == expected


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:port", ":6379"])
def test_an_address_that_a_driver_cannot_use_is_refused_with_the_remedy(address: str) -> None:
    with pytest.raises(ConnectError, match="host:port"):
        resolve(address, {})


def test_mig_slices_are_counted_by_name() -> None:
    assert slices({"CUDA_VISIBLE_DEVICES": "MIG-1a2b,MIG-3c4d, MIG-5e6f"}) == 3
    assert slices({"CUDA_VISIBLE_DEVICES": "0,1"}) is None
    assert slices({}) is None


def test_auto_without_a_running_ray_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ConnectError, match="ray start --head"):
        resolve("auto", {})


def test_auto_finds_the_ray_of_this_machine(ray_head: str) -> None:
    assert resolve("auto", {}) == Target(ray_head, "--address")


def test_a_dead_port_is_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(ConnectError, match=f"no Ray at {address} .from RAY_ADDRESS"):
        probe(Target(address, "RAY_ADDRESS"))


def test_a_port_that_accepts_and_says_nothing_is_refused() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectError, match="timed out"):
            probe(Target(address, "--address"), timeout_s=0.3)


def test_a_server_of_another_kind_is_refused() -> None:
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split("port ")[1].split()[0]
        with pytest.raises(ConnectError, match="is not Ray"):
            probe(Target(f"127.0.0.1:{port}", "--address"))
    finally:
        server.kill()
        server.wait()


def test_a_stale_address_ends_a_driver_in_seconds_not_minutes() -> None:
    code = (
        "from orchestrator.fleet.connect import connected, ConnectError\n"
        "try:\n    connected(None).__enter__()\n"
        "except ConnectError as error:\n    raise SystemExit(str(error))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=30,  # Ray by itself waits for minutes
        check=False,
    )
    assert ended.returncode == 1
    assert "no Ray at 127.0.0.1:1 (from RAY_ADDRESS)" in ended.stderr


def test_a_running_head_is_joined(ray_head: str) -> None:
    import ray

    probe(Target(ray_head, "test"))
    with connected(ray_head) as target:
        assert target.address == ray_head
        assert ray.is_initialized()
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 32}, "does not let this driver in"),
        ({"RAY_AUTH_MODE": "disabled"}, "does not let this driver in"),
        ({"RAY_AUTH_TOKEN": ""}, "asks for a token, and there is none here"),
    ],
)
def test_a_head_that_wants_another_token_is_refused_with_the_remedy(
    ray_head: str, environ: dict[str, str], words: str, tmp_path: Path
) -> None:
    code = (
        "from orchestrator.fleet.connect import connected, ConnectError\n"
        f"try:\n    connected({ray_head!r}).__enter__()\n"
        "except ConnectError as error:\n    raise SystemExit(str(error))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HOME": str(tmp_path)} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = ended.stderr.splitlines()[-1]
    assert words in last
    assert "RAY_AUTH_TOKEN" in last
    assert "ray get-auth-token" in last


def test_ray_starts_where_the_home_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    code = (
        "import ray; from orchestrator.fleet.connect import connected\n"
        "with connected('local', cpus=1): print(len(ray.nodes()))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=environ | {"HOME": str(tmp_path / "file" / "home")},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert ended.stdout.split()[-1] == "1"


def test_a_folder_that_is_replaced_meanwhile_is_entered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with elsewhere("/"):
        assert Path.cwd() == Path("/")
        folder.rmdir()
        replaced = threading.Timer(0.3, folder.mkdir)
        replaced.start()
    assert Path.cwd() == folder
    (folder / "there").touch()
    assert Path("there").exists()


def test_an_interrupted_shutdown_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.fleet.connect.tempfile.mkdtemp", lambda **_: str(tmp_path / "oom"))
    monkeypatch.setattr("orchestrator.fleet.connect._start", lambda folder, cpus: Path(folder).mkdir())
    monkeypatch.setattr("orchestrator.fleet.connect.ray.is_initialized", lambda: False)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.fleet.connect.ray.shutdown", interrupted)
    with pytest.raises(KeyboardInterrupt), connected("local"):
        assert (tmp_path / "oom").exists()
    assert not (tmp_path / "oom").exists()
