"""Checkpoints read back equal. Damage is noticed and the file is named."""

import itertools
import json
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from configs.errors import UserError
from data.storage import sealed_folder
from data.storage.files import remove_partial_files
from data.storage.sealed_folder import SealedFolder, seal_fault
from stages.training import checkpoint
from stages.training.checkpoint import Header, State, newest_checkpoint, save_checkpoint
from stages.training.resume import find_checkpoint
from tests.unit.stages.feedback.test_evaluation import context_in

FILES = ("tensors.safetensors", "state.json", "seal.json")


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "causal.a.lora_A.policy.weight": torch.randn(4, 8, generator=generator),
        "exp_avg/causal.a.lora_A.policy.weight": torch.randn(4, 8, generator=generator).to(torch.bfloat16),
        "heads.critic.bias": torch.tensor([float("nan"), -0.0, 1e-45]),
    }


VALUES = {"eval_loss_before": 2.5, "text": "ü\u2028"}


def save(root: Path, step: int, keep: int = 5, best: int | None = None, seed: int | None = None) -> Path:
    parts = {"engine": State({"steps": step}, tensors(step if seed is None else seed)), "loop": State(VALUES)}
    save_checkpoint(root, Header(step, "ours", "b", {}), parts, keep, best)
    return root / f"step-{step:06d}"


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def same_bytes(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8))
        for name in a
    )


# Saving and finding


def test_where_no_checkpoint_is_good_the_stage_does_not_start_over(tmp_path: Path) -> None:
    context = replace(context_in(tmp_path), resume=True, run_id="theirs")
    assert find_checkpoint(context) is None  # killed before its first checkpoint
    save(tmp_path / "checkpoints", 1)
    with pytest.raises(UserError, match=r"none of the checkpoints is good(.|\n)*another run \(ours\)"):
        find_checkpoint(context)


def test_checkpoints_of_another_version_are_refused_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("stages.training.checkpoint.FORMAT", 1)
    save(tmp_path / "checkpoints", 1)
    save(tmp_path / "checkpoints", 2)
    monkeypatch.undo()
    context = replace(context_in(tmp_path), resume=True, run_id="ours")
    with pytest.raises(UserError, match="another version of Tristage wrote these checkpoints") as refused:
        find_checkpoint(context)
    assert "\n" not in str(refused.value) and "--fresh" in str(refused.value)


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    folder = save(tmp_path, 50)
    restored, faults = newest_checkpoint(tmp_path, "ours")
    assert restored is not None
    assert (restored.folder, restored.step, faults) == (folder, 50, [])
    assert (restored.run, restored.base, restored.records) == ("ours", "b", {})
    assert restored.part("engine").values == {"steps": 50} and restored.part("loop").values == VALUES
    assert same_bytes(restored.part("engine").tensors, tensors(50))
    assert restored.part("loop").tensors == {} and restored.part("none such") == State()


def test_newest_is_found(tmp_path):
    for step in (2, 100, 9):
        save(tmp_path, step)
        restored, _ = newest_checkpoint(tmp_path, "ours")
        assert restored is not None
        assert restored.step == step


@pytest.mark.parametrize("root", ["absent", "."])
def test_no_checkpoint_is_none_and_no_complaint(root, tmp_path):
    assert newest_checkpoint(tmp_path / root, "ours") == (None, [])


def test_the_newest_few_are_kept(tmp_path):
    kept = []
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep=2)
        kept.append(names(tmp_path))
    assert kept == [
        ["step-000005"],
        ["step-000005", "step-000010"],
        ["step-000010", "step-000015"],
        ["step-000015", "step-000020"],
    ]


def test_the_best_is_kept_besides_the_newest(tmp_path):
    for step, best in ((5, 5), (10, 5), (15, 5), (20, 20), (25, 20)):
        save(tmp_path, step, 1, best)
        assert names(tmp_path) == sorted({f"step-{kept_step:06d}" for kept_step in (step, best)})


def test_one_kept_checkpoint_is_the_one_just_written(tmp_path):
    save(tmp_path, 10)
    (save(tmp_path, 20) / "state.json").unlink()  # so the stage resumed from step 10
    save(tmp_path, 15, keep=1)
    assert names(tmp_path) == ["step-000015"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 7)
    save(tmp_path, 7, seed=99)
    restored, _ = newest_checkpoint(tmp_path, "ours")
    assert restored is not None
    assert same_bytes(restored.part("engine").tensors, tensors(99))
    assert names(tmp_path) == ["step-000007"]


def test_only_safetensors_and_json_and_never_a_pickle(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a pickle")

    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    folder = save(tmp_path, 1)
    restored, _ = newest_checkpoint(tmp_path, "ours")
    assert restored is not None
    assert restored.part("engine").tensors
    assert names(folder) == sorted(FILES)
    for name in ("state.json", "seal.json"):
        json.loads((folder / name).read_text())
    with safe_open(folder / "tensors.safetensors", "pt") as file:
        assert set(file.keys()) == {f"engine/{name}" for name in tensors()}


# Damage


def flip(position: float):
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(position * len(data)), len(data) - 1)] ^= 1
        path.write_bytes(data)

    return damage


