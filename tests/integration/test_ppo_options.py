"""What the options of PPO do to a run: each is seen to change what it says it changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.errors import UserError
from configs.load import load_experiment
from stages import ppo, sft
from stages.context import Context
from stages.distributed.ranks import Ranks
from stages.rl import experience, update
from tests.integration.test_ppo_start import RECOMPUTED, Recorder
from tests.support.runs import TINY, checkpoint_tensors, checkpoint_values, untimed
from tests.unit.stages.feedback.test_rewards import Service, service

__all__ = ["service"]  # a fixture

SHORT = ("ppo.iterations=3", "ppo.eval_steps=null", "data.ppo.held_out=0", "ppo.save_steps=1")
Run = Callable[..., "Ran"]


class Ran:
    """A PPO run of the tiny experiment: its logged rows and its checkpoints."""

    def __init__(self, folder: Path, rows: list[Mapping[str, float]]) -> None:
        self.folder, self.rows = folder, rows

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]

    def tensors(self, step: int) -> dict[str, torch.Tensor]:
        return checkpoint_tensors(self.folder, step)

    def values(self, step: int, part: str) -> dict[str, Any]:
        return checkpoint_values(self.folder, step, part)


@pytest.fixture
def run(adapters: dict[str, Path], ranks: Ranks, tmp_path: Path) -> Run:
    """run("ppo.key=value", ...) trains three iterations and returns what came of it."""

    def start(*overrides: str, folder: str = "ppo", resume: bool = False) -> Ran:
        config = load_experiment(TINY, [*SHORT, "ppo.keep_checkpoints=9", *overrides])
        recorder = Recorder()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", "0")
            patch.setenv("WORLD_SIZE", "1")
            patch.setenv("LOCAL_RANK", "0")
            ppo.run(Context(config, "ppo", tmp_path / folder, adapters, recorder, resume, ranks))
        return Ran(tmp_path / folder, recorder.metrics)

    return start


def weights(tensors: Mapping[str, torch.Tensor], role: str) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors.items() if f".{role}." in n and n.startswith("causal.")}


def same(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    assert ours and ours.keys() == theirs.keys()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_adaptive_kl_coefficient_moves_and_is_remembered(run: Run) -> None:
    ran = run("ppo.kl_target=6", "ppo.kl_horizon=40")
    first, second, third = ran.column("objective/kl_coef")
    # KL 0 before the first update: 0.05 * (1 - 0.2 * 8 / 40)
    assert first == 0.05 and second == pytest.approx(0.05 * 0.96)
    assert third != second
    assert ran.values(1, "kl")["coef"] == second and ran.values(2, "kl")["coef"] == third


@pytest.mark.parametrize(
    "options",
    [
        ("ppo.whiten_rewards=true", "ppo.clip_range_value=0.01"),
        ("ppo.rollout.top_k=20", "base.gradient_checkpointing=true"),
    ],
)
def test_one_forward_of_the_critic_scores_and_trains(
    run: Run, options: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one minibatch, old values come of the first update: those that a forward before it would give."""
    asked: list[str] = []
    state_values, init = experience.state_values, experience.ExperienceCollector.__init__

    def watched(model: Any, role: str, batch: Any) -> torch.Tensor:
        asked.append(role)
        return state_values(model, role, batch)

    def separate(self: experience.ExperienceCollector, *arguments: Any) -> None:
        init(self, *arguments)
        self.defers_values = False

    monkeypatch.setattr(experience, "state_values", watched)
    once = run("ppo.minibatches=1", *options)
    assert not asked
    monkeypatch.setattr(experience.ExperienceCollector, "__init__", separate)
    twice = run("ppo.minibatches=1", *options, folder="twice")
    assert set(asked) == {"critic"}
    assert list(map(untimed, once.rows)) == list(map(untimed, twice.rows))
    assert same(once.tensors(3), twice.tensors(3))
    variances = once.column("val/explained_variance")
    assert all(map(math.isfinite, variances)) and len(set(variances)) == 3


def test_fixed_kl_coefficient_stays(run: Run) -> None:
    assert run("ppo.kl_coef=0.1").column("objective/kl_coef") == [0.1] * 3


