"""`tristage evaluate`: the same prompts and noise for all, figures that follow from the answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from apps.evaluate.candidates import parse_candidates
from apps.evaluate.judges import ScoringJudge, open_judges
from apps.evaluate.measure import INSTRUCTED, Comparison, Material, measure
from apps.evaluate.output import build_page, write_answers, write_comparison
from apps.evaluate.reasoning import final_answer
from apps.trained_run import TrainedRun, chosen_adapters, open_run
from configs.errors import UserError
from data.people.adapters import read_adapters
from launch.arguments import exit_status
from launch.commands import app
from pipeline.reporting.page import render
from stages.feedback.labellers import warmth
from stages.maths.statistics import wins
from tests.support.chat_stub import chat_stub

NAMES = ["base", "sft", "sft@3", "base+2", "ppo"]


@pytest.fixture(scope="module")
def run(trained_run: Path) -> TrainedRun:
    return open_run(trained_run)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 12)
    return file


@pytest.fixture(scope="module")
def comparison(run: TrainedRun, text_file: Path) -> Comparison:
    judges = open_judges(run, None, Path())
    return measure(
        run, parse_candidates(NAMES), judges, lambda line: None, Material(text=text_file, instructions=3)
    )


def test_every_candidate_answers_every_held_out_prompt(comparison) -> None:
    assert list(comparison.answers) == [*NAMES, INSTRUCTED]
    assert len(comparison.prompts) == 8
    assert all(len(answers.texts) == 8 for answers in comparison.answers.values())


def test_answers_are_those_of_the_judgement_of_ppo(run, comparison, trained_run) -> None:
    """The mean KL of PPO is an independent estimate of what the stage measured, from other noise."""
    measured = json.loads((trained_run / "ppo/manifest.json").read_text())["metrics"]
    low, high = comparison.metrics["ppo"]["kl_low"], comparison.metrics["ppo"]["kl_high"]
    assert low - measured["kl_high"] < 0 < high - measured["kl_low"] + 1e-6
    assert comparison.metrics["sft"]["kl"] == pytest.approx(0.0, abs=1e-4)  # SFT to itself, not truncated


def test_the_gold_score_is_that_of_the_texts(comparison) -> None:
    for name, answers in comparison.answers.items():
        mean = sum(map(warmth, answers.texts)) / len(answers.texts)
        assert comparison.metrics[name]["gold"] == pytest.approx(mean)


def test_win_rates_mirror_each_other_and_follow_from_the_scores(comparison) -> None:
    rates = comparison.win_rates["rm"]
    for name in NAMES:
        for other in NAMES:
            if name == other:
                continue
            ours, theirs = comparison.answers[name], comparison.answers[other]
            won = wins(ours.rewards, theirs.rewards)
            equal = [a == b for a, b in zip(ours.texts, theirs.texts, strict=True)]  # texts, which tie
            tied = [0.5 if same else one for one, same in zip(won, equal, strict=True)]
            assert rates[name][other]["win_rate"] == pytest.approx(sum(tied) / 8)
            assert rates[name][other]["win_rate"] + rates[other][name]["win_rate"] == pytest.approx(1.0)


def test_best_of_n_contains_the_single_answer_and_costs_n_times_as_much(comparison) -> None:
    one, best = comparison.answers["sft"], comparison.answers["sft@3"]
    assert all(ours >= theirs for ours, theirs in zip(best.rewards, one.rewards, strict=True))
    assert any(text in one.texts for text in best.texts)  # number 0 of the three has the same noise
    assert sum(best.cost) > 2 * sum(one.cost)


def test_demonstrations_cost_tokens(comparison) -> None:
    assert sum(comparison.answers["base+2"].cost) > sum(comparison.answers["base"].cost) + 8 * 10
    assert comparison.answers["base+2"].kl == []


def test_an_automatic_prompt_is_told_with_its_likelihood(comparison) -> None:
    candidate = comparison.answers[INSTRUCTED].candidate
    assert candidate.policy == "base"
    assert candidate.instruction.endswith(".")
    assert repr(candidate.instruction) in comparison.notes[0]
    assert sum(comparison.answers[INSTRUCTED].cost) > sum(comparison.answers["base"].cost)


def test_perplexity_is_measured_for_policies_alone(comparison) -> None:
    assert {name for name, metrics in comparison.metrics.items() if "perplexity" in metrics} == {
        "base",
        "sft",
        "ppo",
    }
    assert comparison.metrics["sft"]["perplexity"] < comparison.metrics["base"]["perplexity"] * 3


def test_the_page_shows_all_and_escapes_answers(comparison, run, tmp_path) -> None:
    comparison.answers["ppo"].texts[0] = "<script>alert(1)</script>"
    html = render(build_page(comparison, "Policies of tiny"), "html")
    for text in ("Score by gold", "Score by rm", "against sft@3", "equal length", "6 candidates, 8 prompts"):
        assert text in html
    assert "<script>alert" not in html
    write_answers(tmp_path / "out", run.manifests, comparison.prompts, comparison.answers)
    page = write_comparison(comparison, tmp_path / "out", "Policies of tiny")
    assert page.is_file()
    figures = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert figures["metrics"]["ppo"]["gold_n"] == 8
    assert len((tmp_path / "out/answers.jsonl").read_text().splitlines()) == 8


def test_the_adapters_behind_the_answers_are_kept(comparison, run, tmp_path) -> None:
    """People may be asked about the answers after a stage was trained again."""
    write_answers(tmp_path / "out", run.manifests, comparison.prompts, comparison.answers)
    sft, rm, ppo = ({stage: run.manifests[stage].output.sha256} for stage in ("sft", "rm", "ppo"))
    behind = {"base": {}, "sft": sft, "sft@3": sft | rm, "base+2": {}, INSTRUCTED: {}, "ppo": ppo}
    assert read_adapters(tmp_path / "out/answers.jsonl") == behind


@pytest.mark.parametrize("key", ["prompt", "instruction"])
def test_prompts_of_a_file_by_category(run, tmp_path, key) -> None:
    file = tmp_path / "mine.json"
    rows = [{key: f"say {word}", "category": word[0]} for word in ("apple", "axe", "bee", "boat")]
    file.write_text(json.dumps(rows))
    result = measure(
        run,
        parse_candidates(["base", "ppo"]),
        open_judges(run, ["warmth"], Path()),
        lambda line: None,
        Material(file),
    )
    assert result.prompts == [row[key] for row in rows]
    assert set(result.by_category) == {"a", "b"}
    assert result.by_category["a"]["ppo"]["score_n"] == 2
    file.write_text(json.dumps([{"prompt": "many words " * 60}]))
    with pytest.raises(UserError, match="1 prompts are longer"):
        measure(
            run,
            parse_candidates(["base", "ppo"]),
            open_judges(run, ["warmth"], Path()),
            lambda line: None,
            Material(file),
        )


def test_two_judges_of_one_name_are_refused(run, tmp_path) -> None:
    files = [tmp_path / folder / "judge.yaml" for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.write_text("url: http://localhost:1/v1\nmodel: m\n")
    with pytest.raises(UserError, match="--judges: two are called 'judge'"):
        open_judges(run, [str(file) for file in files], tmp_path)


def test_a_reward_model_is_no_policy(run) -> None:
    with pytest.raises(UserError, match="it is a reward model"):
        chosen_adapters(run, ["sft", str(run.run.adapter("rm"))], reward=False)


@pytest.mark.parametrize("name", ["no-judge", "gold", "rm"])
def test_a_judge_that_the_run_lacks_is_refused(run, name) -> None:
    config = run.config.model_copy(update={"ppo": run.config.ppo.model_copy(update={"judge": None})})
    with pytest.raises(UserError):
        open_judges(TrainedRun(run.run, config, {}), [name], Path())
    with pytest.raises(UserError, match="neither"):
        open_judges(TrainedRun(run.run, config, {}), None, Path())


def test_the_command_prints_a_table(trained_run, tmp_path, monkeypatch, capsys) -> None:
    out = str(tmp_path / "out")
    command = [
        "tristage",
        "evaluate",
        "--run-dir",
        str(trained_run),
        "--policies",
        "sft,ppo",
        "-n",
        "4",
        "--out",
        out,
    ]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setenv("COLUMNS", "200")
    assert exit_status(app, "tristage") == 0
    printed = capsys.readouterr().out
    assert "Beats sft, by gold" in printed
    assert f"evaluation: {out}/index.html" in printed


def test_a_policy_that_is_none_is_refused(run) -> None:
    with pytest.raises(UserError, match="neither base, sft, ppo nor a folder"):
        measure(
            run,
            parse_candidates(["sft", "pop"]),
            open_judges(run, None, Path()),
            lambda line: None,
            Material(),
        )


def test_a_judge_is_asked_once_about_each_candidate(comparison) -> None:
    asked = []

    def score(prompts, answers):
        asked.append(answers.candidate.name)
        return answers.rewards

    judge = ScoringJudge("slow", score)
    for ours in comparison.answers.values():
        for theirs in comparison.answers.values():
            judge.compare(comparison.prompts, ours, theirs)
    assert sorted(asked) == sorted(comparison.answers)


@pytest.mark.parametrize("mode", ["pairs", "ranking"])
def test_an_endpoint_compares_two_candidates(comparison, run, tmp_path, mode) -> None:
    def longer(body) -> str:
        lengths = list(map(len, re.split(r"<\|>|Answer [AB]: ", body["messages"][0]["content"])[-2:]))
        return "A > B" if lengths[0] > lengths[1] else "B > A"

    file, fields = tmp_path / "judge.yaml", "{a}<|>{b}" if mode == "pairs" else "{answers}"
    with chat_stub(longer) as stub:
        file.write_text(f"url: {stub.url}\nmodel: m\nmode: {mode}\ntemplate: '{{prompt}}<|>{fields}'")
        (judge,) = open_judges(run, [str(file)], tmp_path)
        ours, theirs = comparison.answers["sft"], comparison.answers["ppo"]
        verdicts = [won for won, *_ in judge.compare(comparison.prompts, ours, theirs)]
        asked = len(stub.bodies)
        (again,) = open_judges(run, [str(file)], tmp_path)  # another evaluation pays for no reply twice
        again.compare(comparison.prompts, ours, theirs)
        assert len(stub.bodies) == asked
    lengths = [[len(text) for text in answers.texts] for answers in (ours, theirs)]
    assert judge.name == "judge" and judge.scores(comparison.prompts, ours) == []
    if mode == "pairs":  # which asks in both orders, so equal lengths tie
        assert verdicts == wins(*lengths)
    assert all(
        verdict == 0.5 for verdict, a, b in zip(verdicts, ours.texts, theirs.texts, strict=True) if a == b
    )


def test_a_vote_takes_what_most_samples_say_and_reasoning_its_end(run) -> None:
    names = ["base", "base~3", "base+cot", "base+cot~2"]
    result = measure(
        run,
        parse_candidates(names),
        open_judges(run, ["warmth"], Path()),
        lambda line: None,
        Material(number=3),
    )
    assert list(result.answers) == names
    assert result.answers["base~3"].texts != [] and "agreement" not in result.metrics["base"]
    assert all(1 / 3 <= share <= 1 for share in result.answers["base~3"].agreement)
    assert sum(result.answers["base~3"].cost) > 2 * sum(result.answers["base"].cost)
    assert result.answers["base~3"].kl == result.answers["base+cot"].kl == []
    for text in result.answers["base+cot"].texts:
        assert text == final_answer(text)[0]
    assert max(result.answers["base+cot"].cost) > run.config.ppo.rollout.max_new_tokens + 64
    assert {"agreement", "agreement_low", "cost"} <= result.metrics["base+cot~2"].keys()
    assert any("A vote takes" in note for note in result.notes)
