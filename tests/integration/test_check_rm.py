"""`tristage check rm`: changed rankings keep their held-out prompts, and the table says what came out."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest

from apps.check_rm import (
    NEGATED,
    SHUFFLED,
    WHOLE,
    gain_of,
    rankings_of,
    some_prompts,
    variants,
    verdict,
    write_variant,
)
from configs.errors import UserError
from configs.load import load_experiment
from data.examples import StageData
from data.sources.split import prompt_key
from data.storage.files import write_json_lines
from launch import checking
from pipeline.reporting.report import write_report
from pipeline.state.manifest import read_manifest
from pipeline.state.reward_check import read_check
from pipeline.state.run_directory import RunDirectory
from stages.feedback.rankings import write_rankings
from tests.support.runs import RUN_STAGE, TINY, start_warm


def rows_of(run_dir: Path) -> tuple[list[dict], list[dict]]:
    return rankings_of(RunDirectory(run_dir), load_experiment(run_dir / "config.yaml"), print)


def test_every_variant_holds_out_the_prompts_of_the_run(trained_run, tmp_path) -> None:
    config = load_experiment(TINY)
    train, held_out = rows_of(trained_run)
    expected = {prompt_key(row["prompt"]) for row in held_out}
    for variant in variants(curve=True):
        folder = tmp_path / variant.name
        sources = write_variant(folder, variant, some_prompts(train, 20, 1), held_out, config.seed)
        data = config.data.model_copy(update={"rm": tuple(sources)})
        split = StageData(config.model_copy(update={"data": data}), "rm", print).rows("rankings")
        assert {prompt_key(row["prompt"]) for row in split.held_out} == expected
        assert not expected & {prompt_key(row["prompt"]) for row in split.train}


def test_a_source_that_stages_share_is_not_split_again(trained_run, tmp_path) -> None:
    """The check has rankings of its own, so that `data.sft` alone reads the source."""
    shared, row = tmp_path / "all.jsonl", {"completions": ["a", "b"], "ranks": [0, 1]}
    write_json_lines(shared, [{"prompt": f"p{number}", **row} for number in range(60)])
    paths = [f"data.{stage}.path={shared}" for stage in ("sft", "rm")]
    config = load_experiment(TINY, [*paths, "data.shares={sft: 0.3, rm: 0.7, ppo: 0}", "data.rm.held_out=8"])
    split = StageData(config, "rm", print).rows("rankings")
    train, held_out = (
        [{name: one[name] for name in ("prompt", *row)} for one in rows]
        for rows in (split.train, split.held_out)
    )
    sources = write_variant(tmp_path / "check", SHUFFLED, train, held_out, config.seed)
    again = StageData(checking._changed(config, sources), "rm", print).rows("rankings")
    assert [row["prompt"] for row in again.held_out] == [row["prompt"] for row in split.held_out]
    assert [row["prompt"] for row in again.train] == [row["prompt"] for row in split.train]


def test_a_new_sft_policy_replaces_the_one_that_was_copied(trained_run, tmp_path, monkeypatch) -> None:
    run_dir = tmp_path / "run"
    for name in ("sft", "rm"):
        shutil.copytree(trained_run / name, run_dir / name)
    shutil.copy(trained_run / "config.yaml", run_dir)
    monkeypatch.setattr(checking, "run_all", lambda *_: 1)
    own = run_dir / "sft/manifest.json"
    for end in ("", "\n\n"):
        own.write_text(own.read_text() + end)
        assert checking.rm(checking.CheckOptions(run_dir=run_dir, rows=12)) == 1
        copies = list((run_dir / "check").glob("*/sft/manifest.json"))
        assert copies and copies[0].read_bytes() == own.read_bytes()


def test_rankings_that_tie_entirely_are_left_out_as_by_the_stage(trained_run, tmp_path) -> None:
    run, row = RunDirectory(tmp_path), {"completions": ["a", "b"]}
    run.stage("rm").mkdir()
    rows = [{"split": "held_out", "prompt": f"p{n}", "ranks": [0, n % 2], **row} for n in range(6)]
    write_rankings(run.stage("rm"), [*rows, {"split": "train", "prompt": "q", "ranks": [0, 1], **row}], {})
    words = ["rm.rankings.labeller=warmth", "rm.rankings.rollout.max_new_tokens=8"]
    config = load_experiment(trained_run / "config.yaml", words)
    assert [one["prompt"] for one in rankings_of(run, config, print)[1]] == ["p1", "p3", "p5"]


@pytest.mark.parametrize("status", [None, "running"])
def test_without_a_finished_policy_nothing_is_written(trained_run, tmp_path, status) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained_run / "rm", run_dir / "rm")
    shutil.copy(trained_run / "config.yaml", run_dir)
    if status:
        shutil.copytree(trained_run / "sft", run_dir / "sft")
        manifest = read_manifest(run_dir / "sft/manifest.json")
        assert manifest is not None
        manifest.model_copy(update={"status": status}).write(run_dir / "sft/manifest.json")
    with pytest.raises(UserError, match="stage sft has not finished"):
        checking.rm(checking.CheckOptions(run_dir=run_dir, rows=12))
    assert not (run_dir / "check").exists()


def test_a_model_that_has_learned_already_is_refused(trained_run) -> None:
    config = load_experiment(trained_run / "config.yaml", ["rm.from=/judge", "rm.max_steps=0"])
    with pytest.raises(UserError, match=r"rm.from: the reward model starts from one that has learned"):
        rankings_of(RunDirectory(trained_run), config, print)


def test_what_is_changed() -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [0, 1, 2], "scores": [3, 2, 1]}
    (negated,) = NEGATED.change([row], Random(0))
    assert negated["ranks"] == [2, 1, 0] and negated["scores"] == [-3, -2, -1]
    (changed,) = SHUFFLED.change([row], Random(1))
    assert [3 - rank for rank in changed["ranks"]] == changed["scores"]
    shuffled = [SHUFFLED.change([row], Random(seed))[0]["ranks"] for seed in range(600)]
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        assert 60 < shuffled.count(order) < 150  # of 100 expected


@pytest.mark.parametrize(
    ("variant", "low", "high", "words"),
    [
        (SHUFFLED, 0.45, 0.55, "as it should be"),
        (SHUFFLED, 0.52, 0.7, "not as it should be (0.5: nothing to learn)"),
        (SHUFFLED, 0.3, 0.48, "not as it should be (0.5: nothing to learn)"),
        (SHUFFLED, 0.2, 0.8, "too few prompts to tell"),
        (NEGATED, 0.2, 0.3, "as it should be"),
        (NEGATED, 0.3, 0.6, "too few prompts to tell"),
        (NEGATED, 0.52, 0.6, "not as it should be (below 0.5: the opposite)"),
        (NEGATED, 0.48, 0.53, "not as it should be (below 0.5: the opposite)"),
        (WHOLE, 0.52, 0.9, "as it should be"),
        (WHOLE, 0.4, 0.7, "too few prompts to tell"),
        (WHOLE, 0.47, 0.53, "not as it should be (above 0.5)"),
        (WHOLE, 0.3, 0.4, "not as it should be (above 0.5)"),
    ],
)
def test_the_verdict(variant, low, high, words) -> None:
    known = {"value": (low + high) / 2, "low": low, "high": high, "n": 100}
    assert verdict(variant, known) == words
    assert verdict(variant, known | {"n": 9}) == "too few prompts to tell"


def scored(number: int, rewards: list[float]) -> dict:
    names = {"prompt": f"p{number}", "answers": ["a", "b"], "ranks": [0, 1], "labels": None}
    return names | {"rewards": rewards, "lengths": [1, 1], "nats": [], "words": []}


def test_the_gain_is_paired_by_prompt() -> None:
    """Half of the prompts are lost by both models, so that the gain is surer than either accuracy."""
    fewer = [scored(number, [0.0, 1.0]) for number in range(40)]
    rows = [scored(number, [float(number % 2), 0.5]) for number in range(40)]
    gain = gain_of(rows, fewer[::-1])
    assert gain is not None and gain["value"] == 0.5 and gain["n"] == 40
    assert gain_of(rows, rows[::-1]) == {"value": 0, "low": 0, "high": 0, "n": 40}
    assert gain_of(rows, fewer[1:]) is None


def copied(trained_run, run_dir):
    """The run with its policy and reward model in a folder of its own."""
    for name in ("sft", "rm"):
        shutil.copytree(trained_run / name, run_dir / name)
    shutil.copy(trained_run / "config.yaml", run_dir)
    return run_dir


def test_a_failed_check_ends_with_status_1(trained_run, tmp_path, monkeypatch) -> None:
    """Shuffled rankings that the model learns from, and with other settings than the run's."""
    run_dir = copied(trained_run, tmp_path / "run")

    def train(folder, config, run) -> int:
        shutil.copytree(run_dir / "rm", folder / "rm")
        manifest = read_manifest(folder / "rm/manifest.json")
        assert manifest is not None
        figures = {"accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8, "accuracy_n": 100}
        manifest.model_copy(update={"metrics": figures}).write(folder / "rm/manifest.json")
        return 0

    monkeypatch.setattr(checking, "_train", train)
    options = checking.CheckOptions(run_dir=run_dir, curve=True, overrides=["rm.learning_rate=0.1"])
    assert checking.rm(options) == 1
    check = read_check(run_dir)
    assert check is not None and check.reward_model == "" and check.gain is not None
    assert check.gain.value == 0 and check.prompts == check.prompts_of_run
    assert [one.verdict[:6] for one in check.variants.values()] == ["", "", "as it ", "not as", "not as"]


def test_the_command_trains_each_variant_and_writes_the_table(trained_run, tmp_path, monkeypatch) -> None:
    """Stage by stage as the launcher starts them, without its start-up time."""
    run_dir = copied(trained_run, tmp_path / "run")

    def train(request, launch, plans) -> int:
        assert [plan.action for plan in plans] == ["run"]
        return start_warm([RUN_STAGE, "--stage", "rm", *launch.arguments]).returncode

    monkeypatch.setattr(checking, "run_all", train)
    assert checking.rm(checking.CheckOptions(run_dir=run_dir, rows=12)) == 0
    check, manifest = read_check(run_dir), read_manifest(run_dir / "rm/manifest.json")
    assert check is not None and manifest is not None and manifest.output is not None
    assert check.reward_model == manifest.output.sha256 and check.gain is None
    assert check.prompts == 12 < check.prompts_of_run
    assert set(check.variants) == {"all", "shuffled", "negated"}
    for one in check.variants.values():
        accuracy = one.accuracy
        assert accuracy.n == 8 and 0 <= accuracy.low <= accuracy.value <= accuracy.high
        assert one.verdict == "too few prompts to tell"
    # Opposite labels: what the one gets right, the other tends to get wrong.
    assert check.variants["negated"].accuracy.value <= check.variants["all"].accuracy.value
    page = write_report(run_dir).with_name("report.md").read_text()
    assert "Does it learn from the labels? Too few prompts to tell" in page
