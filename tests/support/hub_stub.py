"""A model hub on this machine, with the requests that its clients make to read data sets."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "1" * 40


class HubStub(ThreadingHTTPServer):
    """A hub with these data sets: the content of each file by id and path."""

    def __init__(self, data_sets: Mapping[str, Mapping[str, bytes]]) -> None:
        self.data_sets = data_sets
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: HubStub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/api").removeprefix("/datasets/")
        name = "/".join(path.split("/")[:2])
        files = self.server.data_sets.get(name)
        _, _, tree = path.partition("/tree/")
        _, _, file = path.partition("/resolve/")
        file = file.partition("/")[2]
        if files is None:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif tree:
            self._answer(200, json.dumps(list(_entries(files, tree.partition("/")[2]))).encode())
        elif not file:
            about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": one} for one in files]}
            self._answer(200, json.dumps(about).encode())
        elif file in files:
            self._answer(200, files[file], {"ETag": f'"{_digest(files[file])}"', "X-Repo-Commit": COMMIT})
        else:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextlib.contextmanager
def hub_stub(data_sets: Mapping[str, Mapping[str, bytes]]) -> Iterator[HubStub]:
    """Serve these data sets until the end of the block."""
    with HubStub(data_sets) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _entries(files: Mapping[str, bytes], folder: str) -> Iterator[dict[str, object]]:
    """What lies in a folder itself: files, and folders once each."""
    start = f"{folder}/" if folder else ""
    folders = set()
    for path, content in files.items():
        head, slash, _ = path.removeprefix(start).partition("/")
        if not path.startswith(start) or (slash and head in folders):
            continue
        if slash:
            folders.add(head)
            yield {"type": "directory", "path": start + head, "oid": _digest(b""), "size": 0}
        else:
            yield {"type": "file", "path": path, "oid": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return sha1(content, usedforsecurity=False).hexdigest()
