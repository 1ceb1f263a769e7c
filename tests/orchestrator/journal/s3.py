"""A real S3 server (moto's) and a relay before it that can be cut: an outage as a driver meets it."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer


@contextmanager
def s3_server() -> Iterator[str]:
    """Its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def use(endpoint: str, patch: pytest.MonkeyPatch) -> None:
    """Stores that are opened from now on are those of `endpoint`; those open stay with theirs."""
    for name, value in environment(endpoint).items():
        patch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


def new_bucket(server: str) -> str:
    name = f"runs-{time.monotonic_ns()}"
    boto3.client(
        "s3",
        endpoint_url=server,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    ).create_bucket(Bucket=name)
    return f"s3://{name}/sweeps/demo"


def until(holds: Callable[[], object]) -> None:
    patience = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < patience
        time.sleep(0.05)


class Relay:
    """Passes what comes to `url` on to `target`, until `cut`; then it refuses and drops, until `mend`."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = host, int(port)
        self._live: list[socket.socket] = []
        self._port = 0
        self.mend()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        for end in (self._listener, *self._live):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._live.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
                self._live += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=ends, daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
