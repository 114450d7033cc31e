"""Append-only JSON lines that survive a kill: `metrics.jsonl` and `samples.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.storage.files import write_text
from pipeline.state.manifest import Manifest

# JSON leaves these as they are, but str.splitlines breaks lines there.
LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class JsonLines:
    """A file of one JSON object per line, each with the `step` it belongs to, flushed line by line.

    Values that are not finite are written as null, since JSON has no NaN.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("a", encoding="utf-8")

    def append(self, step: int, record: Mapping[str, Any]) -> None:
        plain = {"step": step, **{key: _plain(value) for key, value in record.items()}}
        self._stream.write(json.dumps(plain, ensure_ascii=False).translate(LINE_BREAKS) + "\n")
        self._stream.flush()

    def rewind(self, step: int) -> None:
        """Drop, atomically, lines of later steps, and a last line that a kill left half-written."""
        self._stream.close()
        text = self.path.read_text(encoding="utf-8", errors="replace")
        *whole, _half = text.split("\n")
        kept = "".join(line + "\n" for line in whole if _belongs(line, step))
        if kept != text:
            write_text(self.path, kept)
        self._stream = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._stream.close()


def _belongs(line: str, step: int) -> bool:
    """True for a whole line of `step` or an earlier one."""
    try:
        record = json.loads(line)
    except (RecursionError, ValueError):  # zeros, which some file systems leave after a power cut
        return False
    return isinstance(record, dict) and isinstance(record.get("step"), int) and record["step"] <= step


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class FileSink:
    """`metrics.jsonl` and `samples.jsonl` in the stage's folder, always written."""

    def __init__(self, folder: Path) -> None:
        self._metrics = JsonLines(folder / "metrics.jsonl")
        self._samples = JsonLines(folder / "samples.jsonl")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._metrics.append(step, metrics)

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        for row in rows:
            self._samples.append(step, row)

    def rewind(self, step: int) -> None:
        self._metrics.rewind(step)
        self._samples.rewind(step)

    def finish(self, manifest: Manifest, output: Path) -> None:
        pass

    def close(self, exit_code: int) -> None:
        self._metrics.close()
        self._samples.close()
