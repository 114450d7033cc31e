"""PPO before its first update: KL is exactly 0 and the ratio exactly 1 on the first minibatch of the run.

Both are exact if log-probabilities are recomputed: a difference would mean that two forwards of one policy
saw other positions, other padding, another adapter or dropout, and that the objective is not the one that is
written down. Log-probabilities from sampling differ by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import load_experiment
from configs.schema import Rollout
from stages import ppo
from stages.context import Context
from stages.distributed.ranks import Ranks
from stages.rl import experience, update
from stages.sampling.decoding import Response
from stages.sampling.rollout_engine import matches_training_model
from stages.sampling.sampler import Sampler
from tests.support.roles import new_role, save_role_of, tiny_roles
from tests.support.runs import TINY, untimed

# Prompts of tiny.jsonl differ in length. With up to 150 tokens, some responses end their turn earlier.
OVERRIDES = (
    *("ppo.iterations=1", "ppo.batch_size=10", "ppo.micro_batch_size=3", "ppo.eval_steps=null"),
    *("ppo.rollout.max_new_tokens=150", "data.max_length=256", "data.ppo.held_out=0"),
)
RECOMPUTED = "ppo.old_logprobs=recomputed"


class Recorder:
    """A tracker that keeps all metrics."""

    def __init__(self) -> None:
        self.metrics: list[Mapping[str, float]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append(metrics)

    def phase(self, title: str, total: int, done: int = 0) -> None: ...
    def advance(self, units: int = 1, **figures: float) -> None: ...
    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None: ...
    def note(self, message: str) -> None: ...
    def rewind(self, step: int) -> None: ...


@pytest.fixture(scope="module", params=[0.0, 0.3], ids=["", "dropout"])
def inputs(
    request: pytest.FixtureRequest,
    tiny_folder: Path,
    tiny_tokenizer: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Adapters of the upstream stages, whose configurations have dropout or not."""
    root = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(("sft", "rm")):
        roles = new_role(tiny_roles(), name, seed, head=name == "rm", dropout=request.param)
        save_role_of(roles, name, root / name, tiny_tokenizer)
    return {name: root / name for name in ("sft", "rm")}


