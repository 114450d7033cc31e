"""ZeRO stages and numbers of ranks change how a stage is computed, not what it computes.

Each stage starts from the same upstream adapters everywhere, and every figure that it logs must be that of
ZeRO 0 on one rank. The tolerance is for rounding alone: ranks sum in another order, in fp32 (a relative
1e-7 for each sum); Adam divides by the root of its second moment, which blows up the rounding of gradients
that are nearly zero; and figures that are small differences of large numbers keep the absolute error of
those. Measured: within 4e-5 of a figure, or 1e-6 where it is small. A rank that missed a batch, or a gradient
scaled by the number of ranks, is off by far more.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.schema import STAGES, Stage
from tests.support.runs import ROOT, assert_same_result, files, metrics, rows, start_warm

RECIPES = ROOT / "tests" / "support" / "recipes.py"
COMBINATIONS = [(2, 2), (3, 2)]  # ZeRO 0 on two ranks begins the run that goes on elsewhere
RELATIVE, ABSOLUTE = 1e-4, 1e-5
# What reaches into the optimizer, puts parameters back when training is over, or is asked on one rank alone.
OPTIONS = (
    "ppo.critic_warmup=1",
    "ppo.judge=warmth",
    *("ppo.ema_decay=0.9", "ppo.use_ema=true", "ppo.max_kl=1000"),  # which is never reached
    "sft.use_best=true",
    "sft.save_steps=2",
    "sft.eval_steps=2",
)

WITHHELD = ("stage3_param_persistence_threshold", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size")

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The shipped JSON of a ZeRO stage; at stage 3, DeepSpeed keeps no parameter whole for its next use."""
    folder = tmp_path_factory.mktemp("deepspeed")
    for zero in (0, 2, 3):
        options = json.loads((ROOT / "configs" / "deepspeed" / f"zero{zero}.json").read_text())
        if zero == 3:
            options["zero_optimization"] |= dict.fromkeys(WITHHELD, 0)
        (folder / f"zero{zero}.json").write_text(json.dumps(options))
    return lambda zero: folder / f"zero{zero}.json"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, settings: Callable[[int], Path]) -> Path:
    """ZeRO 0 on one rank; each stage on the adapters of the one before."""
    folder = tmp_path_factory.mktemp("reference")
    done = start_warm([RECIPES, folder, folder, settings(0), "go", *OPTIONS], ranks=1)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def run_of(
    reference: Path, tmp_path_factory: pytest.TempPathFactory, settings: Callable[[int], Path]
) -> Callable[[int, int], Path]:
    """run_of(zero, ranks): the three stages on the reference's adapters, computed once."""
    runs: dict[tuple[int, int], Path] = {}

    def run(zero: int, ranks: int) -> Path:
        if (zero, ranks) not in runs:
            folder = tmp_path_factory.mktemp(f"zero{zero}-ranks{ranks}")
            done = start_warm([RECIPES, reference, folder, settings(zero), "go", *OPTIONS], ranks)
            assert done.returncode == 0, done.stdout
            runs[zero, ranks] = folder
        return runs[zero, ranks]

    return run


def close_to(figures: dict[str, float]) -> Any:
    return pytest.approx(figures, rel=RELATIVE, abs=ABSOLUTE)


def assert_same_figures(folder: Path, reference: Path, stages: Sequence[Stage] = STAGES) -> None:
    """All figures of the stages are the reference's to rounding, and so are the answers that were sampled."""
    for stage in stages:
        ours, theirs = rows(folder / stage / "metrics.jsonl"), rows(reference / stage / "metrics.jsonl")
        assert len(ours) == len(theirs)
        for row, expected in zip(ours, theirs, strict=True):
            assert row == close_to(expected), f"{stage}, step {row['step']}"
        expected = metrics(reference / stage / "manifest.json")
        assert metrics(folder / stage / "manifest.json") == close_to(expected)
    texts = ("base", "sft", "ppo")
    answers = [[row[name] for name in texts] for row in rows(folder / "ppo" / "evaluation.jsonl")]
    assert answers == [[row[name] for name in texts] for row in rows(reference / "ppo" / "evaluation.jsonl")]


@pytest.mark.parametrize(("zero", "ranks"), COMBINATIONS)
def test_same_figures(zero: int, ranks: int, run_of: Callable[[int, int], Path], reference: Path) -> None:
    assert_same_figures(run_of(zero, ranks), reference)


