"""`metrics.jsonl` and `samples.jsonl`: JSON lines that are appended to and survive a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.storage.files import write_text
from pipeline.state.manifest import Manifest

# JSON does not escape these characters, but str.splitlines splits at them.
LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class JsonLines:
    """A file with one JSON object per line, each with its `step`. Every line is flushed.

    Values that are not finite become null, since JSON has no NaN.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("a", encoding="utf-8")

    def append(self, step: int, record: Mapping[str, Any]) -> None:
        row = {"step": step, **{key: _finite_or_none(value) for key, value in record.items()}}
        self._stream.write(json.dumps(row, ensure_ascii=False).translate(LINE_BREAKS) + "\n")
        self._stream.flush()

    def rewind(self, step: int) -> None:
        """Drop the lines of later steps and a half-written last line, atomically."""
        self._stream.close()
        text = self.path.read_text(encoding="utf-8", errors="replace")
        *complete, _incomplete = text.split("\n")
        kept = "".join(line + "\n" for line in complete if _is_up_to(line, step))
        if kept != text:
            write_text(self.path, kept)
        self._stream = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._stream.close()


def _is_up_to(line: str, step: int) -> bool:
    """Whether a line is a JSON object of `step` or an earlier step."""
    try:
        record = json.loads(line)
    except (RecursionError, ValueError):  # some file systems leave zeros after a power cut
        return False
    return isinstance(record, dict) and isinstance(record.get("step"), int) and record["step"] <= step


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class FileSink:
    """Writes `metrics.jsonl` and `samples.jsonl` in the stage's folder, whether W&B is used or not."""

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
