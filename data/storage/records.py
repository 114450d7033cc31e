"""Hashes of the files that a stage records line by line, and a check against them.

Nothing trains on these files, so damage is reported and does not stop a stage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.storage.files import sha256


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Length in bytes and SHA-256 of each `*.jsonl` file in a stage's folder, by file name."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.glob("*.jsonl"))
    }


def record_faults(folder: Path, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line per file that does not begin with the content that `records` hashed. It may have grown."""
    faults = []
    for name, record in expected.items():
        path = folder / Path(name).name
        content = path.read_bytes()[: record["bytes"]] if path.is_file() else None
        if content is None or hashlib.sha256(content).hexdigest() != record["sha256"]:
            fault = "is missing" if content is None else "is not what the stage wrote (its SHA-256 differs)"
            faults.append(f"{path} {fault}; nothing trains on it, but figures and samples may be wrong")
    return faults
