"""A hub on this machine: what the hub's client needs to list and download one repository."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(repo_id: str, folder: Path, requests: list[str]) -> Iterator[str]:
    """Serves `folder` as model `repo_id`; appends "METHOD path" of each request. Yields the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            requests.append(f"{self.command} {self.path}")
            path = unquote(self.path.partition("?")[0])
            if path.startswith(f"/api/models/{repo_id}/tree/"):
                files = [_entry(file) for file in sorted(folder.iterdir())]
                self._answer(json.dumps(files).encode(), "application/json")
            elif path.startswith(f"/api/models/{repo_id}"):
                siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                info = {"id": repo_id, "sha": COMMIT, "siblings": siblings}
                self._answer(json.dumps(info).encode(), "application/json")
            elif path.startswith(f"/{repo_id}/resolve/") and (folder / path.rpartition("/")[2]).is_file():
                self._answer((folder / path.rpartition("/")[2]).read_bytes(), "application/octet-stream")
            else:
                self._answer(b"{}", "application/json", 404, {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET  # noqa: N815, the name that http.server looks for

        def _answer(
            self, body: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _entry(file: Path) -> dict[str, object]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
