"""`--push`: the hub gets every file of the folder, in a private repository, and refusals are one message."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from apps.export.push import push
from configs.errors import UserError


class Hub(ThreadingHTTPServer):
    """A hub that takes small files in the commit itself. `requests` has the path and body of each request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.refuses = False
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.path, body))
        if self.server.refuses:
            self._answer(403, {"error": "Forbidden"})
        elif "preupload" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._answer(200, {"files": modes})
        elif "commit" in self.path:
            url = "https://huggingface.co/me/demo/commit/1"
            self._answer(200, {"success": True, "commitOid": "1", "commitUrl": url})
        else:
            self._answer(200, {"url": "https://huggingface.co/me/demo", "name": "me/demo"})

    def do_GET(self) -> None:
        self._answer(200, {"sha": "1", "siblings": [], "id": "me/demo"})

    def _answer(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_a_token_of_the_tests")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("# demo\n")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_every_file_is_in_the_commit_to_a_private_repository(hub: Hub, folder: Path) -> None:
    assert push(folder, "me/demo") == "https://huggingface.co/me/demo/commit/1"
    bodies = dict(hub.requests)
    assert json.loads(bodies["/api/repos/create"])["visibility"] == "private"
    [commit] = [body for path, body in bodies.items() if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert files == {"README.md", "config.json"}


def test_a_refusal_is_one_message_and_the_folder_stays(hub: Hub, folder: Path) -> None:
    hub.refuses = True
    with pytest.raises(UserError, match=r"--push me/demo: .*403") as caught:
        push(folder, "me/demo")
    assert "a_token_of_the_tests" not in str(caught.value)
    assert (folder / "config.json").is_file()


def test_a_name_that_is_none_is_refused(hub: Hub, folder: Path) -> None:
    with pytest.raises(UserError, match="--push not a name"):
        push(folder, "not a name")
