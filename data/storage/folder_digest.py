"""A digest that shows whether the folder of a local base still holds the same model."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from data.storage.file_cache import cached
from data.storage.files import sha256

# What loading reads: configuration, tokenizer, chat templates, weights, and a model's own code.
READ = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
FOLDERS = ("", "additional_chat_templates")


def folder_digest(folder: Path) -> str | None:
    """SHA-256 of a local base's configuration, tokenizer and weights. None if the base is not a local folder.

    Every byte enters. The hash of a file is cached until the file changes.
    """
    if not folder.is_absolute() or not os.path.isdir(folder):  # Path.is_dir fails at a name that is too long
        return None
    digest = hashlib.sha256()
    paths = sorted(path for name in FOLDERS for kind in READ for path in (folder / name).glob(kind))
    for path in filter(Path.is_file, paths):
        digest.update(f"{path.relative_to(folder)} {cached(path, 'sha256', sha256)}\n".encode())
    return digest.hexdigest()
