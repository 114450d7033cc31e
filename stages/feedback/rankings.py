"""Collecting rankings: answers of the SFT policy, ranked by a labeller (Ouyang et al. 2022, section 3.4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import UserError
from configs.regular_file import read_regular_file
from configs.schema import Data
from data.batches import tokenize
from data.batches.sampler import seed_from
from data.examples import read_examples
from data.storage.files import json_lines, read_json_lines, sha256, write_text
from stages.context import Context
from stages.feedback.rankers import Label, open_ranker
from stages.sampling.sampler import Sampler

Row = dict[str, Any]
REMEDY = (
    "Restore the file, or start over with --fresh; for rankings of your own, data.rm.path names the file."
)
FILE = "rankings.jsonl"
SAMPLED = "sampled.jsonl"  # the answers, until they are ranked
METRICS = "labels.json"  # of the labeller
SPLITS = ("train", "held_out")
READABLE = ("prompt", "completions", "ranks", "scores", "labeller")


def has_rankings(context: Context) -> bool:
    """Whether an earlier attempt at the stage collected the rankings, and this one resumes it."""
    return context.resume and (context.folder / FILE).exists()


def collect_rankings(context: Context, sampler: Sampler, role: str) -> None:
    """Rank samples of `role` for training and held-out prompts; write them to `folder/rankings.jsonl`.

    The samples are on disk before they are ranked: after a kill, a judge that was paid for sees the same
    answers again. `folder/labels.json` has the labeller's metrics, if there are any.

    Raises:
        UserError: the labeller fails, or leaves nothing to train on.
    """
    parts = read_examples(context.data("rm"), "prompts", tokenize.prompts, sampler.tokenizer)[:2]
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
        write_sealed(context.folder / FILE, ranked, ranker.metrics())
    sampler.ranks.barrier()


def read_collected_rankings(context: Context, record_samples: bool) -> tuple[list[Row], list[Row]]:
    """Training and held-out rankings in `folder/rankings.jsonl`. Those whose answers all tie are left out.

    Args:
        record_samples: record some of them as samples of step 0.

    Raises:
        UserError: the file is not what this stage collected; its SHA-256 is in `folder/rankings.sha256`. Or
            all training rankings tie.
    """
    collected = _read(context.folder / FILE)
    if context.ranks.rank == 0:
        _remove_sealed(context.folder / SAMPLED)  # its answers are among the rankings
    if record_samples:
        shown = collected[:: max(1, len(collected) // 16)]
        samples = [{name: row[name] for name in READABLE if name in row} for row in shown]
        context.tracker.samples(samples, 0)
    useful = [row for row in collected if max(row["ranks"]) > 0]
    tied = len(collected) - len(useful)
    context.tracker.note(f"{len(collected)} rankings in {FILE}; {tied} left out: all their answers tie")
    train, held_out = ([row for row in useful if row["split"] == split] for split in SPLITS)
    if collected and not train:
        raise UserError(
            f"{context.folder / FILE}: no training ranking prefers one answer to another: the labeller "
            f"{context.config.rm.rankings.labelled_by} gave all answers to each prompt one label. Name "
            "another rm.rankings.labeller, or raise rm.rankings.completions, and start over with --fresh."
        )
    return train, held_out


def read_label_metrics(folder: Path) -> dict[str, float]:
    """The labeller's metrics of the rankings in `folder`, which `read_collected_rankings` has checked."""
    file = folder / METRICS
    metrics: dict[str, float] = json.loads(read_regular_file(file)) if file.exists() else {}
    return metrics


class Sampled(NamedTuple):
    """Answers of a policy to one prompt.

    Attributes:
        texts: as people read them.
        completions: as they stand after the prompt.
        ids: the tokens that were sampled.
    """

    prompt: tokenize.Prompt
    texts: list[str]
    completions: list[str]
    ids: list[list[int]]


