"""The share of padding in an epoch of an experiment: as it is, grouped by length, and packed.

python tests/benchmarks/padding.py configs/demo.yaml [sft.batch_size=16 ...]

It reads and tokenizes the training examples of SFT, and of the reward model if its file holds rankings. It
loads no model. Packed rows have data.max_length tokens. For rankings, they are what packing could save at
most: the stage does not pack rankings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from trl import pack_dataset

from configs.load import load_experiment
from configs.schema import Epochs, Experiment, Stage
from data.batches.sampler import Lengths
from data.batches.tokenize import TOKENIZE
from data.examples import StageData, kind_of, read_examples
from stages.preflight import main_source, tokenizer_of
from stages.training.padding import padding, padding_metrics


def lengths_of(config: Experiment, stage: Stage) -> list[int]:
    """Tokens of each training row: a prompt with its answer, or once with all of its answers."""
    _, kind, base = main_source(config, stage)
    tokenizer = tokenizer_of(config, stage, base)
    train, *_ = read_examples(StageData(config, stage, print), kind, TOKENIZE[kind], tokenizer)
    answers = [[row.completion_ids] if kind == "demonstrations" else row.completion_ids for row in train]
    return [len(row.prompt_ids) + sum(map(len, of)) for row, of in zip(train, answers, strict=True)]


def shares(lengths: Sequence[int], training: Epochs, at_once: int, room: int) -> dict[str, float]:
    """The share of padding by how batches are made.

    Args:
        at_once: rows in one forward.
        room: tokens of a packed row.
    """

    def of(batch: Sequence[int]) -> object:
        return padding(batch, at_once, 1, lambda length: [(length, 0)])

    grouped = padding_metrics(training, 0, lengths, lengths, Lengths(lengths), of)  # type: ignore[arg-type]
    rows = Dataset.from_list([{"input_ids": [0] * length} for length in lengths if length <= room])
    packed = pack_dataset(rows, room, strategy="bfd", map_kwargs={"batch_size": len(rows)})
    filled = [len(row["input_ids"]) for row in packed]
    of_packed = padding_metrics(training, 0, filled, filled, None, of)  # type: ignore[arg-type]
    return {"random": grouped["padding_plain"], "grouped": grouped["padding"], "packed": of_packed["padding"]}


def main() -> None:
    config = load_experiment(Path(sys.argv[1]), sys.argv[2:])
    for stage in ("sft", "rm"):
        if stage == "rm" and kind_of(config, stage) != "rankings":
            continue
        training: Epochs = config.sft if stage == "sft" else config.rm
        lengths = lengths_of(config, stage)
        completions = 1 if stage == "sft" else 2
        at_once = max(1, training.micro_batch_size // completions)
        found = shares(lengths, training, at_once, config.data.max_length)
        shown = ", ".join(f"{name} {share:.3f}" for name, share in found.items())
        print(f"{stage}: {len(lengths)} rows, {at_once} of {training.batch_size} in a forward: {shown}")


if __name__ == "__main__":
    main()
