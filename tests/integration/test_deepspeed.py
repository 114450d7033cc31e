"""ZeRO stages and numbers of ranks change how a stage is computed, not what it computes.

Each stage starts from the same upstream adapters in all runs, and every figure that it logs must equal that
of ZeRO 0 on one rank. The tolerance only covers rounding: ranks sum in another order, in fp32 (a relative
1e-7 for each sum); Adam divides by the root of its second moment, which amplifies the rounding of gradients
near zero; and figures that are small differences of large numbers keep the absolute error of these numbers.
Measured: within 4e-5 of a figure, or 1e-6 if it is small. A rank that misses a batch, or a gradient scaled by
the number of ranks, is off by far more.
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
COMBINATIONS = [(2, 2), (3, 2)]  # ZeRO 0 on two ranks begins the run that changes ZeRO stages
RELATIVE, ABSOLUTE = 1e-4, 1e-5
# Options that change the optimizer, restore parameters after training, or act on one rank only.
OPTIONS = (
    "ppo.critic_warmup=1",
    "ppo.judge=warmth",
    *("ppo.ema_decay=0.9", "ppo.use_ema=true", "ppo.max_kl=1000"),  # a KL that is never reached
    "sft.use_best=true",
    "sft.save_steps=2",
    "sft.eval_steps=2",
)

WITHHELD = ("stage3_param_persistence_threshold", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size")

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The shipped JSON of a ZeRO stage. At stage 3, DeepSpeed keeps no gathered parameter after its use."""
    folder = tmp_path_factory.mktemp("deepspeed")
    for zero in (0, 2, 3):
        options = json.loads((ROOT / "configs" / "deepspeed" / f"zero{zero}.json").read_text())
        if zero == 3:
            options["zero_optimization"] |= dict.fromkeys(WITHHELD, 0)
        (folder / f"zero{zero}.json").write_text(json.dumps(options))
    return lambda zero: folder / f"zero{zero}.json"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, settings: Callable[[int], Path]) -> Path:
    """ZeRO 0 on one rank. Each stage runs on the adapters of the stages before it."""
    folder = tmp_path_factory.mktemp("reference")
    result = start_warm([RECIPES, folder, folder, settings(0), "go", *OPTIONS], ranks=1)
    assert result.returncode == 0, result.stdout
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
            result = start_warm([RECIPES, reference, folder, settings(zero), "go", *OPTIONS], ranks)
            assert result.returncode == 0, result.stdout
            runs[zero, ranks] = folder
        return runs[zero, ranks]

    return run


def close_to(figures: dict[str, float]) -> Any:
    return pytest.approx(figures, rel=RELATIVE, abs=ABSOLUTE)


def assert_same_figures(folder: Path, reference: Path, stages: Sequence[Stage] = STAGES) -> None:
    """All figures of the stages equal the reference's to rounding; sampled answers are equal."""
    for stage in stages:
        actual, expected = rows(folder / stage / "metrics.jsonl"), rows(reference / stage / "metrics.jsonl")
        assert len(actual) == len(expected)
        for row, expected_row in zip(actual, expected, strict=True):
            assert row == close_to(expected_row), f"{stage}, step {row['step']}"
        expected_metrics = metrics(reference / stage / "manifest.json")
        assert metrics(folder / stage / "manifest.json") == close_to(expected_metrics)
    texts = ("base", "sft", "ppo")
    answers = [[row[name] for name in texts] for row in rows(folder / "ppo" / "evaluation.jsonl")]
    assert answers == [[row[name] for name in texts] for row in rows(reference / "ppo" / "evaluation.jsonl")]


@pytest.mark.parametrize(("zero", "ranks"), COMBINATIONS)
def test_same_figures(zero: int, ranks: int, run_of: Callable[[int, int], Path], reference: Path) -> None:
    assert_same_figures(run_of(zero, ranks), reference)


def test_ranks_share_the_values_that_a_single_minibatch_gives(
    reference: Path, settings: Callable[[int], Path], tmp_path: Path
) -> None:
    """Each rank has the values of its part from the first update. All ranks whiten advantages together."""
    for zero, ranks in ((0, 1), (3, 2)):
        options = (*OPTIONS, "ppo.minibatches=1")
        result = start_warm(
            [RECIPES, reference, tmp_path / str(ranks), settings(zero), "ppo", *options], ranks
        )
        assert result.returncode == 0, result.stdout
    assert_same_figures(tmp_path / "2", tmp_path / "1", ["ppo"])


@pytest.mark.parametrize("stage", STAGES)
def test_zero_3_shards_the_4_bit_base(stage: str, run_of: Callable[[int, int], Path]) -> None:
    """Each rank keeps half of every 4-bit weight, and frees the other half after use."""
    for rank in range(2):
        sharded, unsharded = (
            json.loads((run_of(zero, 2) / stage / f"rank{rank}.json").read_text()) for zero in (3, 2)
        )
        weights = sharded["weights"]
        assert len(weights) == 14  # seven linear layers in each of two blocks
        for name, sizes in weights.items():
            assert sizes["shard"] == sizes["whole"] / 2, name
            assert sizes["held"] == 0, f"{name} stays whole"
        for name, sizes in unsharded["weights"].items():
            assert sizes["held"] == sizes["whole"], f"ZeRO 2 keeps {name}"
        whole_sizes = [
            {name: sizes["whole"] for name, sizes in record["weights"].items()}
            for record in (sharded, unsharded)
        ]
        assert whole_sizes[0] == whole_sizes[1]
        # Measured between forward and backward: layers that keep gathered weights would hold all of them
        # then.
        assert sharded["kept"] < 0.6 * sum(whole_sizes[0].values()) < unsharded["kept"]


@pytest.mark.parametrize("zero", [3])
def test_stopped_and_resumed_is_as_if_never_stopped(
    zero: int,
    run_of: Callable[[int, int], Path],
    reference: Path,
    settings: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    """On two ranks: a checkpoint holds whole parameters, and each rank loads its shard."""
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
    """Two ranks at ZeRO 0 begin the run, one rank at ZeRO 2 continues it, two ranks at ZeRO 3 end it.

    Global batches, sampling noise, parameters and Adam's moments are kept: every figure equals that of a run
    that one rank made without a stop. Moments that are lost at a resume would exceed the tolerance by far.
    """
    attempts = [(0, 2, "stop"), (2, 1, "stop-again"), (3, 2, "resume")]
    for zero, ranks, mode in attempts:
        saved = [f"{stage}.save_steps=1" for stage in STAGES]
        result = start_warm([RECIPES, reference, tmp_path, settings(zero), mode, *OPTIONS, *saved], ranks)
        assert result.returncode == (0 if mode == "resume" else -signal.SIGKILL), result.stdout
    begun = {stage: (tmp_path / stage / "begun").read_text().split() for stage in STAGES}
    assert begun == {"sft": ["0", "2", "4"], "rm": ["0", "2", "3"], "ppo": ["0", "1", "2"]}
    assert_same_figures(tmp_path, reference)
    actual, expected = (rows(folder / "ppo" / "samples.jsonl") for folder in (tmp_path, reference))
    assert [row["response"] for row in actual] == [row["response"] for row in expected]
