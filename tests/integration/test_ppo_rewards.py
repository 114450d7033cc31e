"""Effects of the reward terms and their shaping on a PPO run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import load_experiment
from stages import ppo
from stages.context import Context
from stages.distributed.ranks import Ranks
from stages.sampling.decoding import Response
from stages.sampling.sampler import Sampler
from tests.integration.test_ppo_start import Recorder
from tests.support.ppo_runs import Run, run
from tests.support.runs import TINY
from tests.unit.stages.feedback.test_rewards import Service, service

__all__ = ["run", "service"]  # fixtures


def test_a_reward_that_is_no_number_ends_the_stage(run: Run) -> None:
    """Whitening would spread the one of eight over all of them, and every update would be skipped."""
    broken = "ppo.rewards=[{source: rm}, {source: 'tests.integration.test_ppo_rewards:broken'}]"
    with pytest.raises(UserError, match=r"test_ppo_rewards:broken gave nan for completions\[0\]"):
        run(broken)


def test_a_reward_that_overflows_skips_the_rest_of_the_rollout(run: Run) -> None:
    """Finite numbers of a function, whose square is not finite."""
    huge = "ppo.rewards=[{source: 'tests.integration.test_ppo_rewards:huge'}]"
    with pytest.raises(UserError, match="3 updates in a row, up to step 3, the first at step 1"):
        run(huge, "ppo.max_skipped_updates=3")
    with pytest.raises(UserError, match="stage ppo: none of 3 updates was made"):
        run(huge, folder="on")


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


def huge(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A reward function for the test above."""
    return [1e30 * number for number in range(len(prompts))]


def broken(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A reward function for the test above."""
    return [math.nan, *[0.0] * (len(prompts) - 1)]


def test_terms_of_the_reward_are_logged_apart_and_added_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    function = "{source: 'tests.integration.test_ppo_rewards:lengths', weight: 0.5}"
    ppo = run(f"ppo.rewards=[{{source: rm, weight: 2}}, {function}]", "ppo.missing_eos_penalty=null")
    for row in ppo.rows:
        expected = 2 * row["rewards/rm/mean"] + 0.5 * row["rewards/lengths/mean"]
        assert row["objective/scores"] == pytest.approx(expected, rel=1e-5)
        assert row["rewards/lengths/mean"] > 0


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_a_function_alone_is_asked_about_held_out_answers(
    critic: str, adapters: dict[str, Path], ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No figure is called the reward model's, and a shared critic needs none."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    function = "ppo.rewards=[{source: 'tests.integration.test_ppo_rewards:lengths'}]"
    config = load_experiment(TINY, [function, f"ppo.critic={critic}", "ppo.iterations=1"])
    inputs: dict[str, Path] = {stage: adapters[stage] for stage in config.upstream("ppo")}
    assert ("rm" in inputs) == (critic == "adapter")
    recorder = Recorder()
    metrics = ppo.run(Context(config, "ppo", tmp_path, inputs, recorder, False, ranks)).metrics
    rows = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    for role in ("sft", "ppo"):
        expected = [1.0 + len(row[role]) for row in rows]
        assert [row[f"score_{role}"] for row in rows] == expected
        assert metrics[f"lengths_score_{role}"] == pytest.approx(sum(expected) / len(expected))
    assert recorder.metrics[-1]["eval/score"] == metrics["lengths_score_ppo"]
    assert {"lengths_win_rate", "lengths_score_ppo_low"} <= metrics.keys()
    assert not [name for name in metrics if name.startswith(("rm_", "reward_"))]


def test_every_term_has_its_own_held_out_figures(run: Run) -> None:
    function = "{source: 'tests.integration.test_ppo_rewards:lengths', weight: 0.5}"
    ran = run(f"ppo.rewards=[{{source: rm, weight: 2}}, {function}]", "data.ppo.held_out=8")
    [row] = [row for row in ran.rows if "eval/score" in row][-1:]
    expected = 2 * row["eval/rewards/rm"] + 0.5 * row["eval/rewards/lengths"]
    assert row["eval/score"] == pytest.approx(expected, rel=1e-5)
    for line in (ran.folder / "evaluation.jsonl").read_text().splitlines():
        answer = json.loads(line)
        assert answer["lengths_score_ppo"] == 1.0 + len(answer["ppo"])
        total = 2 * answer["rm_score_ppo"] + 0.5 * answer["lengths_score_ppo"]
        assert answer["score_ppo"] == pytest.approx(total, rel=1e-5)


def test_a_turn_is_ended_by_its_token_and_not_by_its_length(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two answers have the most tokens and an end, one has fewer and no end, five have fewer and an end."""
    end, most = 2, 8
    answers = [[5] * (most - 1) + [end]] * 2 + [[5] * 3] + [[5, 6, end]] * 5

    def respond(self: Sampler, role: str, prompts: list, *_: object) -> list[Response]:
        assert self.tokenizer.eos_token_id == end and len(prompts) == len(answers)
        return [Response(list(ids), [-1.0] * len(ids)) for ids in answers]

    monkeypatch.setattr(Sampler, "respond", respond)
    zero = "ppo.rewards=[{source: 'tests.integration.test_ppo_rewards:zero'}]"
    [row] = run(zero, "ppo.iterations=1", "ppo.missing_eos_penalty=4", "ppo.old_logprobs=recomputed").rows
    assert row["completions/clipped_ratio"] == 1 / 8
    assert row["objective/scores"] == -4 * 1 / 8


def zero(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A reward function for the test above."""
    return [0.0] * len(prompts)


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
