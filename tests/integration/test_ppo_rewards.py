"""Effects of the reward terms and their shaping on a PPO run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.errors import UserError
from tests.support.ppo_runs import Run, run, same_tensors, weights
from tests.unit.stages.feedback.test_rewards import Service, service

__all__ = ["run", "service"]  # fixtures


def test_a_reward_that_is_no_number_skips_the_update_and_is_told(run: Run) -> None:
    """One of eight rewards is NaN, and whitening spreads it to all."""
    options = "ppo.rewards=[{source: rm}, {source: 'tests.integration.test_ppo_rewards:nan_for_the_first'}]"
    with pytest.raises(UserError, match="3 updates in a row, up to step 3, the first at step 1"):
        run(options, "ppo.max_skipped_updates=3")
    ppo = run(options, folder="on")
    assert ppo.column("skipped_updates") == [1, 2, 3], "the remaining updates of a rollout are skipped"
    assert ppo.column("policy/updates") == [1] * 3
    assert same_tensors(weights(ppo.tensors(1), "policy"), weights(ppo.tensors(3), "policy"))


def test_an_endpoints_key_is_not_written_down(
    run: Run, service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SCORER_KEY", "planted-secret")
    service.answer = {"rewards": [0.5] * 8}
    term = f"{{source: '{service.url}', key_variable: SCORER_KEY, name: reward_model}}"
    ppo = run(f"ppo.rewards=[{{source: rm}}, {term}]")
    assert set(service.keys) == {"Bearer planted-secret"} and ppo.rows[0]["rewards/reward_model/mean"] == 0.5
    files = [path for path in ppo.folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"planted-secret" in path.read_bytes()]


def nan_for_the_first(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A reward function for the test above."""
    return [math.nan, *[0.0] * (len(prompts) - 1)]


def test_terms_of_the_reward_are_logged_apart_and_added_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    function = "{source: 'tests.integration.test_ppo_rewards:lengths', weight: 0.5}"
    ppo = run(f"ppo.rewards=[{{source: rm, weight: 2}}, {function}]", "ppo.missing_eos_penalty=null")
    for row in ppo.rows:
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
    ppo = run("ppo.normalize_rewards=true", "ppo.missing_eos_penalty=null")
    assert ppo.column("objective/scores")[0] == pytest.approx(0.0, abs=1e-5)
    assert [ppo.values(step, "rewards")["count"] for step in (1, 2, 3)] == [8, 16, 24]
