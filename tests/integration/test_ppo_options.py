"""Options of PPO: each changes what it is meant to change."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from configs.load import load_experiment
from data.storage.files import read_json_lines, write_json_lines
from stages import sft
from stages.context import Context
from stages.distributed.ranks import Ranks
from tests.integration.test_ppo_start import RECOMPUTED, Recorder
from tests.support.ppo_runs import Run, run, same_tensors, weights
from tests.support.runs import TINY, untimed

__all__ = ["run"]  # a fixture


def test_seed_of_the_stage_makes_another_run(run: Run) -> None:
    assert run().column("objective/kl") != run("ppo.seed=123", folder="other").column("objective/kl")


def test_updates_end_once_the_policy_has_moved_far(run: Run) -> None:
    assert run().column("policy/updates") == [4, 4, 4]  # 2 epochs of 2 minibatches
    # the first minibatch's ratio is 1, so the second exceeds the limit
    assert run("ppo.max_approxkl=1e-9", folder="short").column("policy/updates") == [2, 2, 2]


def test_entropy_bonus_raises_the_entropy(run: Run) -> None:
    plain, bonus = (
        ppo.column("objective/entropy") for ppo in (run(), run("ppo.entropy_coef=10", folder="b"))
    )
    assert bonus[0] == plain[0]
    assert bonus[1] > plain[1] + 0.01  # both use the same noise; later samples differ


def test_ptx_holds_the_loss_on_demonstrations(
    run: Run, ranks: Ranks, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same PPO steps after SFT, without PPO-ptx and with it. Every batch holds all demonstrations."""
    data = ("data.sft.limit=16", "data.sft.held_out=0")
    options_of_sft = ("sft.learning_rate=1e-2", "sft.max_steps=40", "sft.epochs=99", "sft.batch_size=16")
    config = load_experiment(TINY, [*data, *options_of_sft])
    monkeypatch.setenv("LOCAL_RANK", "0")
    sft.run(Context(config, "sft", tmp_path / "sft", {}, Recorder(), False, ranks))
    monkeypatch.setitem(adapters, "sft", tmp_path / "sft" / "adapter")

    options = (*data, "ppo.iterations=8", "ppo.kl_coef=0", "ppo.ptx_batch_size=16")
    idle = run("ppo.ptx_coef=1e-12", *options, folder="idle").column("loss/ptx_avg")
    mixed = run("ppo.ptx_coef=1", *options, folder="mixed").column("loss/ptx_avg")
    assert idle[-1] > idle[0] + 0.05, "plain PPO lets it rise"
    assert mixed[-1] < mixed[0] + 0.01, "PPO-ptx does not"


@pytest.mark.parametrize("option", ["whiten_rewards=true", "whiten_advantages=false", "dual_clip=1.0001"])
def test_option_changes_the_update_and_not_the_samples(run: Run, option: str) -> None:
    plain, other = run(), run(f"ppo.{option}", folder="other")
    assert other.column("objective/scores")[0] == plain.column("objective/scores")[0]
    assert not same_tensors(weights(other.tensors(1), "policy"), weights(plain.tensors(1), "policy"))


def test_resumed_run_goes_on_with_what_it_remembered(run: Run, tmp_path: Path) -> None:
    options = (
        *("ppo.kl_target=6", "ppo.kl_horizon=40", "ppo.normalize_rewards=true"),
        *("ppo.ptx_coef=0.5", "ppo.critic_warmup=1", "ppo.entropy_coef=0.01"),
    )
    uninterrupted = run(*options)
    for step in (2, 3):  # as after a kill during the second iteration
        checkpoint = tmp_path / "ppo" / "checkpoints" / f"step-{step:06d}"
        checkpoint.rename(tmp_path / f"lost-{step}")
    resumed = run(*options, resume=True)
    assert list(map(untimed, uninterrupted.rows[1:])) == list(map(untimed, resumed.rows))
    expected = load_file(tmp_path / "lost-3" / "tensors.safetensors")
    expected = {
        name.removeprefix("engine/"): tensor
        for name, tensor in expected.items()
        if name.startswith("engine/")
    }
    assert same_tensors(resumed.tensors(3), expected)


def test_samples_are_warped_and_so_are_their_log_probabilities(run: Run) -> None:
    warped = ("ppo.rollout.temperature=0.7", "ppo.rollout.top_k=20", "ppo.rollout.top_p=0.9")
    options = (RECOMPUTED, *warped)
    plain, ran = run("ppo.minibatches=1", "ppo.epochs=1"), run(*options, folder="warped")
    first, colder = ran.rows[0], run(RECOMPUTED, "ppo.rollout.temperature=0.7", folder="colder").rows[0]
    assert first["objective/kl"] > 0.0, "the reference is whole: truncation alone is a distance"
    assert colder["objective/kl"] == 0.0 and "rollout/support_size" not in colder
    assert 1 < first["rollout/support_size"] <= 20
    assert max(ran.column("rollout/logprob_difference")) < 1e-5
    assert first["objective/entropy"] < plain.rows[0]["objective/entropy"] - 0.5
    assert first["objective/entropy"] < math.log(20)
    single_update = run(*options, "ppo.minibatches=1", "ppo.epochs=1", folder="alone")
    assert single_update.rows[0]["val/ratio"] == 1.0


def test_a_held_out_prompt_that_repeats_is_answered_once(run: Run, tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {number}?"} for number in range(12)] * 2
    write_json_lines(tmp_path / "prompts.jsonl", rows)
    ran = run("ppo.iterations=1", f"data.ppo.path={tmp_path}/prompts.jsonl", "data.ppo.held_out=3")
    answered = [row["prompt"] for row in read_json_lines(ran.folder / "evaluation.jsonl")]
    assert len(answered) == len(set(answered)) == ran.rows[-1]["eval/n"] == 3


def test_time_is_told_apart(run: Run) -> None:
    for row in run().rows:
        assert all(row[f"time/{part}"] > 0 for part in ("rollout", "score", "update"))
        assert 0 < row["perf/matmul_share"] < 1
        seconds = sum(row[f"time/{part}"] for part in ("rollout", "score", "update"))
        assert row["perf/tokens_per_second"] * seconds == pytest.approx(
            round(row["perf/tokens_per_second"] * seconds)
        )
        assert row["perf/tokens_per_second"] * seconds > 8 * row["completions/mean_length"], (
            "prompts count, too"
        )
