"""Replies of judges on disk, so that a stage that resumes pays for none of them twice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from configs.errors import UserError
from data.storage.files import read_json_lines
from data.storage.growing_file import append_line, drop_cut_line

KEYS = ("question", "reply", "sha256")
REMEDY = "Remove the line; its question is asked again."


@dataclass(frozen=True)
class Reply:
    """A reply to a question, and its tokens; None if the endpoint does not tell them.

    Attributes:
        cut: it ran out of tokens.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cut: bool = False


def question_key(url: str, body: dict[str, Any]) -> str:
    """SHA-256 of a request: its address and its body."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()


class VerdictCache:
    """Replies by the key of their question, in memory and in a file of JSON lines that only grows.

    A line is on disk before its reply is used. Threads may share the cache.

    Attributes:
        file: None if replies are kept in memory only.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Read the replies of an earlier attempt.

        Raises:
            UserError: a line is damaged. A last line that a kill has cut is dropped.
        """
        self.file, self._lock = file, Lock()
        self._replies = _read(file) if file and file.exists() else {}

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """The reply to a question; None if it was not asked yet."""
        return self._replies.get(key)

    def add(self, key: str, reply: Reply) -> None:
        """Keep the reply to a question, on disk first."""
        with self._lock:
            if self.file is not None:
                append_line(self.file, json.dumps(_line(key, reply)).encode())
            self._replies[key] = reply


def _line(key: str, reply: Reply) -> dict[str, Any]:
    """The row of a reply, with the SHA-256 of the rest of it."""
    content = {name: value for name, value in asdict(reply).items() if name != "cut" or value}
    row = {"question": key, "reply": content}
    return row | {"sha256": hashlib.sha256(json.dumps(row).encode()).hexdigest()}


def _read(file: Path) -> dict[str, Reply]:
    """The replies by their question's key. The file is cut after its last whole line."""
    drop_cut_line(file)
    replies = {}
    for number, row in enumerate(read_json_lines(file, KEYS, remedy=REMEDY), 1):
        try:
            key, reply = row["question"], Reply(**row["reply"])
            sound = row == _line(key, reply)
        except TypeError:
            sound = False
        if not sound:
            raise UserError(f"{file}, line {number}: damaged (its SHA-256 differs). {REMEDY}")
        replies[key] = reply
    return replies
