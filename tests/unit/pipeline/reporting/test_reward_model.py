"""The plain words about a reward model: each rule says yes, no, or that it cannot tell."""

from __future__ import annotations

import copy
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.reporting.reward_model import report_of, reward_section, verdicts
from tests.support.pipeline_runs import toy
from tests.unit.stages.maths.test_preferences import ranking


def figure(value, width=0.05, n=400):
    return {"value": value, "low": value - width / 2, "high": value + width / 2, "n": n}


REPORT = {
    "accuracy": figure(0.70),
    "pairs": 2400,
    "baselines": {"longer": figure(0.60), "likelier": figure(0.55)},
    "best_baseline": "longer",
    "lead": figure(0.10),
    "groups": {
        "length": {
            "the better answer is shorter": figure(0.68),
            "the better answer is longer": figure(0.72),
        }
    },
    "calibration": {"error": 0.02, "error_of_calibrated": 0.05, "temperature": 1.1},
    "length_correlation": figure(0.1),
    "agreement": None,
}


def people(agreement, ceiling):
    return {"between": "two people", "agreement": figure(agreement), "ceiling": figure(ceiling)}


def itself(agreement, ceiling, width=0.05):
    figures = {"agreement": figure(agreement, width), "ceiling": figure(ceiling, width)}
    return {"between": "the labeller and itself"} | figures


def changed(**changes):
    report = copy.deepcopy(REPORT) | changes
    return " ".join(verdicts(report))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Better than simple rules? Yes: it is right about 0.700"),
        ({"lead": figure(0.02)}, "Better than simple rules? Not clearly"),
        ({"lead": figure(-0.1)}, "Better than simple rules? No, worse"),
        ({}, "Does it judge by length? Hardly: reward and length correlate by 0.100"),
        ({"length_correlation": figure(0.5)}, "Does it judge by length? In part"),
        ({"length_correlation": figure(0.5, width=1.2)}, "Does it judge by length? Not clear"),
        ({"length_correlation": figure(0.1, width=0.6)}, "Does it judge by length? Not clear"),
        ({"length_correlation": None}, "Does it judge by length? The held-out answers do not tell"),
        ({}, "Calibrated? As far as these pairs tell: its probabilities are off by 0.020"),
        ({}, "Tested on enough? 400 prompts with 2400 pairs give an interval of 0.0500."),
        ({"accuracy": figure(0.7, 0.4, 20)}, "Tested on enough? No: 20 prompts"),
        ({"accuracy": figure(0.7, 0.4, 20)}, "Hold out about 80 prompts"),
        (people(0.72, 0.83), "As good as people agree? It cannot be told apart from them"),
        (people(0.85, 0.92), "As good as people agree? Not yet"),
        (people(0.60, 0.72), "As good as people agree? Yes, it agrees with one more than another does"),
        (people(0.60, 0.72), "By their agreement, it could reach 0.720"),
        (people(0.52, 0.60), "As good as people agree? Better than is possible"),
        (itself(1.0, 1.0, 0.0), "Does the labeller agree with itself? Yes: asked twice about 400 prompts"),
        (itself(0.8, 0.9), "Does the labeller agree with itself? Not always: asked twice, it orders 0.800"),
        (itself(0.8, 0.9), "So a model could be right about 0.900"),
        (itself(0.52, 0.60), "Does the labeller agree with itself? Less than the model with it"),
    ],
)
def test_each_rule(changes, words):
    assert words in changed(**changes)


@pytest.mark.parametrize(
    ("temperature", "words"),
    [
        (1.8, "Calibrated? No, too sure: its probabilities are off by 0.120"),
        (1.8, "Divide differences of the scores in evaluation.jsonl by 1.80."),
        (0.5, "Calibrated? No, not sure enough"),
        (None, "No temperature mends that"),
    ],
)
def test_what_mends_a_calibration(temperature, words):
    calibration = {"error": 0.12, "error_of_calibrated": 0.05, "temperature": temperature}
    assert words in changed(calibration=calibration)


@pytest.mark.parametrize(
    ("metrics", "mend"),
    [
        ({"score_std": 2.0}, " by 1.80, or those of the saved model's scores by 0.900."),
        ({"score_std": 2.0, "disagreement": 0.3}, " by 1.80."),
        ({"score_std": 0.0}, " by 1.80."),
        ({}, " by 1.80."),
    ],
)
def test_the_stage_names_the_divisor_of_raw_scores_and_of_the_saved_models(metrics, mend):
    calibration = {"error": 0.12, "error_of_calibrated": 0.05, "temperature": 1.8, "brier": figure(0.2)}
    report = REPORT | {"calibration": calibration, "tied": 0.0, "mistakes": []}
    results: Any = SimpleNamespace(final_metrics=lambda stage: metrics, check=None)
    bullets: Any = reward_section(results, report, set()).blocks[0]
    assert f"Divide differences of the raw scores in rm/evaluation.jsonl{mend}" in " ".join(bullets.items)


def test_without_people_nothing_is_said_about_their_agreement():
    assert "people agree" not in changed()


@pytest.mark.parametrize(
    ("labeller", "name", "between"),
    [
        ("people", "label_agreement", "two people"),
        ({"agree": ["warmth", "warm_ending"]}, "label_agreement", None),
        ("mine:score", "label_self_agreement", "the labeller and itself"),
        ("warmth", "judge_requests", None),
    ],
)
def test_agreement_is_a_ceiling_only_if_what_is_disagreed_about_is_among_the_rankings(
    labeller, name, between
):
    agreement = {f"{name}{end}": 0.6 for end in ("", "_low", "_high", "_n")}
    results: Any = SimpleNamespace(
        scored_rankings=[asdict(ranking([2, 1])), asdict(ranking([3, 1]))],
        final_metrics=lambda stage: agreement,
        experiment=toy(rm__rankings={"labeller": labeller}),
    )
    report = report_of(results)
    assert report is not None and report["between"] == between
    assert bool(report["agreement"]) == bool(report["ceiling"]) == bool(between)


def test_the_members_of_an_ensemble_have_rows_of_their_own():
    metrics = {"disagreement": 0.31, "disagreement_low": 0.2, "disagreement_high": 0.4, "disagreement_n": 8}
    for number, accuracy in ((1, 0.7), (2, 0.6)):
        ends = {"": accuracy, "_low": accuracy - 0.1, "_high": accuracy + 0.1, "_n": 8}
        metrics |= {f"accuracy_member_{number}{end}": value for end, value in ends.items()}
    results: Any = SimpleNamespace(
        scored_rankings=[asdict(ranking([2, 1])), asdict(ranking([3, 1]))],
        final_metrics=lambda stage: metrics,
        experiment=toy(),
        check=None,
    )
    report = report_of(results)
    assert report is not None
    section = reward_section(results, report, set())
    table: Any = section.blocks[1]
    assert [[cell.text for cell in row][:2] for row in table.rows] == [
        ["member 1", "0.700"],
        ["member 2", "0.600"],
    ]
    words: Any = section.blocks[2]
    assert "They disagree by 0.310 [0.200, 0.400]" in words.text
    results.final_metrics = lambda stage: {}
    alone = reward_section(results, report, set())
    assert len(alone.blocks) == len(section.blocks) - 2
