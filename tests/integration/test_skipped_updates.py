"""Updates with a non-finite gradient are skipped, counted and reported. Too many in a row end the stage."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.load import load_experiment
from stages import setup, sft
from stages.context import Context
from stages.distributed.ranks import Ranks
from tests.integration.test_ppo_start import Recorder
from tests.support.engine_checks import (
    ZERO_STAGES,
    check_nothing_of_a_bad_update_remains,
    check_resumed_after_a_bad_update,
)
from tests.support.runs import ROOT, TINY, start_warm


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


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("zero", ZERO_STAGES)
def test_nothing_of_a_bad_update_remains(zero: int, factor: float, ranks: Ranks) -> None:
    check_nothing_of_a_bad_update_remains(zero, factor, ranks)


@pytest.mark.parametrize("zero", ZERO_STAGES)
def test_resumed_after_a_bad_update_is_as_if_never_stopped(zero: int, ranks: Ranks) -> None:
    check_resumed_after_a_bad_update(zero, ranks)


@pytest.mark.distributed
def test_all_ranks_leave_out_an_update_that_one_of_them_spoils() -> None:
    result = start_warm([ROOT / "tests" / "support" / "engine_checks.py"], ranks=2)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("all checks passed") == 2, result.stdout


class Notes(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize("held_out", [8, 0])
def test_weights_that_overflow_are_no_result(held_out: int, ranks: Ranks, tmp_path: Path) -> None:
    """The first update makes all weights huge, the second forward overflows, the rest is skipped."""
    config = load_experiment(TINY, ["sft.eval_steps=null", f"data.sft.held_out={held_out}"])
    overflow = config.model_copy(update={"sft": config.sft.model_copy(update={"weight_decay": 1e38})})
    with pytest.raises(UserError, match=r"stage sft: 5 of 6 updates .* skipped.*sft\.weight_decay"):
        sft.run(Context(overflow, "sft", tmp_path, {}, Notes(), False, ranks))
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("held_out", "fault"),
    [(8, "loss of held-out data is not a finite number before the first step"), (0, "none of 6 updates")],
)
def test_a_base_with_nan_trains_nothing(
    held_out: int, fault: str, ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_base = setup.load_base

    def spoilt(*arguments: Any) -> Any:
        model = load_base(*arguments)
        model.get_input_embeddings().weight.data[:, 0] = math.nan
        return model

    monkeypatch.setattr(setup, "load_base", spoilt)
    config = load_experiment(TINY, ["sft.eval_steps=null", f"data.sft.held_out={held_out}"])
    with pytest.raises(UserError, match=f"stage sft: {fault}"):
        sft.run(Context(config, "sft", tmp_path, {}, Notes(), False, ranks))
    assert not (tmp_path / "adapter").exists()


def test_stage_tells_and_stops_at_the_last_good_checkpoint(
    spoiler: Spoiler, ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = sft.SftTrainer.step

    def step_with_spoiled_loss(self: sft.SftTrainer, batch: list) -> dict[str, float]:
        spoiler.factor = math.nan if self.engine.counters.steps in (0, 3, 4) else 1.0
        return step(self, batch)

    monkeypatch.setattr(sft.SftTrainer, "step", step_with_spoiled_loss)
    config = load_experiment(TINY, ["sft.max_skipped_updates=2", "sft.save_steps=1"])
    tracker = Notes()
    with pytest.raises(UserError, match=r"2 updates in a row, .* first at step 4, .*sft\.learning_rate"):
        sft.run(Context(config, "sft", tmp_path, {}, tracker, False, ranks))
    notes = [note for note in tracker.notes if "skipped" in note]
    assert [note.split(":")[0] for note in notes] == ["step 1", "step 4", "step 5"]
    assert "batch: examples [" in notes[0]
    counts = [row["skipped_updates"] for row in tracker.metrics if "skipped_updates" in row]
    assert counts == [1, 1, 1, 2]
    newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    assert newest.name == "step-000004"
