"""The digest of a base's folder covers every byte that loading reads, and its cache is never wrong."""

import os
import shutil
import time
from pathlib import Path

import pytest

from data.storage import file_cache
from data.storage.file_cache import cached
from data.storage.folder_digest import folder_digest
from data.storage.source_digest import source_digest

MIB = 2**20


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRISTAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_cache, "SETTLED_NS", -1)  # files of a test are always young
    return tmp_path / "cache" / "files"


@pytest.fixture
def folder(tmp_path):
    """A large file, and a file of each kind that loading reads."""
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(40 * MIB))
    names = ["config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model", "merges.txt"]
    names += ["chat_template.jinja", "additional_chat_templates/tool.jinja", "modeling_own.py", "a.tiktoken"]
    for name in names:
        (folder / name).write_text(name)
    return folder


def overwrite(file: Path, at: int, content: bytes) -> None:
    """Change a file in place, and set its time of modification back."""
    times = file.stat()
    with file.open("r+b") as stream:
        stream.seek(at)
        stream.write(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("at", [0, 3 * MIB + 5, 20 * MIB + 1, 40 * MIB - 1])
def test_every_byte_of_a_large_file_counts(folder, at):
    before = folder_digest(folder)
    byte = (folder / "model.safetensors").read_bytes()[at]
    overwrite(folder / "model.safetensors", at, bytes([byte ^ 1]))
    changed = folder_digest(folder)
    assert changed != before
    overwrite(folder / "model.safetensors", at, bytes([byte]))
    assert folder_digest(folder) == before


def test_every_file_that_loading_reads_counts(folder):
    seen = {folder_digest(folder)}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        overwrite(path, 0, b"#")
        seen.add(folder_digest(folder))
    (folder / "new.json").write_text("{}")
    seen.add(folder_digest(folder))
    assert len(seen) == len(files) + 2


def test_other_files_do_not_count(folder):
    before = folder_digest(folder)
    (folder / "README.md").write_text("a card")
    (folder / "checkpoint-1").mkdir()
    (folder / "dangling.json").symlink_to("nowhere")
    assert folder_digest(folder) == before


def test_a_link_counts_with_the_content_behind_it(folder, tmp_path):
    before = folder_digest(folder)
    shutil.move(folder / "model.safetensors", tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert folder_digest(folder) == before
    overwrite(tmp_path / "blob", 0, b"another")
    assert folder_digest(folder) != before


def test_hub_id_has_no_digest(tmp_path):
    assert folder_digest(Path("nobody/model")) is None
    assert folder_digest(tmp_path / "absent") is None


# The cache


def test_unchanged_file_is_read_once(folder, monkeypatch):
    digest = folder_digest(folder)
    monkeypatch.setattr("data.storage.folder_digest.sha256", lambda path: pytest.fail(f"read {path} again"))
    assert folder_digest(folder) == digest


def test_file_that_replaces_another_is_read(folder, tmp_path):
    """Same path, size and time of modification, as `cp --preserve` and `mv` leave them."""
    file, other = folder / "config.json", tmp_path / "other"
    other.write_text("#onfig.json")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    before = folder_digest(folder)
    other.replace(file)
    assert folder_digest(folder) != before


def test_young_file_is_not_cached(folder, monkeypatch, cache):
    """It may change again within the resolution of its time stamps."""
    monkeypatch.setattr(file_cache, "SETTLED_NS", 10**12)
    folder_digest(folder)
    assert not cache.exists()


def test_file_that_changes_while_it_is_read_is_not_cached(folder, cache):
    def compute(path):
        overwrite(path, 0, b"#")
        return "of the old one"

    time.sleep(0.02)  # beyond the resolution of the clock
    assert cached(folder / "config.json", "fact", compute) == "of the old one"
    assert cached(folder / "config.json", "fact", lambda path: "of the new one") == "of the new one"


def test_facts_of_a_file_are_apart(folder):
    assert cached(folder / "config.json", "one", lambda path: "1") == "1"
    assert cached(folder / "config.json", "other", lambda path: "2") == "2"


def test_cache_that_cannot_be_written_saves_nothing(folder, cache):
    digest = folder_digest(folder)
    shutil.rmtree(cache)
    cache.write_text("a file where the folder should be")
    assert folder_digest(folder) == digest


def test_a_name_that_no_file_can_have_has_no_digest(tmp_path):
    assert source_digest(tmp_path / ("x" * 300)) is None
