"""What keeps the policy near the reference: the KL penalty, `max_kl`, and the average of the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.rl import update
from tests.integration.test_ppo_start import RECOMPUTED
from tests.support.ppo_runs import Run, adapter, run, same_tensors, weights

__all__ = ["run"]  # a fixture


def test_adaptive_kl_coefficient_moves_and_is_remembered(run: Run) -> None:
    ppo = run("ppo.kl_target=6", "ppo.kl_horizon=40")
    first, second, third = ppo.column("objective/kl_coef")
    # KL 0 before the first update: 0.05 * (1 - 0.2 * 8 / 40)
    assert first == 0.05 and second == pytest.approx(0.05 * 0.96)
    assert third != second
    assert ppo.values(1, "kl")["coef"] == second and ppo.values(2, "kl")["coef"] == third


def test_fixed_kl_coefficient_stays(run: Run) -> None:
    assert run("ppo.kl_coef=0.1").column("objective/kl_coef") == [0.1] * 3


def test_kl_in_the_loss_is_out_of_the_reward(run: Run) -> None:
    ppo = run("ppo.kl_in=loss", "ppo.kl_estimator=k3")
    assert ppo.column("objective/non_score_reward") == [0.0] * 3
    kl = ppo.column("loss/kl_avg")
    assert min(kl) > 0, "the policy has moved from the second minibatch on, and k3 is never negative"
    large_coefficient = run("ppo.kl_in=loss", "ppo.kl_estimator=k3", "ppo.kl_coef=100", folder="held")
    assert large_coefficient.column("loss/kl_avg")[-1] < 0.5 * kl[-1], (
        "a large coefficient holds the policy back"
    )


def test_k3_in_the_reward_is_never_a_bonus(run: Run) -> None:
    k1, k3 = run(), run("ppo.kl_estimator=k3", folder="k3")
    assert max(k3.column("objective/non_score_reward")[1:]) < 0
    assert k1.column("objective/non_score_reward")[1] != k3.column("objective/non_score_reward")[1]


def test_coefficient_in_the_loss_is_the_one_that_is_logged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    loss = update.PpoUpdate._policy_loss

    def record_coefficient(self: update.PpoUpdate, *arguments: Any) -> Any:
        used.append(self.kl.coef)
        return loss(self, *arguments)

    monkeypatch.setattr(update.PpoUpdate, "_policy_loss", record_coefficient)
    options = ("ppo.kl_in=loss", "ppo.kl_estimator=k3", "ppo.kl_target=6", "ppo.kl_horizon=40")
    ppo = run(*options, "ppo.critic_warmup=1")
    coefficients = ppo.column("objective/kl_coef")
    assert coefficients == list(dict.fromkeys(used))[:1] + list(dict.fromkeys(used))
    assert coefficients[0] == coefficients[1] != coefficients[2], (
        "the coefficient does not adapt while the critic's warm-up keeps the policy fixed"
    )


def test_kl_above_the_limit_ends_the_run_with_the_last_good_policy(
    run: Run, adapters: dict[str, Path]
) -> None:
    """The first update moves the policy off KL 0, so the second rollout exceeds a limit near 0."""
    options = ("ppo.max_kl=1e-9", "data.ppo.held_out=8", RECOMPUTED)  # so that KL 0 is exact
    ppo = run(*options)
    iterations = [row for row in ppo.rows if "objective/kl" in row]
    assert len(iterations) == 2 and "loss/policy_avg" not in iterations[1], "the second one is not trained on"
    assert same_tensors(adapter(ppo.folder / "adapter"), adapter(adapters["sft"]))
    assert "not within ppo.max_kl" in ppo.values(2, "loop")["stopped"]
    assert ppo.rows[-1]["eval/kl"] == 0.0, "the judge scores the policy that is kept"
    (ppo.folder / "adapter" / "adapter_model.safetensors").unlink()
    resumed = run(*options, resume=True)
    assert not resumed.rows, "a stopped run does not continue when it is resumed"
    assert same_tensors(adapter(resumed.folder / "adapter"), adapter(adapters["sft"]))


def test_average_goes_back_with_the_policy(run: Run, adapters: dict[str, Path]) -> None:
    ppo = run("ppo.max_kl=1e-9", "ppo.ema_decay=0.5", "ppo.use_ema=true", "ppo.seed=2", RECOMPUTED)
    assert len(ppo.column("objective/kl")) == 2, "the policy and its average have moved before they go back"
    assert same_tensors(adapter(ppo.folder / "adapter"), adapter(adapters["sft"]))


def test_kl_within_the_limit_changes_nothing(run: Run) -> None:
    limited, free = run("ppo.max_kl=1e9"), run(folder="free")
    assert same_tensors(adapter(limited.folder / "adapter"), adapter(free.folder / "adapter"))


def test_average_of_the_policy_by_hand(run: Run) -> None:
    ppo = run("ppo.ema_decay=0.75")
    policies = [weights(ppo.tensors(step), "policy") for step in (1, 2, 3)]
    average = adapter(ppo.folder / "adapter-ema")
    for name, first in policies[0].items():
        peft_name = name.replace("causal.", "base_model.model.").replace(".policy", "")
        expected = 0.75 * (0.75 * first + 0.25 * policies[1][name]) + 0.25 * policies[2][name]
        assert torch.allclose(average[peft_name], expected, atol=1e-6), name
    chosen = run("ppo.ema_decay=0.75", "ppo.use_ema=true", folder="chosen")
    assert same_tensors(adapter(chosen.folder / "adapter"), average)
    assert same_tensors(adapter(chosen.folder / "adapter-last"), adapter(ppo.folder / "adapter"))
