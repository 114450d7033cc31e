"""Updates whose gradient is not finite: left out, counted, told, and fatal when they go on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import DeepSpeed, Sft
from data.tokenize import Demonstration
from stages import sft
from stages.context import Context
from stages.engine import Engine
from stages.ranks import Ranks
from tests.integration.runs import ROOT, TINY
from tests.integration.test_ppo_start import Recorder
from tests.roles import new_role, tiny_roles

BATCHES = [[Demonstration([5, 6, 7 + i], [8, 9 + i, 2]), Demonstration([5], [11 + i, 2])] for i in range(3)]


class Spoiler:
    """The loss of SFT, times `factor`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.factor, self.loss = 1.0, sft.nll_loss
        monkeypatch.setattr(sft, "nll_loss", lambda *arguments: self.factor * self.loss(*arguments))


@pytest.fixture(autouse=True)
def local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # DeepSpeed asks for it


@pytest.fixture
def spoiler(monkeypatch: pytest.MonkeyPatch) -> Spoiler:
    return Spoiler(monkeypatch)


def trainer_at(zero: int, ranks: Ranks) -> sft.Trainer:
    config = DeepSpeed(config=str(ROOT / "configs" / "deepspeed" / f"zero{zero}.json"))
    training = Sft(scheduler="constant", warmup_ratio=0, batch_size=2)
    roles = new_role(tiny_roles(), "policy", 0)
    return sft.Trainer(Engine(roles, {"policy": 1e-3}, training, 10, config, ranks), 0, 1)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_nothing_of_a_bad_update_remains(zero: int, factor: float, spoiler: Spoiler, ranks: Ranks) -> None:
    ours, theirs = trainer_at(zero, ranks), trainer_at(zero, ranks)
    for trainer in (ours, theirs):
        trainer.step(BATCHES[0])
    before = ours.engine.state()
    spoiler.factor = factor
    assert not math.isfinite(ours.step(BATCHES[1])["grad_norm"])
    spoiler.factor = 1.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.engine.state().items())
    assert (ours.engine.skipped, ours.engine.skipped_in_row) == (1, 1)
    for trainer in (ours, theirs):
        trainer.step(BATCHES[2])
    assert (ours.engine.skipped, ours.engine.skipped_in_row) == (1, 0)
    expected = theirs.engine.state()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in expected.items())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.engine.state().items())


class Notes(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_stage_tells_and_stops_at_the_last_good_checkpoint(
    spoiler: Spoiler, ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = sft.Trainer.step

    def spoilt(self: sft.Trainer, batch: list) -> dict[str, float]:
        spoiler.factor = math.nan if self.engine.steps in (0, 3, 4) else 1.0
        return step(self, batch)

    monkeypatch.setattr(sft.Trainer, "step", spoilt)
    config = load_experiment(TINY, ["sft.max_skipped_updates=2", "sft.save_steps=1"])
    tracker = Notes()
    with pytest.raises(UserError, match=r"2 updates in a row, up to step 5, .*sft\.learning_rate"):
        sft.run(Context(config, "sft", tmp_path, {}, tracker, resume=False))
    told = [note for note in tracker.notes if "skipped" in note]
    assert [note.split(":")[0] for note in told] == ["step 1", "step 4", "step 5"]
    assert "batch: examples [" in told[0]
    counts = [row["skipped_updates"] for row in tracker.metrics if "skipped_updates" in row]
    assert counts == [1, 1, 1, 2]
    newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    assert newest.name == "step-000004"
