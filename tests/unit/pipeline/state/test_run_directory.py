"""Atomic writes, folders set aside, and the lock of a stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from data.storage.files import remove_folder, remove_partial_files, write_text
from pipeline.state.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[4]
HOLD = """
import sys, time
from pathlib import Path
from pipeline.state.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).lock("sft"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock of stage sft."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_process_is_refused_and_told_by_whom(tmp_path: Path, holder) -> None:
    run = RunDirectory(tmp_path)
    assert run.is_locked("sft")
    with (
        pytest.raises(UserError, match="is being run by process 7 on node-1"),
        run.lock("sft", "process 7 on node-1"),
    ):
        pass
    with run.lock("rm"):
        assert run.is_locked("rm"), "stages are locked one by one"


def test_a_killed_process_leaves_no_lock(tmp_path: Path, holder) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    run = RunDirectory(tmp_path)
    assert not run.is_locked("sft")
    with run.lock("sft"):
        pass


def test_lock_outlives_setting_the_folder_aside(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.stage("sft").mkdir()
    with run.lock("sft"):
        run.set_aside("sft")
        assert run.is_locked("sft")
    assert not run.is_locked("sft")


def test_asking_about_a_lock_creates_nothing(tmp_path: Path) -> None:
    assert not RunDirectory(tmp_path / "run").is_locked("sft")
    assert not (tmp_path / "run").exists()


def test_set_aside_takes_the_next_free_number(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for content in ("first", "second"):
        run.stage("sft").mkdir()
        (run.stage("sft") / "file").write_text(content)
        run.set_aside("sft")
    assert (tmp_path / "sft.old-1/file").read_text() == "first"
    assert (tmp_path / "sft.old-2/file").read_text() == "second"
    assert not run.stage("sft").exists()


def test_write_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "a long first text")
    write_text(path, "short")
    assert path.read_text() == "short"
    assert [file.name for file in tmp_path.iterdir()] == ["file"], "no temporary file is left"


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_killed_writers_left_is_swept_up_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step-000002.partial" / "below").mkdir(parents=True)
    partial = [".manifest.json.x.partial", "checkpoints/.step-000002.partial/tensors.safetensors"]
    kept = ["manifest.json", "mine.partial", ".sft.lock"]
    for name in partial + kept:
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {*kept, "checkpoints"}


def test_the_config_is_written_over_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.x.partial").touch()
    RunDirectory(tmp_path).write_config("name: toy\n")
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", ".config.lock"}
    assert (tmp_path / "config.yaml").read_text() == "name: toy\n"


def test_a_folder_leaves_its_name_before_its_files_go(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "step-000002"
    folder.mkdir()
    (folder / "seal.json").touch()
    removed = []
    monkeypatch.setattr(
        "data.storage.files.shutil.rmtree", lambda path, **_: removed.append((path.name, folder.exists()))
    )
    remove_folder(folder)
    assert removed == [(".step-000002.old.partial", True), (".step-000002.old.partial", False)]


def test_a_folder_is_removed_although_the_last_time_was_cut_short(tmp_path: Path) -> None:
    for name in ("step-000002", ".step-000002.old.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "seal.json").touch()
    remove_folder(tmp_path / "step-000002")
    assert list(tmp_path.iterdir()) == []
