"""`tristage evaluate` refuses what it cannot use before it samples, and keeps and describes its answers."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest

from apps.evaluate import measure as measuring
from apps.evaluate.answers import Kept, _kept
from apps.evaluate.candidates import Candidate, parse_candidates
from apps.evaluate.judges import Judge, ScoringJudge, open_judges
from apps.evaluate.measure import Comparison, Material, measure
from apps.evaluate.output import build_page, write_answers
from apps.evaluate.prompts import training_demonstrations
from apps.trained_run import TrainedRun, chosen_adapters, load_policies, open_run, reward_scores, this_process
from configs.errors import UserError
from data.batches import tokenize
from pipeline.reporting.folder import check_writable
from pipeline.reporting.page import render
from stages.maths.statistics import wins
from tests.contract.bad_inputs.entry import check_message, tristage
from tests.support.chat_stub import chat_stub


@pytest.fixture(scope="module")
def run(trained_run: Path) -> TrainedRun:
    return open_run(trained_run)


def evaluate(run: TrainedRun, names: str, judges: list[Judge], material: Material, **options) -> Comparison:
    return measure(run, parse_candidates(names.split(",")), judges, lambda line: None, material, **options)


def endpoint(run: TrainedRun, folder: Path, url: str) -> list[Judge]:
    (folder / "judge.yaml").write_text(f"url: {url}\nmodel: m\nretries: 0\n")
    return open_judges(run, [str(folder / "judge.yaml")], folder)


@pytest.mark.parametrize("mistake", ["text", "judge", "shots"])
def test_a_mistake_is_told_before_anything_is_sampled(run, tmp_path, monkeypatch, mistake) -> None:
    def sample(*_: object) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(measuring, "answer", sample)
    judges, names, material = open_judges(run, ["warmth"], tmp_path), "base,sft", Material(number=2)
    if mistake == "text":
        material, message = Material(number=2, text=tmp_path / "none.txt"), "--text: .*none.txt"
    elif mistake == "judge":
        judges, message = endpoint(run, tmp_path, "http://127.0.0.1:9/v1/chat/completions"), "gave no verdict"
    else:
        names, message = "base,base+999", r"base\+999: data.sft has .* demonstrations"
    with pytest.raises(UserError, match=message):
        evaluate(run, names, judges, material)


def test_the_answers_are_kept_if_a_judge_fails(run, tmp_path) -> None:
    def fail(prompts, answers):
        raise UserError("the judge is gone")

    keep = partial(write_answers, tmp_path / "out", run.manifests)
    with pytest.raises(UserError, match="the judge is gone"):
        evaluate(run, "base,sft", [ScoringJudge("mine", fail)], Material(number=2), keep=keep)
    rows = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"prompt", "base", "sft"}] * 2


@pytest.mark.parametrize("command", ["evaluate", "evaluate rm", "compare", "export"])
@pytest.mark.parametrize("place", ["a file", "below a file", "below a link to nowhere"])
def test_a_folder_that_cannot_be_is_told_before_the_work(trained_run, tmp_path, command, place) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    out = tmp_path / {"a file": "file", "below a file": "file/out"}.get(place, "link/out")
    words = {
        "evaluate": ["--run-dir", trained_run],
        "evaluate rm": ["--run-dir", trained_run, "--data", "data/samples/tiny.jsonl"],
        "compare": [trained_run, tmp_path / "other"],
        "export": ["--run-dir", trained_run, "--stage", "sft", "--format", "adapter"],
    }[command]
    status, _, error = tristage(*command.split(), *words, "--out", out)
    assert status == 2
    check_message(error, str(out if command != "export" else tmp_path), "--out")


def test_nothing_is_left_where_a_folder_could_be(tmp_path) -> None:
    check_writable(tmp_path / "a/b")
    assert os.listdir(tmp_path) == []


def test_what_counts_of_a_response_to_demonstrations(tiny_tokenizer) -> None:
    """Its first part: that has its own length, and it has ended even if the response goes on."""
    shown, plain = Candidate("base+1", "base", shots=1), Candidate("base", "base")
    text = "He ran.\n\nThe soup was cold. She"
    ids = tiny_tokenizer(text)["input_ids"]
    own = len(tiny_tokenizer("He ran.")["input_ids"])
    assert _kept(shown, ids, text, tiny_tokenizer, chat=False) == Kept("He ran.", own + 1, True)
    assert _kept(shown, ids[:own], "He ran.", tiny_tokenizer, chat=False) == Kept("He ran.", own, False)
    assert _kept(shown, ids, text, tiny_tokenizer, chat=True) == Kept(text, len(ids), False)
    assert _kept(plain, ids, text, tiny_tokenizer, chat=False) == Kept(text, len(ids), False)
    thinks = Candidate("base+cot", "base", reasons=True)
    said = "One and one. The answer is two. Q: Next?"
    kept = _kept(thinks, tiny_tokenizer(said)["input_ids"], said, tiny_tokenizer, chat=False)
    assert kept == Kept("two", len(tiny_tokenizer("two")["input_ids"]) + 1, True)


def test_an_answer_that_was_cut_is_scored_without_an_end(run, tmp_path) -> None:
    result = evaluate(run, "base+1,base", open_judges(run, ["rm"], tmp_path), Material(number=4))
    shown = result.answers["base+1"]
    assert not all(shown.ended)  # 8 tokens are few
    policies = load_policies(run, chosen_adapters(run, [], reward=True), this_process())
    pairs = [
        (prompt, tokenize.continuation(prompt, text, run.config.data))
        for prompt, text in zip(result.prompts, shown.texts, strict=True)
    ]
    assert shown.rewards == pytest.approx(
        reward_scores(policies, pairs, run.config.data, shown.ended), abs=1e-4
    )
    assert shown.rewards != pytest.approx(reward_scores(policies, pairs, run.config.data), abs=1e-4)


def test_categories_have_win_rates_if_the_judge_only_compares(run, tmp_path) -> None:
    file = tmp_path / "mine.json"
    words = ("apple", "axe", "bee", "boat")
    file.write_text(json.dumps([{"prompt": f"say {word}", "category": word[0]} for word in words]))
    with chat_stub(lambda body: "A") as stub:
        judges = endpoint(run, tmp_path, stub.url)
        result = evaluate(run, "base,sft", judges, Material(file))
    assert {name: list(of_each) for name, of_each in result.by_category.items()} == {
        "a": ["sft"],
        "b": ["sft"],
    }
    assert result.by_category["a"]["sft"]["score"] == 0.5  # the first place, in both orders
    assert "By category: win rate against base, by judge." in result.notes


def test_prompts_that_were_trained_on_are_told_and_are_no_demonstrations(run, tmp_path) -> None:
    rows = run.rows("sft", "demonstrations").train[:2]
    file = tmp_path / "mine.jsonl"
    written = [*({"prompt": row["prompt"]} for row in rows), {"prompt": "A prompt of my own."}]
    file.write_text("".join(json.dumps(row) + "\n" for row in written))
    result = evaluate(run, "base+1,sft", open_judges(run, ["warmth"], tmp_path), Material(file))
    assert "The run was trained on 2 of the 3 prompts of mine.jsonl: they are no test." in result.notes
    asked = [tokenize.Prompt(row["prompt"], "", []) for row in rows]
    without, everything = training_demonstrations(run, asked), training_demonstrations(run, [])
    assert len(everything) - len(without) >= 2
    assert not any(row["prompt"] in [one.prompt for one in asked] for row in without)


def test_the_perplexity_of_a_text_is_weighted_and_tells_what_it_read(run, tmp_path, tiny_tokenizer) -> None:
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    tokens = len(tiny_tokenizer(file.read_text())["input_ids"])
    judges = open_judges(run, ["warmth"], tmp_path)
    result = evaluate(run, "base,sft", judges, Material(number=2, text=file))
    metrics = result.metrics["base"]
    assert metrics["perplexity_low"] <= metrics["perplexity"] <= metrics["perplexity_high"]
    assert metrics["perplexity_n"] == -(-tokens // 256)
    assert f"Perplexity: of the first {tokens:,} tokens of text.txt. Each window of 256" in " ".join(
        result.notes
    )
    assert f"{metrics['perplexity_low']:.0f}"[:2] in render(build_page(result, "page"), "html")


def test_equal_answers_tie_by_the_reward_model(run, tmp_path) -> None:
    (judge,) = open_judges(run, ["rm"], tmp_path)
    result = evaluate(run, "sft,ppo", [judge], Material(number=4))
    ours, theirs = result.answers["sft"], result.answers["ppo"]
    theirs.texts[0], theirs.rewards[0] = ours.texts[0], ours.rewards[0] + 1e-6
    won = [one for one, *_ in judge.compare(result.prompts, ours, theirs)]
    assert won[0] == 0.5 and won[1:] == wins(ours.rewards[1:], theirs.rewards[1:])
