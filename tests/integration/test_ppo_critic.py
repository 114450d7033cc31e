"""The critic: its values, its warm-up, and the critic that is a head on the policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.ppo_runs import Run, run, same_tensors, weights
from tests.support.runs import untimed

__all__ = ["run"]  # a fixture


def test_critic_warmup_trains_the_critic_alone(run: Run, adapters: dict[str, Path]) -> None:
    ppo = run("ppo.critic_warmup=2")
    initial = load_file(adapters["sft"] / "adapter_model.safetensors")
    policy = {
        name: tensor for step in (1, 2) for name, tensor in weights(ppo.tensors(step), "policy").items()
    }
    trained = {
        name.replace("causal.", "base_model.model.").replace(".policy", ""): tensor
        for name, tensor in policy.items()
    }
    assert same_tensors(trained, initial)
    assert not same_tensors(weights(ppo.tensors(1), "critic"), weights(ppo.tensors(2), "critic"))
    assert not same_tensors(weights(ppo.tensors(2), "policy"), weights(ppo.tensors(3), "policy"))
    assert ppo.column("val/ratio")[:2] == pytest.approx([1.0, 1.0], abs=1e-5)


def test_policy_starts_as_if_the_critics_warmup_had_not_been(run: Run) -> None:
    """Adam's first step moves every parameter by the learning rate, whatever the critic's warm-up."""
    options = ("ppo.minibatches=1", "ppo.epochs=1", "ppo.max_grad_norm=0", "ppo.weight_decay=0.01")
    ppo = run(*options, "ppo.critic_warmup=2", "ppo.ptx_coef=1")
    before, after = (weights(ppo.tensors(step), "policy") for step in (2, 3))
    learning_rates = ppo.column("learning_rate")
    assert learning_rates[:2] == [0.0, 0.0] and learning_rates[2] > 0 and "loss/ptx_avg" not in ppo.rows[1]
    assert same_tensors(weights(ppo.tensors(1), "policy"), before), "demonstrations do not change it, either"
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert moved == pytest.approx(learning_rates[2], rel=0.02)


def test_critic_has_a_learning_rate_of_its_own(run: Run) -> None:
    options = ("ppo.minibatches=1", "ppo.epochs=1", "ppo.max_grad_norm=0")
    plain, still = run(*options), run(*options, "ppo.critic_learning_rate=1e-12", folder="still")
    assert same_tensors(weights(plain.tensors(1), "policy"), weights(still.tensors(1), "policy"))
    moved = {
        name: float((tensor - still.tensors(1)[name]).abs().max())
        for name, tensor in weights(plain.tensors(1), "critic").items()
    }
    assert max(moved.values()) == pytest.approx(plain.rows[0]["learning_rate"], rel=0.02)


def test_values_are_clipped_about_the_old_ones(run: Run) -> None:
    plain, tight = run("ppo.clip_range_value=null"), run("ppo.clip_range_value=1e-6", folder="tight")
    assert plain.column("val/clipfrac_avg") == [0.0] * 3 and tight.column("val/clipfrac_avg")[0] > 0
    assert not same_tensors(weights(plain.tensors(1), "critic"), weights(tight.tensors(1), "critic"))


def test_shared_critic_is_a_head_on_the_policy(run: Run, adapters: dict[str, Path]) -> None:
    ppo = run("ppo.critic=shared")
    head = load_file(adapters["rm"] / "head.safetensors")
    names = {name for name in ppo.tensors(3) if not name.startswith("exp_avg")}
    assert {name for name in names if "critic" in name} == {"heads.critic.weight", "heads.critic.bias"}
    assert not torch.equal(ppo.tensors(1)["heads.critic.weight"], head["weight"])
    assert not same_tensors(weights(ppo.tensors(1), "policy"), weights(ppo.tensors(2), "policy"))
    first = run("ppo.critic=shared", "ppo.minibatches=1", "ppo.epochs=1", folder="once").rows[0]
    assert first["val/ratio"] == 1.0 and first["val/clipfrac_avg"] == 0.0 and first["objective/kl"] == 0.0


def test_value_loss_reaches_a_shared_trunk_once_the_critic_is_warm(
    run: Run, adapters: dict[str, Path]
) -> None:
    ppo = run("ppo.critic=shared", "ppo.critic_warmup=2")
    assert same_tensors(weights(ppo.tensors(1), "policy"), weights(ppo.tensors(2), "policy"))
    assert not torch.equal(ppo.tensors(1)["heads.critic.weight"], ppo.tensors(2)["heads.critic.weight"])
    assert ppo.column("val/ratio")[:2] == pytest.approx([1.0, 1.0], abs=1e-5)
    options = ("ppo.critic=shared", "ppo.minibatches=1", "ppo.epochs=1", "ppo.max_grad_norm=0")
    without, with_values = (
        run(*options, f"ppo.vf_coef={weight}", folder=f"vf-{weight}") for weight in (0, 10)
    )
    assert without.column("objective/kl")[0] == with_values.column("objective/kl")[0]
    assert not same_tensors(weights(with_values.tensors(1), "policy"), weights(without.tensors(1), "policy"))


def test_shared_critic_resumes(run: Run, tmp_path: Path) -> None:
    uninterrupted = run("ppo.critic=shared")
    for step in (2, 3):
        (tmp_path / "ppo" / "checkpoints" / f"step-{step:06d}").rename(tmp_path / f"lost-{step}")
    resumed = run("ppo.critic=shared", resume=True)
    assert list(map(untimed, uninterrupted.rows[1:])) == list(map(untimed, resumed.rows))