def test_ranks_share_the_values_that_a_single_minibatch_gives(
    reference: Path, settings: Callable[[int], Path], tmp_path: Path
) -> None:
    """Each has those of its part from the critic's first update; advantages are whitened over all."""
    for zero, ranks in ((0, 1), (3, 2)):
        options = (*OPTIONS, "ppo.minibatches=1")
        done = start_warm([RECIPES, reference, tmp_path / str(ranks), settings(zero), "ppo", *options], ranks)
        assert done.returncode == 0, done.stdout
    assert_same_figures(tmp_path / "2", tmp_path / "1", ["ppo"])


@pytest.mark.parametrize("stage", STAGES)
def test_zero_3_shards_the_4_bit_base(stage: str, run_of: Callable[[int, int], Path]) -> None:
    """Each rank keeps half of every 4-bit weight, and gives back the other half after use."""
    for rank in range(2):
        sharded, each_whole = (
            json.loads((run_of(zero, 2) / stage / f"rank{rank}.json").read_text()) for zero in (3, 2)
        )
        weights = sharded["weights"]
        assert len(weights) == 14  # seven linear layers in each of two blocks
        for name, numbers in weights.items():
            assert numbers["shard"] == numbers["whole"] / 2, name
            assert numbers["held"] == 0, f"{name} stays whole"
        for name, numbers in each_whole["weights"].items():
            assert numbers["held"] == numbers["whole"], f"ZeRO 2 keeps {name}"
        wholes = [
            {name: each["whole"] for name, each in of["weights"].items()} for of in (sharded, each_whole)
        ]
        assert wholes[0] == wholes[1]
        # Between forward and backward, when layers that kept what was gathered would hold all of it.
        assert sharded["kept"] < 0.6 * sum(wholes[0].values()) < each_whole["kept"]


@pytest.mark.parametrize("zero", [3])
def test_stopped_and_resumed_is_as_if_never_stopped(
    zero: int,
    run_of: Callable[[int, int], Path],
    reference: Path,
    settings: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    """On two ranks: what was sharded among them is saved whole and given back to each."""
    command = [RECIPES, reference, tmp_path, settings(zero)]
    stopped = start_warm([*command, "stop", *OPTIONS], ranks=2)
    assert stopped.returncode == -signal.SIGKILL, stopped.stdout
    for stage, steps in (("sft", [2]), ("rm", [2]), ("ppo", [1])):
        checkpoints = sorted(path.name for path in (tmp_path / stage / "checkpoints").glob("step-*"))
        assert checkpoints == [f"step-{step:06d}" for step in steps]
        assert not (tmp_path / stage / "adapter").exists()

    resumed = start_warm([*command, "resume", *OPTIONS], ranks=2)
    assert resumed.returncode == 0, resumed.stdout
    for stage in STAGES:
        assert_same_result(tmp_path / stage, run_of(zero, 2) / stage)
    assert "adapter_model.safetensors" in files(tmp_path / "ppo" / "adapter")


def test_a_run_goes_on_with_other_ranks_and_another_zero_stage(
    reference: Path, settings: Callable[[int], Path], tmp_path: Path
) -> None:
    """Begun by two ranks at ZeRO 0, continued by one at ZeRO 2, ended by two at ZeRO 3.

    Global batches, sampling noise, parameters and Adam's moments go along: every figure is that of a run that
    one rank made without a stop. Moments lost at a resume are off by far more than the tolerance.
    """
    attempts = [(0, 2, "stop"), (2, 1, "stop-again"), (3, 2, "resume")]
    for zero, ranks, mode in attempts:
        saved = [f"{stage}.save_steps=1" for stage in STAGES]
        done = start_warm([RECIPES, reference, tmp_path, settings(zero), mode, *OPTIONS, *saved], ranks)
        assert done.returncode == (0 if mode == "resume" else -signal.SIGKILL), done.stdout
    begun = {stage: (tmp_path / stage / "begun").read_text().split() for stage in STAGES}
    assert begun == {"sft": ["0", "2", "4"], "rm": ["0", "2", "3"], "ppo": ["0", "1", "2"]}
    assert_same_figures(tmp_path, reference)
    ours, theirs = (rows(folder / "ppo" / "samples.jsonl") for folder in (tmp_path, reference))
    assert [row["response"] for row in ours] == [row["response"] for row in theirs]