DAMAGE = {
    "first byte": flip(0),
    "middle byte": flip(0.5),
    "last byte": flip(1),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoint_is_passed_over_and_the_file_named(name, damage, tmp_path):
    save(tmp_path, 10)
    folder = save(tmp_path, 20)
    DAMAGE[damage](folder / name)
    restored, faults = newest_checkpoint(tmp_path, "ours")
    assert restored is not None
    assert restored.step == 10
    assert same_bytes(restored.part("engine").tensors, tensors(10))
    (fault,) = faults
    assert str(folder) in fault
    if (name, damage) == ("seal.json", "middle byte"):
        assert "tdnsors.safetensors is missing" in fault  # the seal is still JSON, but names a missing file
    else:
        assert f": {name} is " in fault


def test_any_flipped_bit_of_the_seal_is_noticed(tmp_path):
    folder = save(tmp_path, 1)
    intact = (folder / "seal.json").read_bytes()
    assert seal_fault(folder) is None
    for bit in range(8 * len(intact)):
        data = bytearray(intact)
        data[bit // 8] ^= 1 << bit % 8
        (folder / "seal.json").write_bytes(data)
        assert seal_fault(folder) is not None, bit


def test_every_damaged_one_is_complained_of_newest_first(tmp_path):
    save(tmp_path, 20)
    (save(tmp_path, 30) / "state.json").unlink()
    flip(0.5)(save(tmp_path, 35) / "tensors.safetensors")
    restored, faults = newest_checkpoint(tmp_path, "ours")
    assert restored is not None
    assert restored.step == 20
    newest, older = faults
    assert "step-000035" in newest and "tensors.safetensors is damaged" in newest
    assert "step-000030" in older and "state.json is missing" in older


def test_nothing_good_is_none(tmp_path):
    (save(tmp_path, 1) / "seal.json").unlink()
    restored, faults = newest_checkpoint(tmp_path, "ours")
    assert restored is None
    assert len(faults) == 1


def test_partial_folder_is_ignored_and_swept_up(tmp_path):
    save(tmp_path, 10)
    partial = tmp_path / ".step-000020.partial"
    shutil.copytree(tmp_path / "step-000010", partial)  # a process killed just before the rename
    (partial / "junk").write_text("half a file")
    restored, faults = newest_checkpoint(tmp_path, "ours")
    assert restored is not None
    assert (restored.step, faults) == (10, [])
    save(tmp_path, 20)
    assert names(tmp_path) == ["step-000010", "step-000020"]
    assert names(tmp_path / "step-000020") == sorted(FILES)


def killed_at(event: int, root: Path, write: Callable[[], object]) -> bool:
    """Run `write` in a process that exits before file operation `event` in `root`; returns if it exited."""
    child = os.fork()
    if child == 0:
        steps = itertools.count()

        def count(_: str, arguments: tuple) -> None:
            if arguments and str(arguments[0]).startswith(str(root)) and next(steps) == event:
                os._exit(9)

        sys.addaudithook(count)
        signal.alarm(30)  # should it hang
        status = 1
        try:
            write()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_killed_before_any_step_of_the_write_there_is_the_older_checkpoint_or_the_newer(tmp_path):
    is_newer = []
    older, header, parts = tmp_path / "older", Header(20, "ours", "b", {}), {"engine": State({}, tensors(20))}
    save(older, 10)
    for event in itertools.count():
        root = tmp_path / f"run-{event}"
        shutil.copytree(older, root)
        killed = killed_at(event, root, partial(save_checkpoint, root, header, parts, 1))
        remove_partial_files(root)
        restored, faults = newest_checkpoint(root, "ours")
        assert restored is not None and restored.step in (10, 20) and faults == []
        assert same_bytes(restored.part("engine").tensors, tensors(restored.step))
        assert set(names(root)) <= {"step-000010", "step-000020"}
        is_newer.append(restored.step == 20)
        if not killed:
            break
    assert len(is_newer) > 10 and is_newer == sorted(is_newer)
    assert not is_newer[0] and is_newer[-1]


@pytest.mark.parametrize("failing", ["sha256", "sync", "save"])
def test_interrupted_write_leaves_the_older_checkpoint(failing, tmp_path, monkeypatch):
    save(tmp_path, 10)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint if failing == "save" else sealed_folder, failing, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 20, keep=1)
    restored, faults = newest_checkpoint(tmp_path, "ours")
    assert restored is not None
    assert (restored.step, faults) == (10, [])
    assert names(tmp_path) == ["step-000010"]  # the partial folder is removed, which frees a full disk


def test_folder_appears_sealed_and_synced_or_not_at_all(tmp_path, monkeypatch):
    synced: list[Path] = []
    sync = sealed_folder.sync

    def record(path: Path) -> None:
        synced.append(path)
        sync(path)

    monkeypatch.setattr(sealed_folder, "sync", record)
    final = tmp_path / "adapter"
    with SealedFolder(final) as folder:
        (folder / "a").write_text("1")
        (folder / "below").mkdir()
        (folder / "below" / "b").write_text("2")
        assert not final.exists()
    assert seal_fault(final) is None
    partial = tmp_path / ".adapter.partial"
    expected = [partial / "a", partial / "below", partial / "below" / "b", partial / "seal.json", partial]
    assert set(expected) <= set(synced)
    assert synced[-1] == tmp_path  # the rename itself
    (final / "below" / "b").write_text("3")
    assert "below/b is damaged" in str(seal_fault(final))
    with pytest.raises(RuntimeError), SealedFolder(tmp_path / "other") as folder:
        (folder / "a").write_text("1")
        raise RuntimeError
    assert names(tmp_path) == ["adapter"]
