"""Batch arithmetic: a stage's sizes on a number of ranks. It only counts the rows of data files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from configs.errors import UserError
from configs.schema import STAGES, Epochs, Experiment, Source, Stage, Training
from data.storage.source_digest import is_pattern, matches

LINE = 2**20  # bytes of a first row, at most


@dataclass(frozen=True)
class Batches:
    """One stage's sizes.

    Attributes:
        steps: optimizer steps of the whole stage; None if unknown.
        about: `steps` is an estimate, since rows are not read yet.
        sequences: sequences that one optimizer step trains on, over all ranks.
        micro_batches: forward and backward passes of one rank per optimizer step.
        micro_batch: sequences in one such pass.
        tokens: tokens of one such pass at most, padding included.
        note: a remark for the user.
    """

    stage: Stage
    steps: int | None
    about: bool
    sequences: int
    micro_batches: int
    micro_batch: int
    tokens: int
    note: str = ""


def training(config: Experiment, stage: Stage) -> Training:
    """The section of a stage that trains."""
    section: Training = getattr(config, stage)
    return section


def check_batches(config: Experiment, stage: Stage, world: int) -> None:
    """Every rank takes an equal share of each batch.

    Raises:
        UserError: one line for each global size that cannot be divided by the number of ranks.
    """
    if stage != "best" and (faults := list(_unequal_shares(config, stage, world))):
        raise UserError("\n".join(faults))


def _unequal_shares(config: Experiment, stage: Stage, world: int) -> Iterator[str]:
    ppo, sizes = config.ppo, {f"{stage}.batch_size": training(config, stage).batch_size}
    if stage == "ppo" and ppo.ptx_coef and ppo.ptx_batch_size:
        sizes["ppo.ptx_batch_size"] = ppo.ptx_batch_size
    for key, size in sizes.items():
        if size % world:
            yield (
                f"{key}: {size} cannot be shared equally by {world} ranks. Choose a multiple of {world}, "
                f"such as {-(-size // world) * world}, or another number of ranks."
            )
    minibatch = ppo.batch_size // ppo.minibatches
    if stage == "ppo" and minibatch % world:
        yield (
            f"ppo.minibatches: a minibatch of {minibatch} (batch_size {ppo.batch_size} / minibatches "
            f"{ppo.minibatches}) cannot be shared equally by {world} ranks. Choose sizes whose "
            f"quotient is a multiple of {world}."
        )


def batches(config: Experiment, stage: Stage, world: int) -> Batches:
    """The arithmetic of `stage` on `world` ranks; `check_batches` must have passed."""
    if stage == "ppo":
        return _ppo(config, world)
    section = config.sft if stage == "sft" else config.rm
    completions = completions_of(config) if stage == "rm" else 1
    at_once = max(1, section.micro_batch_size // completions)
    share = section.batch_size // world
    steps, about = _steps(config, stage, section)
    return Batches(
        stage,
        steps,
        about,
        sequences=section.batch_size * completions,
        micro_batches=-(-share // at_once),
        micro_batch=min(share, at_once) * completions,
        tokens=min(share, at_once) * completions * config.data.max_length,
        note=_ranking_note(config) if stage == "rm" else "",
    )


def _ppo(config: Experiment, world: int) -> Batches:
    ppo = config.ppo
    minibatch = ppo.batch_size // ppo.minibatches
    micro = min(minibatch // world, ppo.micro_batch_size)
    return Batches(
        "ppo",
        ppo.iterations * ppo.epochs * ppo.minibatches,
        about=False,
        sequences=minibatch,
        micro_batches=-(-(minibatch // world) // micro),
        micro_batch=micro,
        tokens=micro * config.data.max_length,
        note=f"{ppo.iterations} rollouts of {ppo.batch_size}, {ppo.epochs} x {ppo.minibatches} steps on each",
    )


def _ranking_note(config: Experiment) -> str:
    rankings = config.rm.rankings
    if rankings.labeller == "file":
        return f"counted for {completions_of(config)} completions a prompt; the data decide"
    ranked = f"ranked by {rankings.labelled_by}"
    return f"{config.rm.batch_size} prompts of {rankings.completions} completions each, {ranked}"


def _steps(config: Experiment, stage: Stage, section: Epochs) -> tuple[int | None, bool]:
    """Steps, and whether that is an estimate."""
    rows = _training_rows(config, stage)
    if rows is None:
        return section.max_steps, True
    steps = max(1, round(section.epochs * rows / section.batch_size))
    if section.max_steps is not None and section.max_steps <= steps:
        return section.max_steps, False
    return steps, True


def _training_rows(config: Experiment, stage: Stage) -> int | None:
    """Estimated number of training rows, from a count of lines; None if it cannot be estimated."""
    if stage == "sft" and config.sft.packing:
        return None  # the number of packed rows depends on tokens
    counts = [_rows_of_source(config, stage, source) for source in config.data.sources(stage)]
    if stage == "rm":  # the held-out ones among them count, too: it is an estimate
        counts += [_rows(file) for file in config.rm.rankings.earlier]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _rows_of_source(config: Experiment, stage: Stage, source: Source) -> int | None:
    """Estimated number of training rows of one source, as often as its weight says."""
    rows, shares = _rows(source.path), config.data.shares
    if rows is None:
        return None
    readers = config.data.readers(source)
    if len(readers) > 1:
        all_shares, used_shares = sum(map(shares.of, STAGES)), sum(map(shares.of, readers))
        rows = round(rows * shares.of(stage) * all_shares / (used_shares or 1))
    rows = min(rows, source.limit or rows)
    return round(source.weight * max(0, rows - source.held_out_of(rows)))


def _rows(path: str) -> int | None:
    """Rows of JSONL, CSV, TSV or Parquet files, more if cells have line breaks; None of other sources."""
    counts = [_count(file) for file in (matches(path) if is_pattern(path) else [Path(path)])]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _count(file: Path) -> int | None:
    if file.suffix not in (".jsonl", ".csv", ".tsv", ".parquet") or not os.path.isfile(file):
        return None
    if file.suffix == ".parquet":
        with suppress(OSError, ValueError):  # it is damaged, which the check of the data says
            return int(pq.read_metadata(file).num_rows)
        return None
    with file.open("rb") as stream:
        lines = sum(1 for line in stream if line.strip())
    return lines if file.suffix == ".jsonl" else max(0, lines - 1)


def completions_of(config: Experiment) -> int:
    """Completions of a ranking: the labeller's number, or that of the files' first rows; at least 2."""
    rankings = config.rm.rankings
    if rankings.labeller != "file":
        return rankings.completions
    return max(2, *(_listed(Path(source.path)) for source in config.data.sources("rm")))


def _listed(file: Path) -> int:
    """Completions of the first row of a file; 0 if it has no list of them."""
    with suppress(OSError, ValueError):
        if file.suffix == ".jsonl" and file.is_file():
            with file.open("rb") as stream:
                row = json.loads(stream.readline(LINE))
            listed = row.get("completions") if isinstance(row, dict) else None
            return len(listed) if isinstance(listed, list) else 0
    return 0