def test_kl_in_the_loss_is_out_of_the_reward(run: Run) -> None:
    ran = run("ppo.kl_in=loss", "ppo.kl_estimator=k3")
    assert ran.column("objective/non_score_reward") == [0.0] * 3
    kl = ran.column("loss/kl_avg")
    assert min(kl) > 0, "from the second minibatch on the policy has moved, and k3 is never negative"
    held = run("ppo.kl_in=loss", "ppo.kl_estimator=k3", "ppo.kl_coef=100", folder="held")
    assert held.column("loss/kl_avg")[-1] < 0.5 * kl[-1], "a large coefficient holds the policy back"


def test_critic_warmup_trains_the_critic_alone(run: Run, adapters: dict[str, Path]) -> None:
    ran = run("ppo.critic_warmup=2")
    start = load_file(adapters["sft"] / "adapter_model.safetensors")
    policy = {n: t for step in (1, 2) for n, t in weights(ran.tensors(step), "policy").items()}
    found = {n.replace("causal.", "base_model.model.").replace(".policy", ""): t for n, t in policy.items()}
    assert same(found, start)
    assert not same(weights(ran.tensors(1), "critic"), weights(ran.tensors(2), "critic"))
    assert not same(weights(ran.tensors(2), "policy"), weights(ran.tensors(3), "policy"))
    assert ran.column("val/ratio")[:2] == pytest.approx([1.0, 1.0], abs=1e-5)


def test_policy_starts_as_if_the_critics_warmup_had_not_been(run: Run) -> None:
    """Adam's first step moves every parameter by the learning rate, however long the critic was warmed up."""
    alone = ("ppo.minibatches=1", "ppo.epochs=1", "ppo.max_grad_norm=0", "ppo.weight_decay=0.01")
    ran = run(*alone, "ppo.critic_warmup=2", "ppo.ptx_coef=1")
    before, after = (weights(ran.tensors(step), "policy") for step in (2, 3))
    rate = ran.column("learning_rate")
    assert rate[:2] == [0.0, 0.0] and rate[2] > 0 and "loss/ptx_avg" not in ran.rows[1]
    assert same(weights(ran.tensors(1), "policy"), before), "demonstrations leave it alone, too"
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert moved == pytest.approx(rate[2], rel=0.02)


def test_critic_has_a_learning_rate_of_its_own(run: Run) -> None:
    alone = ("ppo.minibatches=1", "ppo.epochs=1", "ppo.max_grad_norm=0")
    plain, still = run(*alone), run(*alone, "ppo.critic_learning_rate=1e-12", folder="still")
    assert same(weights(plain.tensors(1), "policy"), weights(still.tensors(1), "policy"))
    moved = {
        name: float((tensor - still.tensors(1)[name]).abs().max())
        for name, tensor in weights(plain.tensors(1), "critic").items()
    }
    assert max(moved.values()) == pytest.approx(plain.rows[0]["learning_rate"], rel=0.02)


def test_values_are_clipped_about_the_old_ones(run: Run) -> None:
    plain, tight = run("ppo.clip_range_value=null"), run("ppo.clip_range_value=1e-6", folder="tight")
    assert plain.column("val/clipfrac_avg") == [0.0] * 3 and tight.column("val/clipfrac_avg")[0] > 0
    assert not same(weights(plain.tensors(1), "critic"), weights(tight.tensors(1), "critic"))


def test_seed_of_the_stage_makes_another_run(run: Run) -> None:
    assert run().column("objective/kl") != run("ppo.seed=123", folder="other").column("objective/kl")


def test_k3_in_the_reward_is_never_a_bonus(run: Run) -> None:
    k1, k3 = run(), run("ppo.kl_estimator=k3", folder="k3")
    assert max(k3.column("objective/non_score_reward")[1:]) < 0
    assert k1.column("objective/non_score_reward")[1] != k3.column("objective/non_score_reward")[1]