@pytest.fixture
def log_ratios(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The log ratio of every response token of each micro-batch, in the order of the updates."""
    log_ratios_by_batch: list[torch.Tensor] = []
    loss = update.policy_loss

    def record_log_ratio(logprobs, old_logprobs, advantages, mask, *rest):
        log_ratios_by_batch.append((logprobs - old_logprobs).detach()[mask])
        return loss(logprobs, old_logprobs, advantages, mask, *rest)

    monkeypatch.setattr(update, "policy_loss", record_log_ratio)
    return log_ratios_by_batch


def first_iteration(
    ranks: Ranks, inputs: dict[str, Path], folder: Path, *overrides: str
) -> Mapping[str, float]:
    config = load_experiment(TINY, [*OVERRIDES, *overrides])
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "1")
        patch.setenv("LOCAL_RANK", "0")
        ppo.run(Context(config, "ppo", folder, inputs, recorder, False, ranks))
    return recorder.metrics[0]


def test_kl_is_zero_and_ratio_is_one(
    inputs: dict[str, Path], log_ratios: list[torch.Tensor], ranks: Ranks, tmp_path: Path
) -> None:
    metrics = first_iteration(ranks, inputs, tmp_path, RECOMPUTED, "ppo.epochs=1", "ppo.minibatches=1")
    assert 0 < metrics["completions/clipped_ratio"] < 1, "responses must differ in length"
    assert len(log_ratios) == 4, "the batch must take several micro-batches, the last of them smaller"
    for log_ratio in log_ratios:
        assert torch.equal(log_ratio, torch.zeros_like(log_ratio))
    assert metrics["objective/kl"] == 0.0
    assert metrics["objective/non_score_reward"] == 0.0
    assert metrics["val/ratio"] == 1.0
    assert metrics["policy/approxkl_avg"] == 0.0
    assert metrics["policy/clipfrac_avg"] == 0.0
    assert metrics["grad_norm"] > 0


def test_second_minibatch_has_moved(
    inputs: dict[str, Path], log_ratios: list[torch.Tensor], ranks: Ranks, tmp_path: Path
) -> None:
    """With several minibatches, the first is exact, too. After an update, the ratio is not 1."""
    metrics = first_iteration(ranks, inputs, tmp_path, RECOMPUTED, "ppo.epochs=1", "ppo.minibatches=2")
    assert len(log_ratios) == 4
    assert not log_ratios[0].any() and not log_ratios[1].any()
    assert log_ratios[2].any() and log_ratios[3].any()
    assert metrics["objective/kl"] == 0.0 and metrics["val/ratio"] != 1.0


def test_sequences_of_about_one_length_go_together(
    inputs: dict[str, Path], ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In scoring and in updates, because a forward pads its sequences to the longest."""
    lengths: list[list[int]] = []
    response_batch = Sampler.response_batch

    def record_lengths(self: Sampler, prompts: Sequence[list[int]], responses: Sequence[Response]) -> Any:
        pairs = zip(prompts, responses, strict=True)
        lengths.append([len(prompt) + len(response.ids) for prompt, response in pairs])
        return response_batch(self, prompts, responses)

    monkeypatch.setattr(Sampler, "response_batch", record_lengths)
    first_iteration(ranks, inputs, tmp_path, "ppo.epochs=1", "ppo.minibatches=1")
    scored, of_critic, of_policy = lengths[:4], lengths[4:8], lengths[8:]
    assert scored == of_critic == of_policy and [len(batch) for batch in scored] == [3, 3, 3, 1]
    flat = sum(scored, [])
    assert flat == sorted(flat) and len(set(flat)) > 3


@pytest.fixture
def scored_roles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The roles whose log-probabilities are computed in scoring, in order."""
    scored_roles: list[str] = []
    logprobs = experience.response_logprobs

    def record_role(model: Any, role: str, batch: Any) -> torch.Tensor:
        scored_roles.append(role)
        return logprobs(model, role, batch)

    monkeypatch.setattr(experience, "response_logprobs", record_role)
    return scored_roles


@pytest.mark.parametrize("engine", ["hf", "merged", "continuous"])
def test_sampled_log_probabilities_save_a_forward(
    engine: str, inputs: dict[str, Path], scored_roles: list[str], ranks: Ranks, tmp_path: Path
) -> None:
    """They equal those of the training model to the rounding of fp32, for every engine in fp32."""
    options = (f"ppo.rollout.engine={engine}", "ppo.epochs=1", "ppo.minibatches=1")
    sampled = first_iteration(ranks, inputs, tmp_path / "sampled", *options)
    assert set(scored_roles) == {"reference"}
    recomputed = first_iteration(ranks, inputs, tmp_path / "recomputed", RECOMPUTED, *options)
    assert set(scored_roles) == {"reference", "policy"}
    assert 0 < sampled["rollout/logprob_difference"] < 1e-5
    assert sampled["rollout/logprob_difference"] == recomputed["rollout/logprob_difference"]
    assert untimed(sampled) == pytest.approx(untimed(recomputed), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("option", ["base.compute_dtype=bfloat16", "base.quantization=int8"])
def test_rounding_that_is_coarser_has_the_policy_asked(
    option: str, inputs: dict[str, Path], scored_roles: list[str], ranks: Ranks, tmp_path: Path
) -> None:
    first_iteration(ranks, inputs, tmp_path, option)
    assert set(scored_roles) == {"reference", "policy"}


def test_other_engines_and_dtypes_have_the_policy_score_itself() -> None:
    exact = {
        (dtype, quantization): matches_training_model(
            tiny_roles(compute_dtype=dtype, quantization=quantization), Rollout()
        )
        for dtype in ("float32", "bfloat16")
        for quantization in ("nf4", "int8", "none")
    }
    assert {case for case, matches in exact.items() if matches} == {("float32", "nf4"), ("float32", "none")}
    assert not matches_training_model(tiny_roles(), Rollout(engine="vllm"))
    stretched = tiny_roles()
    stretched.causal.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    assert not matches_training_model(stretched, Rollout())
