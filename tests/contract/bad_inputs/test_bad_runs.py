"""Run directories that are damaged, swapped or in use: the message, and that nothing changes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import dump_experiment, load_experiment
from pipeline.reporting import report
from pipeline.state.manifest import read_manifest
from pipeline.state.run_directory import RunDirectory
from tests.contract.bad_inputs.entry import VALID, check_message, experiment, files, flip, stage_run, tristage
from tests.support.pipeline_runs import write_stage

NOBODY = 65534
HASH = "0" * 64


def stage_error(file: Path, run: Path, stage: str, *overrides: str, **switches: bool) -> str:
    """The output with which `run_stage` refuses. It changes nothing."""
    before = files(run) if run.is_dir() else {}
    status, output = stage_run(file, run, stage, *overrides, **switches)
    assert status == 2, output
    assert (files(run) if run.is_dir() else {}) == before
    return output


# The directory itself


@contextmanager
def unprivileged() -> Iterator[None]:
    """Become a user without root's rights, who may not write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_read_only_folder() -> None:
    folder = Path(tempfile.mkdtemp())  # not tmp_path, which other users may not enter
    for name in ("run", "locked"):
        (folder / name).mkdir()
    with RunDirectory(folder / "locked").lock("sft"):  # as root: other users may not read what this imports
        pass
    for path in (folder, folder / "run", folder / "locked", folder / "locked/.sft.lock"):
        path.chmod(0o555)
    with unprivileged():
        for name, action in {
            "new": lambda run: run.lock("sft").__enter__(),
            "run": lambda run: run.lock("sft").__enter__(),
            "locked": lambda run: run.is_locked("sft"),
        }.items():
            with pytest.raises(UserError) as caught:
                action(RunDirectory(folder / name))
            check_message(
                str(caught.value), f"{folder}/{name}: cannot be a run directory: Permission denied."
            )
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_where_the_run_should_be(name, tmp_path):
    (tmp_path / "file").write_text("precious")
    status, output = stage_run(experiment(tmp_path), tmp_path / name, "sft")
    assert status == 2 and (tmp_path / "file").read_text() == "precious"
    check_message(
        output, f"error: {tmp_path}/{name}: cannot be a run directory: ", "Choose another --run-dir"
    )


