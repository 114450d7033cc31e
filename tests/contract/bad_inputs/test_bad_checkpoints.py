"""Damaged and swapped checkpoints, journals and collected rankings."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from configs.errors import UserError
from data.sources.collected_rankings import read_rankings
from data.storage.files import read_json_lines, sha256
from pipeline.state.rows import MetricRow, read_rows
from pipeline.tracking.metric_files import FileSink
from stages.feedback import rankings
from stages.training.checkpoint import Header, State, newest_checkpoint, save_checkpoint
from stages.training.engine import load_parameters
from tests.contract.bad_inputs.entry import check_message, files, flip
from tests.support.roles import models_of, new_role, tiny_roles

HASH = "0" * 64
SEALS = {
    "missing": (None, "seal.json is missing"),
    "empty": (b"", "seal.json is damaged"),
    "list": (b"[]", "seal.json is damaged"),
    "deep": (b"[" * 10**5, "seal.json is damaged"),
    "binary": (b"\xff\xfe", "seal.json is damaged"),
    "numbers": (b'{"state.json": 3}', "state.json is damaged (its SHA-256 is not the sealed one)"),
    "more": (json.dumps({"more.json": HASH}).encode(), "more.json is missing"),
    "above": (b'{"../../outside": "OUTSIDE"}', "it names '../../outside', which is outside the folder"),
    "absolute": (b'{"/etc/hostname": "x"}', "it names '/etc/hostname', which is outside the folder"),
}


def two_checkpoints(root: Path) -> Path:
    for step in (1, 2):
        state = State({"steps": step}, {"weight": torch.arange(float(step), 9)})
        save_checkpoint(root, Header(step, "ours", "b", {}), {"engine": state}, 2)
    return root / "step-000002"


def check_older_is_taken(root: Path, part: str) -> None:
    before = files(root)
    checkpoint, faults = newest_checkpoint(root, "ours")
    assert checkpoint is not None and checkpoint.step == 1 and len(faults) == 1
    check_message(faults[0], f"skipped the checkpoint {root}/step-000002: ", part)
    assert files(root) == before


@pytest.mark.parametrize("name", SEALS)
def test_seal(name, tmp_path):
    content, part = SEALS[name]
    (tmp_path / "outside").write_text("not theirs to read")
    newest = two_checkpoints(tmp_path / "a/checkpoints")
    (newest / "seal.json").unlink()
    if content is not None:
        hashed = content.replace(b"OUTSIDE", sha256(tmp_path / "outside").encode())
        (newest / "seal.json").write_bytes(hashed)
    check_older_is_taken(newest.parent, part)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize(
    ("damage", "part"),
    [(flip, "is damaged"), (Path.unlink, "is missing"), (lambda path: os.truncate(path, 9), "is damaged")],
)
def test_checkpoint(name, damage, part, tmp_path):
    newest = two_checkpoints(tmp_path)
    damage(newest / name)
    check_older_is_taken(tmp_path, f"{name} {part}")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("state.json", b"[]", "state.json is damaged"),
        ("state.json", b'{"format": 2, "step": "2"}', "it must hold format, step, run, base, records, parts"),
        (
            "state.json",
            b'{"format": 2, "step": 2, "run": "ours", "base": "b", "records": {}, "parts": {"engine": 3}}',
            "each of its parts must be an object",
        ),
        (
            "state.json",  # from before checkpoints had parts
            b'{"step": 2, "run": "ours", "optimizer_steps": 2, "base": "b", "memory": {}, "records": {}}',
            "another version of Tristage wrote it",
        ),
        ("state.json", b"{", "its content is damaged"),
        ("tensors.safetensors", b"cos\nsystem\n(S'id'\ntR.", "its content is damaged"),
    ],
)
def test_checkpoint_that_somebody_sealed_again(name, content, part, tmp_path):
    newest = two_checkpoints(tmp_path)
    (newest / name).write_bytes(content)
    seal = {file.name: sha256(file) for file in newest.iterdir() if file.name != "seal.json"}
    (newest / "seal.json").write_text(json.dumps(seal))
    check_older_is_taken(tmp_path, part)


def test_checkpoint_with_a_seal_over_nothing(tmp_path):
    newest = two_checkpoints(tmp_path)
    (newest / "seal.json").write_text("{}")
    (newest / "state.json").unlink()
    check_older_is_taken(tmp_path, "its content is damaged")


def test_a_file_for_a_checkpoint(tmp_path):
    shutil.rmtree(two_checkpoints(tmp_path))
    (tmp_path / "step-000002").write_text("")
    check_older_is_taken(tmp_path, "seal.json is damaged")


@pytest.mark.parametrize("rank", [2, 4])
def test_checkpoint_of_another_adapter(rank):
    roles = new_role(tiny_roles(), "policy", 0, r=4)
    tensors = new_role(tiny_roles(), "policy", 0, r=rank).role_parameters("policy")
    tensors_of_layers = {
        name: value for name, value in tensors.items() if rank == 2 or "layers.1" not in name
    }
    with pytest.raises(UserError) as caught:
        load_parameters(models_of(roles), tensors_of_layers, ["policy"])
    check_message(str(caught.value), "checkpoint is of another adapter or base", "start over with --fresh")


# Journals and collected rankings

RANKING = {"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1], "split": "train"}


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("partial_line", [b'{"step": 2, "lo', b"\0\0\0", b"\xff", b"[" * 10**5])
def test_half_a_last_line_is_dropped(name, partial_line, tmp_path):
    whole_line = b'{"step": 1, "loss": 1.0, "prompt": "p", "response": "r"}\n'
    (tmp_path / name).write_bytes(whole_line + partial_line)
    assert [row["step"] for row in read_json_lines(tmp_path / name, ["step"], growing=True)] == [1]
    sink = FileSink(tmp_path)
    sink.rewind(1)
    sink.close(0)
    assert (tmp_path / name).read_bytes() == whole_line


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}', "[" * 10**5, "9" * 5000])
def test_a_damaged_line_in_the_middle_is_named(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path / "metrics.jsonl", MetricRow)
    check_message(str(caught.value), f"{tmp_path}/metrics.jsonl, line 2: ", "Remove the line")


@pytest.mark.parametrize(
    "line",
    ["{", "", "[]", "3", "{}", "[" * 10**5, "9" * 5000]
    + [json.dumps(RANKING | changes) for changes in ({"ranks": [0]}, {"split": "dev"}, {"ranks": 3})],
)
def test_damaged_rankings_are_named(line, tmp_path):
    file = tmp_path / "rankings.jsonl"
    file.write_text(json.dumps(RANKING) + "\n" + line + "\n")
    with pytest.raises(UserError) as caught:
        read_rankings(file, rankings.REMEDY)
    check_message(str(caught.value), f"{file}, line 2: ", "start over with --fresh")
