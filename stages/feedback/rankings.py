"""Collecting rankings: answers of the SFT policy, ranked by a labeller (Ouyang et al. 2022, section 3.4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.regular_file import read_regular_file
from configs.schema import Experiment
from data.batches import tokenize
from data.examples import once_each, read_examples
from data.sources.collected_rankings import SPLITS, read_rankings, useful
from data.sources.mixture import repeated
from data.storage.files import json_lines, read_json_lines
from data.storage.sealed_files import check_sealed, remove_sealed, write_sealed
from stages.context import Context
from stages.feedback.earlier_rankings import with_earlier
from stages.feedback.rankers import Label, open_ranker
from stages.sampling.answers import Sampled, sample_answers, with_texts
from stages.sampling.sampler import Sampler
from stages.training.same_rows import other_rows

Row = dict[str, Any]
REMEDY = (
    "Restore the file, or start over with --fresh; for rankings of your own, data.rm.path names the file."
)
FILE = "rankings.jsonl"
SAMPLED = "sampled.jsonl"  # the answers, until they are ranked
METRICS = "labels.json"  # of the labeller
NOISE = "rankings"  # of the samples, which people may judge in the labeller's place
READABLE = ("prompt", "completions", "ranks", "scores", "labeller")


def has_rankings(context: Context) -> bool:
    """Whether an earlier attempt at the stage collected the rankings, and this one resumes it.

    Every rank must call: one that is late would find what rank 0 has written since.
    """
    found: bool = context.ranks.broadcast(context.resume and (context.folder / FILE).exists())
    return found


def collect_rankings(context: Context, sampler: Sampler, role: str) -> None:
    """Rank samples of `role` for training and held-out prompts; write them to `folder/rankings.jsonl`.

    The samples are on disk before they are ranked: after a kill, a judge that was paid for sees the same
    answers again. `folder/labels.json` has the labeller's metrics, if there are any.

    Raises:
        UserError: the labeller fails, or leaves nothing to train on.
    """
    read = read_examples(context.data("rm"), "prompts", tokenize.prompts, sampler.tokenizer, once=True)
    parts = [once_each(part, context.tracker.note) for part in (read.train, read.held_out)]
    sampled = _sampled(context, sampler, role, parts)
    ranker = open_ranker(context)
    ranked: list[Row] = []
    for split, answers in zip(SPLITS, sampled, strict=True):
        labels = ranker.rank([one.prompt.prompt for one in answers], [one.texts for one in answers])
        rows = [ranked_row(one, label) for one, label in zip(answers, labels, strict=True)]
        ranked += [{"split": split, **row} for row in rows if len(row["ranks"]) > 1]
        if not ranked:
            raise UserError(
                f"rm.rankings.labeller: {context.config.rm.rankings.labelled_by}: nothing to train on is "
                f"left: {ranker.notes()[0]}. Name other labellers, or raise rm.rankings.completions, and "
                "start over with --fresh."
            )
    if sampler.ranks.rank == 0:
        for note in ranker.notes():
            context.tracker.note(note)
        write_rankings(context.folder, ranked, ranker.metrics())
    sampler.ranks.barrier()


def read_collected_rankings(context: Context, record_samples: bool) -> tuple[list[Row], list[Row]]:
    """Training and held-out rankings in `folder/rankings.jsonl`. Those whose answers all tie are left out.

    Training rankings are there as often as the weight of their source says.

    Args:
        record_samples: record some of them as samples of step 0.

    Raises:
        UserError: the file is not what this stage collected; its SHA-256 is in `folder/rankings.sha256`. Or
            all training rankings tie.
    """
    collected = _sealed(context.folder)
    if context.ranks.rank == 0:
        remove_sealed(context.folder / SAMPLED)  # its answers are among the rankings
    if record_samples:
        shown = collected[:: max(1, len(collected) // 16)]
        samples = [{name: row[name] for name in READABLE if name in row} for row in shown]
        context.tracker.samples(samples, 0)
    train, held_out = _by_split(collected)
    tied = len(collected) - len(train) - len(held_out)
    context.tracker.note(f"{len(collected)} rankings in {FILE}; {tied} left out: all their answers tie")
    if collected and not train:
        raise UserError(
            f"{context.folder / FILE}: no training ranking prefers one answer to another: the labeller "
            f"{context.config.rm.rankings.labelled_by} gave all answers to each prompt one label. Name "
            "another rm.rankings.labeller, or raise rm.rankings.completions, and start over with --fresh."
        )
    weighed = repeated(context.config.data, "rm", train, context.config.seed)
    if len(weighed) > len(train):
        context.tracker.note(
            f"data.rm: {len(train):,} training rankings are {len(weighed):,}, by the weights of their sources"
        )
    return weighed, held_out


def learned_rankings(folder: Path, config: Experiment) -> tuple[list[Row], list[Row]]:
    """Training and held-out rankings that the stage in `folder` collected, and those of earlier rounds.

    They are what the stage trained on: rankings whose answers all tie are left out, and others are there as
    often as the weight of their source says.

    Raises:
        UserError: a file is not what a stage collected.
    """
    train, held_out = _by_split(_sealed(folder))
    train = repeated(config.data, "rm", train, config.seed)
    train, held_out, _ = with_earlier(train, held_out, config.rm.rankings.earlier)
    return train, held_out


def _sealed(folder: Path) -> list[Row]:
    check_sealed(folder / FILE, REMEDY)
    return read_rankings(folder / FILE, REMEDY)


def _by_split(collected: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Training and held-out rankings, without those whose answers all tie."""
    train, held_out = ([row for row in useful(collected) if row["split"] == split] for split in SPLITS)
    return train, held_out