def test_a_file_where_the_stage_should_be(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/sft").write_text("precious")
    message = stage_error(experiment(tmp_path), tmp_path / "run", "sft")
    check_message(message, f"{tmp_path}/run/sft is a file where its folder should be", "Move the file away")


@pytest.mark.parametrize("name", ["rankings.jsonl", "demonstrations/train.jsonl"])
def test_data_in_the_folder_that_a_stage_renames(name, sft_run):
    """A run trains again on a file of its own, which the stage would set aside before it reads it."""
    file, _, run = sft_run
    data = run / "sft" / name
    data.parent.mkdir(exist_ok=True)
    data.write_bytes((file.parent / "sft.jsonl").read_bytes())
    message = stage_error(file, run, "sft", f"data.sft.path={data}")
    check_message(
        message, f"data.sft.path: {data} lies in the folder of stage sft, which runs again", "name sft.old-1"
    )


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_two_processes(stage, sft_run):
    file, _, run = sft_run
    with RunDirectory(run).lock(stage):
        check_message(
            stage_error(file, run, stage), f"{run}/{stage}: stage {stage} is being run by", "Wait until it"
        )


def test_a_stale_lock_is_none(sft_run):
    file, _, run = sft_run
    (run / ".sft.lock").write_text("12345")
    assert stage_run(file, run, "sft")[0] == 0


def test_a_file_where_the_report_should_be(sft_run):
    _, config, run = sft_run
    (run / "config.yaml").write_text(dump_experiment(config))
    (run / "report").write_text("precious")
    status, _, err = tristage("report", "--run-dir", run)
    assert status == 2 and (run / "report").read_text() == "precious"
    check_message(err, f"{run}/report: cannot be written: a file is in its place")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_report(sft_run, monkeypatch):
    _, config, run = sft_run
    (run / "config.yaml").write_text(dump_experiment(config))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(report, "draw_all", full)
    status, _, err = tristage("report", "--run-dir", run)
    assert status == 2
    check_message(err, "report: cannot be written: No space left on device. Results are not affected")


# Manifests


def manifest_with_path(path: str, section: str) -> bytes:
    tree = json.loads(json.dumps(MANIFEST))
    if section == "output":
        tree["output"]["files"] = {path: HASH}
    else:
        tree["inputs"] = {"sft": {"path": path, "sha256": HASH}}
    return json.dumps(tree).encode()


MANIFEST = {
    "stage": "sft",
    "status": "finished",
    "config_hash": HASH,
    "config": {},
    "base": {"model": "tiny-random", "quantization": "nf4"},
    "output": {"sha256": HASH, "files": {}},
    "started": "2025-01-01T00:00:00Z",
    "attempt_started": "2025-01-01T00:00:00Z",
}
MANIFESTS = {
    "empty": b"",
    "truncated": json.dumps(MANIFEST).encode()[:200],
    "zeros": b"\0" * 300,
    "list": b"[]",
    "other": b'{"name": "something else"}',
    "nan": json.dumps(MANIFEST | {"wall_seconds": float("nan")}).encode(),
    "status": json.dumps(MANIFEST | {"status": "fine"}).encode(),
    "deep": b'{"config": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "long": json.dumps(MANIFEST | {"stage": "x" * 10**5}).encode(),
    "files above": manifest_with_path("../../secret", "output"),
    "absolute files": manifest_with_path("/etc/passwd", "output"),
    "inputs above": manifest_with_path("../../x", "input"),
}


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_manifest(name, stage, sft_run):
    file, _, run = sft_run
    (run / "sft/manifest.json").write_bytes(MANIFESTS[name])
    check_message(
        stage_error(file, run, stage),
        f"error: {run}/sft/manifest.json: not a readable manifest (",
        f"Restore the file, or move the folder {run}/sft away",
    )
    status, _, stderr = tristage("status", "--run-dir", run)
    assert status == 2
    check_message(stderr, "not a readable manifest")


EVIL = "\x1b]0;title\x07\x1b[31mred\x9b2J\rover"


@pytest.mark.parametrize("colours", [False, True])
def test_text_of_a_manifest_does_not_act_on_the_terminal(colours, sft_run, monkeypatch):
    file, _, run = sft_run
    if colours:
        monkeypatch.setenv("FORCE_COLOR", "1")
    manifest = read_manifest(run / "sft/manifest.json")
    assert manifest is not None
    base = manifest.base.model_copy(update={"model": EVIL})
    config = manifest.config | {"base": manifest.config["base"] | {"revision": EVIL}}
    update = {"status": "failed", "error": EVIL, "base": base, "config": config, "config_hash": HASH}
    manifest.model_copy(update=update).write(run / "sft/manifest.json")
    (run / "config.yaml").write_text(dump_experiment(load_experiment(file)))
    said = [
        *tristage("status", "--run-dir", run),
        *tristage("plan", "--config", file, "--run-dir", run),
        *tristage("plan", "--config", file, "--run-dir", run, "--from", "rm"),
        *stage_run(file, run, "rm"),
        *tristage("report", "--run-dir", run),
        *[page.read_text() for page in (run / "report").glob("*.[hm]*")],
    ]
    text = "".join(map(str, said))
    assert text.count("␛[31mred") >= 3
    for raw in ("\x1b]", "\x1b[31mred", "\x07", "\x9b", "\r"):
        assert raw not in text


def test_a_folder_for_a_manifest(sft_run):
    file, _, run = sft_run
    (run / "sft/manifest.json").unlink()
    (run / "sft/manifest.json").mkdir()
    check_message(stage_error(file, run, "rm"), "manifest.json: cannot be read: Is a directory")


# Adapters upstream, and the base under them


def test_adapter_missing(sft_run):
    file, _, run = sft_run
    (run / "sft/adapter/adapter_model.safetensors").unlink()
    check_message(
        stage_error(file, run, "rm"), "adapter_model.safetensors is missing", "Restore the file, or train sft"
    )


def test_adapter_with_a_flipped_bit(sft_run):
    file, _, run = sft_run
    flip(run / "sft/adapter/adapter_model.safetensors")
    check_message(stage_error(file, run, "rm"), "is not the file that the stage wrote (its SHA-256 differs)")


def test_adapter_of_another_run(sft_run, tmp_path):
    file, config, run = sft_run
    write_stage(tmp_path / "other", "sft", config=config, weights="others")
    shutil.rmtree(run / "sft/adapter")
    shutil.copytree(tmp_path / "other/sft/adapter", run / "sft/adapter")
    check_message(stage_error(file, run, "rm"), "is not the file that the stage wrote")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        (
            "base.model=smollm2-135m-instruct",
            "base is smollm2-135m-instruct (nf4), but stage sft was trained",
        ),
        ("base.revision=v2", "base is tiny-random@v2 (nf4)"),
        ("base.quantization=int8", "base is tiny-random (int8)"),
        ("adapter.r=4", "stage sft was trained with another adapter: adapter.r: 16 -> 4"),
        ("adapter.target_modules=[q_proj]", "adapter.target_modules: all-linear -> ['q_proj']"),
    ],
)
def test_another_base_or_adapter(override, part, sft_run):
    file, _, run = sft_run
    check_message(stage_error(file, run, "rm", override), part, "Restore the setting, or train sft again")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_other_files_in_the_folder_of_the_base(name, tiny_folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    file = experiment(tmp_path, VALID.replace("tiny-random", str(model)))
    write_stage(tmp_path / "run", "sft", config=load_experiment(file))
    flip(model / name, -2)
    message = stage_error(file, tmp_path / "run", "rm")
    check_message(
        message, f"the files of {model} are not those that stage sft was trained on", "train sft again"
    )
