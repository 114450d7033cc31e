"""Files under one seal are refused if one of them, or the seal, is not as it was written."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import UserError
from data.storage.sealed_files import check_sealed, remove_sealed, write_sealed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_sealed(tmp_path / "rows.jsonl", {"figures.json": "{}", "rows.jsonl": "é\n"})
    return tmp_path / "rows.jsonl"


def test_it_is_a_list_that_sha256sum_reads(file: Path) -> None:
    check_sealed(file, "Restore it.")
    subprocess.run(["sha256sum", "--check", "--strict", "rows.sha256"], cwd=file.parent, check=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "rows.jsonl").write_text("e\n"),
        lambda folder: (folder / "rows.jsonl").unlink(),
        lambda folder: (folder / "figures.json").write_text("[]"),
        lambda folder: (folder / "figures.json").unlink(),
        lambda folder: (folder / "rows.sha256").write_text(""),
        lambda folder: (folder / "rows.sha256").write_text("\n"),
        lambda folder: (folder / "rows.sha256").write_text(
            (folder / "rows.sha256").read_text().splitlines()[0] + "\n"
        ),
        lambda folder: (folder / "rows.sha256").write_bytes(b"\xff" + (folder / "rows.sha256").read_bytes()),
    ],
)
def test_damage(damage: Callable[[Path], None], file: Path) -> None:
    damage(file.parent)
    with pytest.raises(UserError, match=r"rows\.jsonl.*: damaged .* rows\.sha256\)\. Restore it\.") as caught:
        check_sealed(file, "Restore it.")
    assert "\n" not in str(caught.value)


def test_without_a_seal(file: Path) -> None:
    (file.parent / "rows.sha256").unlink()
    with pytest.raises(UserError, match=r"rows\.sha256 is missing, so rows\.jsonl cannot be checked"):
        check_sealed(file, "Restore it.")
    remove_sealed(file)
    remove_sealed(file)
    assert [path.name for path in file.parent.iterdir()] == ["figures.json"]