def sample_answers(
    data: Data,
    sampler: Sampler,
    role: str,
    prompts: Sequence[tokenize.Prompt],
    number: int,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Sampled]:
    """Sample `number` answers of `role` to each prompt. The noise depends on seed, prompt and answer only."""
    ids = [prompt.prompt_ids for prompt in prompts for _ in range(number)]
    seeds = [seed_from(seed, "rankings", i % number, prompt) for i, prompt in enumerate(ids)]
    sampled = [response.ids for response in sampler.respond_on_all_ranks(role, ids, seeds, advance)]
    return _with_texts(data, sampler, prompts, [sampled[i : i + number] for i in range(0, len(ids), number)])


def _with_texts(
    data: Data, sampler: Sampler, prompts: Sequence[tokenize.Prompt], ids: Sequence[list[list[int]]]
) -> list[Sampled]:
    """The answers to each prompt by the tokens that were sampled."""
    texts = iter(sampler.decode([answer for answers in ids for answer in answers]))
    sampled = []
    for prompt, answers in zip(prompts, ids, strict=True):
        own = [next(texts) for _ in answers]
        completions = [tokenize.continuation(prompt.prompt, text, data) for text in own]
        sampled.append(Sampled(prompt, own, completions, answers))
    return sampled


def _sampled(
    context: Context, sampler: Sampler, role: str, parts: Sequence[Sequence[tokenize.Prompt]]
) -> list[list[Sampled]]:
    """K answers to the prompts of each split. They are read if an earlier attempt has sampled them."""
    file, number, data = context.folder / SAMPLED, context.config.rm.rankings.completions, context.config.data
    if sampler.ranks.broadcast(context.resume and file.exists()):
        ids = iter([row["completion_ids"] for row in _read_sealed(file, ["completion_ids"])])
        return [_with_texts(data, sampler, part, [next(ids) for _ in part]) for part in parts]
    advance = context.tracker.advance
    context.tracker.phase(f"rm: sampling {number} answers a prompt", sum(map(len, parts)) * number)
    sampled = [sample_answers(data, sampler, role, part, number, context.seed, advance) for part in parts]
    if sampler.ranks.rank == 0:
        write_sealed(file, [{"completion_ids": one.ids} for part in sampled for one in part])
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


def write_sealed(file: Path, rows: list[Row], metrics: dict[str, float] | None = None) -> None:
    """Write the SHA-256 of the coming files, in the format of `sha256sum`, and then the file with `rows`.

    Args:
        metrics: go into `labels.json` beside it, unless there are none.
    """
    texts = {METRICS: json.dumps(metrics)} if metrics else {}
    texts[file.name] = json_lines(rows)
    seals = [f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in texts.items()]
    write_text(file.with_suffix(".sha256"), "".join(seals))
    for name, text in texts.items():
        write_text(file.with_name(name), text)


def _remove_sealed(file: Path) -> None:
    for path in (file, file.with_suffix(".sha256")):
        path.unlink(missing_ok=True)


def _read(file: Path) -> list[Row]:
    """The collected rankings; raises UserError if the file or one of its lines is damaged."""
    rows = _read_sealed(file, ["split", "prompt", "completions", "ranks"])
    for number, row in enumerate(rows, 1):
        ranks, completions = row["ranks"], row["completions"]
        lists = isinstance(ranks, list) and isinstance(completions, list)
        if not lists or len(ranks) != len(completions) or row["split"] not in SPLITS:
            raise UserError(
                f"{file}, line {number}: damaged (no ranking that this stage collected). {REMEDY}"
            )
    return rows


def _read_sealed(file: Path, keys: Sequence[str]) -> list[Row]:
    """The rows of a file that `write_sealed` wrote; raises UserError if a file under its seal is damaged."""
    seal = file.with_suffix(".sha256")
    if not seal.is_file():
        raise UserError(f"{seal} is missing, so {file.name} cannot be checked. {REMEDY}")
    has_metrics = file.name == FILE and file.with_name(METRICS).is_file()
    sealed = [file.with_name(METRICS), file] if has_metrics else [file]
    if seal.read_bytes() != "".join(f"{sha256(path)}  {path.name}\n" for path in sealed).encode():
        names = " or ".join(path.name for path in reversed(sealed))
        raise UserError(f"{file.parent}: {names}: damaged (SHA-256 is not the one in {seal.name}). {REMEDY}")
    return read_json_lines(file, keys, remedy=REMEDY)
