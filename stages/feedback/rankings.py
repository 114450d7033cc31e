"""Collecting rankings: answers of the SFT policy, ranked by a labeller (Ouyang et al. 2022, section 3.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import UserError
from configs.schema import Data
from data.batches import tokenize
from data.batches.sampler import seed_from
from data.examples import read_examples
from data.storage.files import json_lines, read_json_lines, sha256, write_text
from stages.context import Context
from stages.feedback.labellers import labeller, ranks_of
from stages.sampling.sampler import Sampler

Row = dict[str, Any]
REMEDY = (
    "Restore the file, or start over with --fresh; for rankings of your own, data.rm.path names the file."
)
FILE = "rankings.jsonl"
SPLITS = ("train", "held_out")
READABLE = ("prompt", "completions", "ranks", "scores", "labeller")


def has_rankings(context: Context) -> bool:
    """Whether an earlier attempt at the stage collected the rankings, and this one resumes it."""
    return context.resume and (context.folder / FILE).exists()


def collect_rankings(context: Context, sampler: Sampler, role: str) -> None:
    """Rank samples of `role` for training and held-out prompts; write them to `folder/rankings.jsonl`."""
    config = context.config
    parts = read_examples(context.data("rm"), "prompts", tokenize.prompts, sampler.tokenizer)[:2]
    context.tracker.phase(
        f"rm: sampling {config.rm.rankings.completions} answers a prompt",
        sum(map(len, parts)) * config.rm.rankings.completions,
    )
    ranked = [
        {"split": split, **row}
        for split, prompts in zip(SPLITS, parts, strict=True)
        for row in _rank(context, sampler, role, prompts)
    ]
    if sampler.ranks.rank == 0:
        write_sealed(context.folder / FILE, ranked)
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
    if record_samples:
        shown = collected[:: max(1, len(collected) // 16)]
        context.tracker.samples([{name: row[name] for name in READABLE if name in row} for row in shown], 0)
    useful = [row for row in collected if max(row["ranks"]) > 0]
    tied = len(collected) - len(useful)
    context.tracker.note(f"{len(collected)} rankings in {FILE}; {tied} left out: all their answers tie")
    train, held_out = ([row for row in useful if row["split"] == split] for split in SPLITS)
    if collected and not train:
        raise UserError(
            f"{context.folder / FILE}: no training ranking prefers one answer to another: the labeller "
            f"{context.config.rm.rankings.labeller} gave all answers to each prompt one label. Name another "
            "rm.rankings.labeller, or raise rm.rankings.completions, and start over with --fresh."
        )
    return train, held_out


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
    asked = [prompt for prompt in prompts for _ in range(number)]
    ids = [prompt.prompt_ids for prompt in asked]
    seeds = [seed_from(seed, "rankings", i % number, prompt) for i, prompt in enumerate(ids)]
    sampled = [response.ids for response in sampler.respond_on_all_ranks(role, ids, seeds, advance)]
    texts = sampler.decode(sampled)
    completions = [
        tokenize.continuation(one.prompt, text, data) for one, text in zip(asked, texts, strict=True)
    ]
    return [
        Sampled(prompt, texts[i : i + number], completions[i : i + number], sampled[i : i + number])
        for prompt, i in zip(prompts, range(0, len(asked), number), strict=True)
    ]


def _rank(context: Context, sampler: Sampler, role: str, prompts: list[tokenize.Prompt]) -> list[Row]:
    """K samples to each prompt, best first, as text and as the tokens that were sampled."""
    rankings = context.config.rm.rankings
    label = labeller(rankings.labeller, "rm.rankings.labeller", sampler.ranks)
    data, number, advance = context.config.data, rankings.completions, context.tracker.advance
    sampled = sample_answers(data, sampler, role, prompts, number, context.seed, advance)
    asked = [one.prompt.text for one in sampled for _ in one.texts]
    judgements = iter(label(asked, [text for one in sampled for text in one.texts]))
    rows = []
    for one in sampled:
        given = [judgement.score for judgement in islice(judgements, len(one.texts))]
        ordered = sorted(zip(given, one.completions, one.ids, strict=True), reverse=True)
        scores, completions, completion_ids = (list(column) for column in zip(*ordered, strict=True))
        rows.append(
            {
                "prompt": one.prompt.prompt,
                "completions": completions,
                "completion_ids": completion_ids,
                "ranks": ranks_of(scores),
                "scores": scores,
            }
        )
    return rows


def write_sealed(file: Path, rows: list[Row]) -> None:
    """Write the SHA-256 of the coming file, in the format of `sha256sum`, and then the file with `rows`."""
    text = json_lines(rows)
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_text(file.with_suffix(".sha256"), f"{digest}  {file.name}\n")
    write_text(file, text)


def _read(file: Path) -> list[Row]:
    """The collected rankings; raises UserError if the file or one of its lines is damaged."""
    seal = file.with_suffix(".sha256")
    if not seal.is_file():
        raise UserError(f"{seal} is missing, so {file.name} cannot be checked. {REMEDY}")
    if seal.read_bytes() != f"{sha256(file)}  {file.name}\n".encode():
        raise UserError(f"{file}: damaged (its SHA-256 is not the one in {seal.name}). {REMEDY}")
    rows = read_json_lines(file, ["split", "prompt", "completions", "ranks"], remedy=REMEDY)
    for number, row in enumerate(rows, 1):
        ranks, completions = row["ranks"], row["completions"]
        lists = isinstance(ranks, list) and isinstance(completions, list)
        if not lists or len(ranks) != len(completions) or row["split"] not in SPLITS:
            raise UserError(
                f"{file}, line {number}: damaged (no ranking that this stage collected). {REMEDY}"
            )
    return rows