def test_coefficient_in_the_loss_is_the_one_that_is_logged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    loss = update.PpoUpdate._policy_loss

    def watched(self: update.PpoUpdate, *arguments: Any) -> Any:
        seen.append(self.kl.coef)
        return loss(self, *arguments)

    monkeypatch.setattr(update.PpoUpdate, "_policy_loss", watched)
    options = ("ppo.kl_in=loss", "ppo.kl_estimator=k3", "ppo.kl_target=6", "ppo.kl_horizon=40")
    ran = run(*options, "ppo.critic_warmup=1")
    coefficients = ran.column("objective/kl_coef")
    assert coefficients == list(dict.fromkeys(seen))[:1] + list(dict.fromkeys(seen))
    assert coefficients[0] == coefficients[1] != coefficients[2], (
        "it does not adapt to a policy that the critic's warm-up holds still"
    )


def test_a_reward_that_is_no_number_skips_the_update_and_is_told(run: Run) -> None:
    """One of eight rewards, which whitening spreads over all of them."""
    broken = "ppo.rewards=[{source: rm}, {source: 'tests.integration.test_ppo_options:broken'}]"
    with pytest.raises(UserError, match="3 updates in a row, up to step 3, the first at step 1"):
        run(broken, "ppo.max_skipped_updates=3")
    ran = run(broken, folder="on")
    assert ran.column("skipped_updates") == [1, 2, 3], "the rest of a rollout's updates is left out"
    assert ran.column("policy/updates") == [1] * 3
    assert same(weights(ran.tensors(1), "policy"), weights(ran.tensors(3), "policy"))


