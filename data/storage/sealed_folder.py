"""Folders that are written atomically and sealed with the SHA-256 of every file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from data.storage.files import PARTIAL, remove_folder, sha256, stays_inside, sync

SEAL = "seal.json"


class SealedFolder:
    """Context manager for a folder that appears under its name whole, synced and sealed, or not at all."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.partial = final.with_name(f".{final.name}{PARTIAL}")

    def __enter__(self) -> Path:
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _publish(self) -> None:
        files = sorted(path for path in self.partial.rglob("*") if path.is_file())
        hashes = {path.relative_to(self.partial).as_posix(): sha256(path) for path in files}
        (self.partial / SEAL).write_text(json.dumps(hashes, indent=1))
        for path in (*self.partial.rglob("*"), self.partial):
            sync(path)
        if self.final.exists():
            remove_folder(self.final)
        self.partial.rename(self.final)
        sync(self.final.parent)


def seal_fault(folder: Path) -> str | None:
    """The fault of a sealed folder, with the name of the file. None if it is intact."""
    try:
        hashes = json.loads((folder / SEAL).read_text())
    except FileNotFoundError:
        return f"{SEAL} is missing"
    except (OSError, ValueError, RecursionError):
        return f"{SEAL} is damaged"
    if not isinstance(hashes, dict):
        return f"{SEAL} is damaged"
    for name, expected in hashes.items():
        if not stays_inside(name):
            return f"{SEAL} is damaged (it names {name!r:.60}, which is outside the folder)"
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != expected:
            return f"{name} is damaged (its SHA-256 is not the sealed one)"
    return None