def read_label_metrics(folder: Path) -> dict[str, float]:
    """The labeller's metrics of the rankings in `folder`, which `read_collected_rankings` has checked."""
    file = folder / METRICS
    metrics: dict[str, float] = json.loads(read_regular_file(file)) if file.exists() else {}
    return metrics


def _sampled(
    context: Context, sampler: Sampler, role: str, parts: Sequence[Sequence[tokenize.Prompt]]
) -> list[list[Sampled]]:
    """K answers to the prompts of each split. They are read if an earlier attempt has sampled them.

    Raises:
        UserError: it sampled answers to other prompts.
    """
    file, number, data = context.folder / SAMPLED, context.config.rm.rankings.completions, context.config.data
    asked = [
        {"split": split, "prompt": one.prompt}
        for split, part in zip(SPLITS, parts, strict=True)
        for one in part
    ]
    if sampler.ranks.broadcast(context.resume and file.exists()):
        check_sealed(file, REMEDY)
        rows = read_json_lines(file, ["completion_ids"], remedy=REMEDY)
        # A row of an earlier version does not say which prompt it answers.
        if len(rows) != len(asked) or any(
            row | one != one | row for row, one in zip(rows, asked, strict=True)
        ):
            raise other_rows(context)
        ids = iter([row["completion_ids"] for row in rows])
        return [with_texts(data, sampler, part, [next(ids) for _ in part]) for part in parts]
    advance = context.tracker.advance
    context.tracker.phase(f"rm: sampling {number} answers a prompt", sum(map(len, parts)) * number)
    noise = context.seed, NOISE
    sampled = [sample_answers(data, sampler, role, part, number, noise, advance) for part in parts]
    if sampler.ranks.rank == 0:
        answers = [one.ids for part in sampled for one in part]
        rows = [{**one, "completion_ids": ids} for one, ids in zip(asked, answers, strict=True)]
        write_sealed(file, {file.name: json_lines(rows)})
    return sampled


def ranked_row(sampled: Sampled, label: Label) -> Row:
    """Answers to a prompt with their ranks, best first, as text and as the tokens that were sampled."""
    ranks = {answer: rank for answer, rank in enumerate(label.ranks) if rank is not None}

    def place(answer: int) -> tuple[int, str, list[int]]:
        return -ranks[answer], sampled.completions[answer], sampled.ids[answer]

    order = sorted(ranks, key=place, reverse=True)
    row = {
        "prompt": sampled.prompt.prompt,
        "completions": [sampled.completions[answer] for answer in order],
        "completion_ids": [sampled.ids[answer] for answer in order],
        "ranks": [ranks[answer] for answer in order],
    }
    if sampled.prompt.source:
        row["source"] = sampled.prompt.source
    return row if label.scores is None else row | {"scores": [label.scores[answer] for answer in order]}


def write_rankings(folder: Path, rows: list[Row], metrics: dict[str, float]) -> None:
    """Write `rankings.jsonl` and, if there are any metrics of the labeller, `labels.json` under one seal."""
    texts = {METRICS: json.dumps(metrics)} if metrics else {}
    write_sealed(folder / FILE, texts | {FILE: json_lines(rows)})