def test_an_endpoints_key_is_not_written_down(
    run: Run, service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SCORER_KEY", "planted-secret")
    service.answer = {"rewards": [0.5] * 8}
    term = f"{{source: '{service.url}', key_variable: SCORER_KEY, name: reward_model}}"
    ran = run(f"ppo.rewards=[{{source: rm}}, {term}]")
    assert set(service.keys) == {"Bearer planted-secret"} and ran.rows[0]["rewards/reward_model/mean"] == 0.5
    written = [path for path in ran.folder.rglob("*") if path.is_file()]
    assert written and not [path for path in written if b"planted-secret" in path.read_bytes()]


def broken(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A reward function for the test above."""
    return [math.nan, *[0.0] * (len(prompts) - 1)]


def test_updates_end_once_the_policy_has_moved_far(run: Run) -> None:
    assert run().column("policy/updates") == [4, 4, 4]  # 2 epochs of 2 minibatches
    # the first minibatch's ratio is 1, so it is the second that is found too far
    assert run("ppo.max_approxkl=1e-9", folder="short").column("policy/updates") == [2, 2, 2]


def test_entropy_bonus_raises_the_entropy(run: Run) -> None:
    plain, bonus = (
        ran.column("objective/entropy") for ran in (run(), run("ppo.entropy_coef=10", folder="b"))
    )
    assert bonus[0] == plain[0]
    assert bonus[1] > plain[1] + 0.01  # estimates over the same noise; later the samples have gone apart


def test_ptx_holds_the_loss_on_demonstrations(
    run: Run, ranks: Ranks, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same steps of PPO after SFT, without it and with it. Every batch is all demonstrations here."""
    data = ("data.sft.limit=16", "data.sft.held_out=0")
    trained = ("sft.learning_rate=1e-2", "sft.max_steps=40", "sft.epochs=99", "sft.batch_size=16")
    config = load_experiment(TINY, [*data, *trained])
    monkeypatch.setenv("LOCAL_RANK", "0")
    sft.run(Context(config, "sft", tmp_path / "sft", {}, Recorder(), False, ranks))
    monkeypatch.setitem(adapters, "sft", tmp_path / "sft" / "adapter")

    options = (*data, "ppo.iterations=8", "ppo.kl_coef=0", "ppo.ptx_batch_size=16")
    idle = run("ppo.ptx_coef=1e-12", *options, folder="idle").column("loss/ptx_avg")
    mixed = run("ppo.ptx_coef=1", *options, folder="mixed").column("loss/ptx_avg")
    assert idle[-1] > idle[0] + 0.05, "plain PPO lets it rise"
    assert mixed[-1] < mixed[0] + 0.01, "PPO-ptx does not"


def test_terms_of_the_reward_are_logged_apart_and_added_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    function = "{source: 'tests.integration.test_ppo_options:lengths', weight: 0.5}"
    ran = run(f"ppo.rewards=[{{source: rm, weight: 2}}, {function}]", "ppo.missing_eos_penalty=null")
    for row in ran.rows:
        expected = 2 * row["rewards/rm/mean"] + 0.5 * row["rewards/lengths/mean"]
        assert row["objective/scores"] == pytest.approx(expected, rel=1e-5)
        assert row["rewards/lengths/mean"] > 0


def lengths(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A reward function for the test above."""
    assert len(prompts) == len(completions)
    return [1.0 + len(text) for text in completions]


def test_length_penalty_lowers_scores_by_length(run: Run) -> None:
    plain, penalised = run().rows[0], run("ppo.length_penalty=0.5", folder="penalised").rows[0]
    expected = plain["objective/scores"] - 0.5 * plain["completions/mean_length"]
    assert penalised["objective/scores"] == pytest.approx(expected, rel=1e-5)


def test_normalised_rewards_are_remembered(run: Run) -> None:
    ran = run("ppo.normalize_rewards=true", "ppo.missing_eos_penalty=null")
    assert ran.column("objective/scores")[0] == pytest.approx(0.0, abs=1e-5)
    assert [ran.values(step, "rewards")["count"] for step in (1, 2, 3)] == [8, 16, 24]


@pytest.mark.parametrize("option", ["whiten_rewards=true", "whiten_advantages=false", "dual_clip=1.0001"])
def test_option_changes_the_update_and_not_the_samples(run: Run, option: str) -> None:
    plain, other = run(), run(f"ppo.{option}", folder="other")
    assert other.column("objective/scores")[0] == plain.column("objective/scores")[0]
    assert not same(weights(other.tensors(1), "policy"), weights(plain.tensors(1), "policy"))


def test_resumed_run_goes_on_with_what_it_remembered(run: Run, tmp_path: Path) -> None:
    options = (
        *("ppo.kl_target=6", "ppo.kl_horizon=40", "ppo.normalize_rewards=true"),
        *("ppo.ptx_coef=0.5", "ppo.critic_warmup=1", "ppo.entropy_coef=0.01"),
    )
    whole = run(*options)
    for step in (2, 3):  # what a kill during the second iteration would have left
        checkpoint = tmp_path / "ppo" / "checkpoints" / f"step-{step:06d}"
        checkpoint.rename(tmp_path / f"lost-{step}")
    resumed = run(*options, resume=True)
    assert list(map(untimed, whole.rows[1:])) == list(map(untimed, resumed.rows))
    lost = load_file(tmp_path / "lost-3" / "tensors.safetensors")
    lost = {name.removeprefix("engine/"): t for name, t in lost.items() if name.startswith("engine/")}
    assert same(resumed.tensors(3), lost)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_kl_above_the_limit_ends_the_run_with_the_last_good_policy(
    run: Run, adapters: dict[str, Path]
) -> None:
    """The first update moves the policy off KL 0, so the second rollout is above a limit of nearly 0."""
    options = ("ppo.max_kl=1e-9", "data.ppo.held_out=8", RECOMPUTED)  # else KL 0 is so to rounding
    ran = run(*options)
    trained = [row for row in ran.rows if "objective/kl" in row]
    assert len(trained) == 2 and "loss/policy_avg" not in trained[1], "the second one is not trained on"
    assert same(adapter(ran.folder / "adapter"), adapter(adapters["sft"]))
    assert "not within ppo.max_kl" in ran.values(2, "loop")["stopped"]
    assert ran.rows[-1]["eval/kl"] == 0.0, "what is judged is the policy that is kept"
    (ran.folder / "adapter" / "adapter_model.safetensors").unlink()
    again = run(*options, resume=True)
    assert not again.rows, "a run that was stopped does not go on when it is resumed"
    assert same(adapter(again.folder / "adapter"), adapter(adapters["sft"]))


def test_average_goes_back_with_the_policy(run: Run, adapters: dict[str, Path]) -> None:
    ran = run("ppo.max_kl=1e-9", "ppo.ema_decay=0.5", "ppo.use_ema=true", "ppo.seed=2", RECOMPUTED)
    assert len(ran.column("objective/kl")) == 2, "the policy and its average have moved before they go back"
    assert same(adapter(ran.folder / "adapter"), adapter(adapters["sft"]))


def test_kl_within_the_limit_changes_nothing(run: Run) -> None:
    limited, free = run("ppo.max_kl=1e9"), run(folder="free")
    assert same(adapter(limited.folder / "adapter"), adapter(free.folder / "adapter"))


def test_average_of_the_policy_by_hand(run: Run) -> None:
    ran = run("ppo.ema_decay=0.75")
    policies = [weights(ran.tensors(step), "policy") for step in (1, 2, 3)]
    average = adapter(ran.folder / "adapter-ema")
    for name, first in policies[0].items():
        plain = name.replace("causal.", "base_model.model.").replace(".policy", "")
        expected = 0.75 * (0.75 * first + 0.25 * policies[1][name]) + 0.25 * policies[2][name]
        assert torch.allclose(average[plain], expected, atol=1e-6), name
    chosen = run("ppo.ema_decay=0.75", "ppo.use_ema=true", folder="chosen")
    assert same(adapter(chosen.folder / "adapter"), average)
    assert same(adapter(chosen.folder / "adapter-last"), adapter(ran.folder / "adapter"))


def test_samples_are_warped_and_so_are_their_log_probabilities(run: Run) -> None:
    warped = ("ppo.rollout.temperature=0.7", "ppo.rollout.top_k=20", "ppo.rollout.top_p=0.9")
    options = (RECOMPUTED, *warped)
    plain, ran = run("ppo.minibatches=1", "ppo.epochs=1"), run(*options, folder="warped")
    first = ran.rows[0]
    assert first["objective/kl"] == 0.0
    assert max(ran.column("rollout/logprob_difference")) < 1e-5
    assert first["objective/entropy"] < plain.rows[0]["objective/entropy"] - 0.5
    assert first["objective/entropy"] < math.log(20)
    alone = run(*options, "ppo.minibatches=1", "ppo.epochs=1", folder="alone")
    assert alone.rows[0]["val/ratio"] == 1.0


def test_shared_critic_is_a_head_on_the_policy(run: Run, adapters: dict[str, Path]) -> None:
    ran = run("ppo.critic=shared")
    head = load_file(adapters["rm"] / "head.safetensors")
    names = {name for name in ran.tensors(3) if not name.startswith("exp_avg")}
    assert {name for name in names if "critic" in name} == {"heads.critic.weight", "heads.critic.bias"}
    assert not torch.equal(ran.tensors(1)["heads.critic.weight"], head["weight"])
    assert not same(weights(ran.tensors(1), "policy"), weights(ran.tensors(2), "policy"))
    once = run("ppo.critic=shared", "ppo.minibatches=1", "ppo.epochs=1", folder="once").rows[0]
    assert once["val/ratio"] == 1.0 and once["val/clipfrac_avg"] == 0.0 and once["objective/kl"] == 0.0


def test_value_loss_reaches_a_shared_trunk_once_the_critic_is_warm(
    run: Run, adapters: dict[str, Path]
) -> None:
    ran = run("ppo.critic=shared", "ppo.critic_warmup=2")
    assert same(weights(ran.tensors(1), "policy"), weights(ran.tensors(2), "policy"))
    assert not torch.equal(ran.tensors(1)["heads.critic.weight"], ran.tensors(2)["heads.critic.weight"])
    assert ran.column("val/ratio")[:2] == pytest.approx([1.0, 1.0], abs=1e-5)
    alone = ("ppo.critic=shared", "ppo.minibatches=1", "ppo.epochs=1", "ppo.max_grad_norm=0")
    without, with_values = (run(*alone, f"ppo.vf_coef={weight}", folder=f"vf-{weight}") for weight in (0, 10))
    assert without.column("objective/kl")[0] == with_values.column("objective/kl")[0]
    assert not same(weights(with_values.tensors(1), "policy"), weights(without.tensors(1), "policy"))


def test_shared_critic_resumes(run: Run, tmp_path: Path) -> None:
    whole = run("ppo.critic=shared")
    for step in (2, 3):
        (tmp_path / "ppo" / "checkpoints" / f"step-{step:06d}").rename(tmp_path / f"lost-{step}")
    resumed = run("ppo.critic=shared", resume=True)
    assert list(map(untimed, whole.rows[1:])) == list(map(untimed, resumed.rows))


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
