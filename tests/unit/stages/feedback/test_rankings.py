"""Collected rankings: best first, with ties, and read back with any text in the answers."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.schema import Rollout, Source
from data.batches.tokenize import Prompt
from data.batches.tokenize import rankings as tokenize_rankings
from data.examples import Examples
from data.sources.loading import load_rows
from data.storage.files import json_lines
from data.storage.sealed_files import write_sealed
from stages.context import Context
from stages.distributed.ranks import Ranks
from stages.feedback import rankings
from stages.feedback.judgements import Judgement
from stages.feedback.rankers import Label, ScoringRanker
from stages.feedback.rankings import read_collected_rankings, read_label_metrics
from stages.sampling.answers import sample_answers, with_texts
from stages.sampling.decoding import Response
from stages.sampling.sampler import Sampler
from tests.contract.bad_inputs.entry import check_message, flip
from tests.support.roles import CPU
from tests.unit.stages.feedback.test_evaluation import context_in

NOTHING: Any = None  # for unused arguments
SAMPLER = Sampler(NOTHING, NOTHING, Ranks(0, 1, CPU), Rollout(), NOTHING)


def resuming(folder) -> Context:
    return replace(context_in(folder), stage="rm", resume=True)


def row(split: str, answers: list[str], ranks: list[int]) -> dict:
    return {
        "split": split,
        "prompt": "p",
        "completions": answers,
        "ranks": ranks,
        "scores": [0.0] * len(ranks),
    }


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\r", "\n", "\x1c"])
def test_answers_may_hold_any_character(character, tmp_path):
    rows = [row("train", [f"a{character}b", "c"], [0, 1]), row("held_out", ["d", f"{character}e"], [0, 1])]
    rankings.write_rankings(tmp_path, rows, {})
    assert read_collected_rankings(resuming(tmp_path), record_samples=False) == ([rows[0]], [rows[1]])


def test_the_file_serves_as_data_of_another_run(tmp_path):
    """Also if an answer ended at once. Nothing of it is skipped but the tokens and the split."""
    rows = [
        {**row("train", ["a", ""], [0, 1]), "completion_ids": [[5, 2], [2]]},
        {**row("held_out", ["c", "b", "d"], [0, 1, 1]), "completion_ids": [[7, 2], [6, 2], [8, 2]]},
    ]
    rows[1]["prompt"] = [{"role": "user", "content": "q"}]
    rankings.write_rankings(tmp_path, rows, {})
    notes: list[str] = []
    source = Source(path=str(tmp_path / "rankings.jsonl"))
    first, second = load_rows(source, "rankings", notes.append).rows
    assert (first["prompt"], first["completions"], first["ranks"]) == ("p", ["a", ""], [0, 1])
    answers = [message["content"] for (message,) in second["completions"]]
    assert (second["prompt"], answers, second["ranks"]) == (rows[1]["prompt"], ["c", "b", "d"], [0, 1, 1])
    assert [" 2 rows have `split`, which is ignored: " in note for note in notes] == [True]


def test_rankings_of_ties_alone_are_left_out(tmp_path):
    useful, useless = row("train", ["a", "b"], [0, 1]), row("train", ["a", "a"], [0, 0])
    rankings.write_rankings(tmp_path, [useless, useful], {})
    assert read_collected_rankings(resuming(tmp_path), record_samples=False) == ([useful], [])


def test_what_a_stage_learned_is_without_ties_and_with_earlier_rounds(tmp_path):
    """`check rm` changes these, and `evaluate rm` leaves their prompts out."""
    useful, useless = row("train", ["a", "b"], [0, 1]), row("train", ["a", "a"], [0, 0]) | {"prompt": "q"}
    before = [one | {"prompt": "r"} for one in (row("held_out", ["a", "b"], [0, 1]), useless)]
    (tmp_path / "before.jsonl").write_text(json_lines(before))
    rankings.write_rankings(tmp_path, [useless, useful], {})
    config = resuming(tmp_path).config
    earlier = config.rm.rankings.model_copy(update={"earlier": (str(tmp_path / "before.jsonl"),)})
    later = config.model_copy(update={"rm": config.rm.model_copy(update={"rankings": earlier})})
    assert rankings.learned_rankings(tmp_path, config) == ([useful], [])
    assert rankings.learned_rankings(tmp_path, later) == ([useful], before[:1])
    (tmp_path / "rankings.jsonl").write_text(json_lines([useful]))
    with pytest.raises(UserError, match=r"rankings.jsonl: damaged"):
        rankings.learned_rankings(tmp_path, config)


def test_a_ranking_counts_as_often_as_the_weight_of_its_source_says(tmp_path):
    learned, held_out = (
        row("train", ["a", "b"], [0, 1]),
        row("held_out", ["a", "b"], [0, 1]) | {"prompt": "q"},
    )
    rankings.write_rankings(tmp_path, [learned, held_out], {})
    context = resuming(tmp_path)
    source = context.config.data.sources("rm")[0].model_copy(update={"weight": 2.0})
    data = context.config.data.model_copy(update={"rm": source})
    twice = replace(context, config=context.config.model_copy(update={"data": data}))
    assert read_collected_rankings(twice, record_samples=False) == ([learned] * 2, [held_out])
    assert rankings.learned_rankings(tmp_path, twice.config) == ([learned] * 2, [held_out])


def test_an_attempt_without_a_checkpoint_records_samples_again(tmp_path, monkeypatch):
    """A kill between collection and first checkpoint loses the samples that the killed attempt recorded."""
    rows = [row("train", [f"a{number}", "b"], [0, 1]) for number in range(40)]
    rankings.write_rankings(tmp_path, rows, {})
    recorded = []
    context = resuming(tmp_path)
    monkeypatch.setattr(context.tracker, "samples", lambda samples, step: recorded.append((step, samples)))
    read_collected_rankings(context, record_samples=False)
    assert recorded == []
    read_collected_rankings(context, record_samples=True)
    shown = [{name: row[name] for name in rankings.READABLE if name in row} for row in rows[::2]]
    assert recorded == [(0, shown)]


@pytest.mark.parametrize("held_out", [[0, 0], [0, 1]])
def test_training_rankings_that_all_tie_are_an_error(held_out, tmp_path):
    rows = [row("train", ["a", "a"], [0, 0])] * 3 + [row("held_out", ["a", "b"], held_out)]
    rankings.write_rankings(tmp_path, rows, {})
    with pytest.raises(UserError) as caught:
        read_collected_rankings(resuming(tmp_path), record_samples=False)
    check_message(
        str(caught.value),
        f"{tmp_path}/rankings.jsonl: no training ranking prefers one answer to another",
        "Name another rm.rankings.labeller",
    )


def test_writing_leaves_nothing_else_behind(tmp_path):
    rankings.write_rankings(tmp_path, [row("train", ["é", "b"], [0, 1])], {})
    assert {path.name for path in tmp_path.iterdir()} == {"rankings.jsonl", "rankings.sha256"}
    assert json.loads((tmp_path / "rankings.jsonl").read_text(encoding="utf-8"))["completions"] == ["é", "b"]


def scoring(score) -> ScoringRanker:
    """Ranks answers by `score` of their text."""
    return ScoringRanker(lambda prompts, answers: [Judgement(score(text)) for text in answers])


class Fixed:
    """A ranker that gives labels which are known before."""

    def __init__(self, *labels: Label) -> None:
        self.labels = list(labels)

    def rank(self, prompts, answers) -> list[Label]:
        return self.labels

    def metrics(self) -> dict[str, float]:
        return {"judge_requests": 3.0}

    def notes(self) -> list[str]:
        return ["a note"]


PROMPTS = [Prompt("one", "one", [5]), Prompt("two", "two", [6])]


def ranked(folder, monkeypatch, ranker, answers) -> list[dict]:
    """The rows of four answers to each of two prompts; the ids of an answer are its place."""
    monkeypatch.setattr(Sampler, "decode", lambda _, ids: [answers[i] for (i,) in ids])
    ids = [[[place] for place in places] for places in (range(4), range(4, 8))]
    sampled = with_texts(resuming(folder).config.data, SAMPLER, PROMPTS, ids)
    labels = ranker.rank([one.prompt.text for one in sampled], [one.texts for one in sampled])
    return [rankings.ranked_row(one, label) for one, label in zip(sampled, labels, strict=True)]


def test_samples_are_ranked_best_first_with_ties(tmp_path, monkeypatch):
    # K = 4 answers to each of two prompts, in the order in which they were sampled
    answers = ["It rains.", "great", "It rains.", "Terrible.", "fine", "bad", "great", "good"]
    scores = {"It rains.": 0.0, "great": 3.0, "Terrible.": -2.0, "fine": 1.0, "bad": -1.0, "good": 2.0}
    first, second = ranked(tmp_path, monkeypatch, scoring(scores.__getitem__), answers)
    assert first == {
        "prompt": "one",
        "completions": [" great", " It rains.", " It rains.", " Terrible."],  # as they follow "one"
        "completion_ids": [[1], [2], [0], [3]],  # of those that tie, either may be first
        "ranks": [0, 1, 1, 2],
        "scores": [3.0, 0.0, 0.0, -2.0],
    }
    assert (second["completions"], second["ranks"]) == ([" great", " good", " fine", " bad"], [0, 1, 2, 3])


def test_a_ranker_may_have_no_scores_and_leave_answers_and_prompts_out(tmp_path, monkeypatch):
    labels = Label([1, None, 0, 2]), Label([None] * 4)
    first, second = ranked(tmp_path, monkeypatch, Fixed(*labels), list("abcdefgh"))
    assert second["ranks"] == []  # which `collect_rankings` leaves out
    assert first == {
        "prompt": "one",
        "completions": [" c", " a", " d"],
        "completion_ids": [[2], [0], [3]],
        "ranks": [0, 1, 2],
    }


class Drawn:
    """Stands in for sampling: the answers to a prompt are known, and calls are counted."""

    def __init__(self, monkeypatch) -> None:
        self.calls: list[tuple] = []
        monkeypatch.setattr(Sampler, "respond_on_all_ranks", self.respond)
        monkeypatch.setattr(Sampler, "decode", lambda _, ids: [str(each) for each in ids])
        monkeypatch.setattr(
            rankings, "read_examples", lambda *_, **__: Examples([PROMPTS[0]], [PROMPTS[1]], {})
        )
        monkeypatch.setattr(Context, "data", lambda *_: None)

    def respond(self, role, prompts, seeds, advance) -> list[Response]:
        self.calls.extend(zip(map(tuple, prompts), seeds, strict=True))
        return [Response([number, *prompt]) for number, prompt in enumerate(prompts)]


def test_samples_of_one_prompt_have_seeds_of_their_own(tmp_path, monkeypatch):
    drawn, data = Drawn(monkeypatch), resuming(tmp_path).config.data
    for part in (PROMPTS, PROMPTS[1:]):
        sample_answers(data, SAMPLER, "sft", part, 4, (0, "rankings"))
    together, alone = drawn.calls[:8], drawn.calls[8:]
    assert len(set(together)) == 8
    assert alone == together[4:]  # whatever other prompts there are


def test_a_prompt_that_repeats_is_ranked_once(tmp_path, monkeypatch):
    drawn = Drawn(monkeypatch)
    again = replace(PROMPTS[0], prompt=" one\n")  # whitespace does not tell prompts apart
    read = Examples([PROMPTS[0], again, PROMPTS[0]], [PROMPTS[1]] * 2, {})
    monkeypatch.setattr(rankings, "read_examples", lambda *_, **__: read)
    monkeypatch.setattr(rankings, "open_ranker", lambda _: Fixed(Label([0, 1, 1, 1])))
    rankings.collect_rankings(resuming(tmp_path), SAMPLER, "sft")
    train, held_out = read_collected_rankings(resuming(tmp_path), record_samples=False)
    assert (len(train), len(held_out), len(drawn.calls)) == (1, 1, 8)


class Late(Ranks):
    """A rank that looks when rank 0 has written its rankings already."""

    def broadcast(self, item: Any) -> Any:
        return False


def test_all_ranks_collect_if_rank_0_does(tmp_path):
    context = resuming(tmp_path)
    rankings.write_rankings(tmp_path, [row("train", ["a", "b"], [0, 1])], {})
    assert rankings.has_rankings(context)
    assert not rankings.has_rankings(replace(context, ranks=Late(1, 2, CPU)))


def test_samples_are_kept_until_they_are_ranked(tmp_path, monkeypatch):
    """A judge that was paid for sees the same answers after a kill, whatever a GPU would sample then."""
    drawn, seen = Drawn(monkeypatch), []

    class Killed(Fixed):
        def rank(self, prompts, answers):
            seen.append(answers)
            raise KeyboardInterrupt

    monkeypatch.setattr(rankings, "open_ranker", lambda _: Killed())
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            rankings.collect_rankings(resuming(tmp_path), SAMPLER, "sft")
    assert seen[0] == seen[1] and len(drawn.calls) == 8
    assert {path.name for path in tmp_path.iterdir()} == {"sampled.jsonl", "sampled.sha256"}
    monkeypatch.setattr(rankings, "open_ranker", lambda _: Fixed(Label([0, 1, 1, 1])))
    rankings.collect_rankings(resuming(tmp_path), SAMPLER, "sft")
    train, held_out = read_collected_rankings(resuming(tmp_path), record_samples=True)
    assert [row["completion_ids"][0] for row in (*train, *held_out)] == [[0, 5], [0, 6]]
    assert read_label_metrics(tmp_path) == {"judge_requests": 3.0}
    assert {path.name for path in tmp_path.iterdir()} == {"rankings.jsonl", "rankings.sha256", "labels.json"}
    assert len(drawn.calls) == 8


@pytest.mark.parametrize(
    ("train", "held_out"),
    [(PROMPTS[1:], []), (PROMPTS, []), ([PROMPTS[0]], [Prompt("other", "other", [7])])],
)
def test_samples_of_other_prompts_are_refused(train, held_out, tmp_path, monkeypatch):
    """A prompt that is gone would give each later one the answers of another."""
    drawn = Drawn(monkeypatch)
    monkeypatch.setattr(rankings, "open_ranker", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rankings.collect_rankings(resuming(tmp_path), SAMPLER, "sft")
    monkeypatch.setattr(rankings, "read_examples", lambda *_, **__: Examples(train, held_out, {}))
    with pytest.raises(UserError) as caught:
        rankings.collect_rankings(resuming(tmp_path), SAMPLER, "sft")
    check_message(str(caught.value), "stage rm: ", "not those on which it began", "--fresh")
    assert len(drawn.calls) == 8


def test_samples_of_an_earlier_version_are_taken_by_position(tmp_path, monkeypatch):
    drawn = Drawn(monkeypatch)
    rows = json_lines([{"completion_ids": [[place]] * 4} for place in (5, 6)])
    write_sealed(tmp_path / "sampled.jsonl", {"sampled.jsonl": rows})
    monkeypatch.setattr(rankings, "open_ranker", lambda _: Fixed(Label([0, 1, 1, 1])))
    rankings.collect_rankings(resuming(tmp_path), SAMPLER, "sft")
    train, held_out = read_collected_rankings(resuming(tmp_path), record_samples=False)
    assert [row["completion_ids"][0] for row in (*train, *held_out)] == [[5], [6]] and not drawn.calls


def test_damaged_samples_are_refused(tmp_path, monkeypatch):
    Drawn(monkeypatch)
    write_sealed(
        tmp_path / "sampled.jsonl", {"sampled.jsonl": json_lines([{"completion_ids": [[1]] * 4}] * 2)}
    )
    flip(tmp_path / "sampled.jsonl", 20)
    with pytest.raises(UserError, match=r"sampled.jsonl: damaged"):
        rankings.collect_rankings(resuming(tmp_path), SAMPLER, "sft")


def test_labellers_that_leave_nothing_are_an_error(tmp_path, monkeypatch):
    Drawn(monkeypatch)
    monkeypatch.setattr(rankings, "open_ranker", lambda _: Fixed(Label([None] * 4)))
    with pytest.raises(UserError) as caught:
        rankings.collect_rankings(resuming(tmp_path), SAMPLER, "sft")
    check_message(
        str(caught.value), "rm.rankings.labeller: ", "nothing to train on is left: a note. Name other"
    )


def test_reward_model_learns_from_the_tokens_that_were_sampled(tmp_path, tiny_tokenizer):
    """An answer that reached its limit has no end-of-turn token, and collecting it adds none."""
    end = tiny_tokenizer.eos_token_id
    sampled = [[40, 41, 42], [43, end], [44, 45, end], [46]]
    sampler = Sampler(NOTHING, tiny_tokenizer, Ranks(0, 1, CPU), Rollout(), NOTHING)
    data = resuming(tmp_path).config.data
    (answers,) = with_texts(data, sampler, PROMPTS[:1], [sampled])
    row = rankings.ranked_row(answers, Label([3, 2, 1, 0]))
    (ranking,), _ = tokenize_rankings([row], tiny_tokenizer, data)
    assert ranking.completion_ids == [[46], [44, 45, end], [43, end], [40, 41, 42]]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("rankings.jsonl", flip),
        ("rankings.jsonl", lambda file: os.truncate(file, 9)),
        ("rankings.sha256", flip),
        ("rankings.sha256", Path.unlink),
        ("labels.json", flip),
        ("labels.json", Path.unlink),
    ],
)
def test_rankings_that_are_not_those_collected_are_refused(name, damage, tmp_path):
    metrics = {"label_agreement": 0.5}
    rankings.write_rankings(tmp_path, [row("train", ["a", "b"], [0, 1])], metrics)
    damage(tmp_path / name)
    with pytest.raises(UserError, match="rankings"):
        read_collected_rankings(resuming(tmp_path), record_samples=False)
