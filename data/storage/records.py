"""What a stage records line by line, and whether it is still what the stage wrote.

Nothing trains on these files, so damage to them is told and ends nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.storage.files import sha256


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Length in bytes and SHA-256 of each `*.jsonl` in a stage's folder, by name."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.glob("*.jsonl"))
    }


def record_faults(folder: Path, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line on each file that does not begin with what `records` saw; more may have been added since."""
    faults = []
    for name, seen in expected.items():
        path = folder / Path(name).name
        content = path.read_bytes()[: seen["bytes"]] if path.is_file() else None
        if content is None or hashlib.sha256(content).hexdigest() != seen["sha256"]:
            what = "is missing" if content is None else "is not what the stage wrote (its SHA-256 differs)"
            faults.append(f"{path} {what}; nothing trains on it, but figures and samples may be wrong")
    return faults
