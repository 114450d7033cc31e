"""The share of padding in an epoch of an experiment: as it is, grouped by length, and packed.

python tests/benchmarks/padding.py configs/demo.yaml [sft.batch_size=16 ...]

It reads and tokenizes the training examples of SFT, and of the reward model if its file holds rankings. It
loads no model. SFT packs rows of data.max_length tokens once; the reward model packs the rankings of a batch
into rows of its longest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from configs.load import load_experiment
from configs.schema import Epochs, Experiment, Stage
from data.batches.pack import level_rows, pack
from data.batches.sampler import Lengths
from data.batches.tokenize import TOKENIZE, Demonstration
from data.examples import StageData, kind_of, read_examples
from stages.maths.statistics import Mean
from stages.preflight import main_source, tokenizer_of
from stages.training.padding import Batching, forwards_of, padding, padding_metrics


def lengths_of(config: Experiment, stage: Stage) -> list[int]:
    """Tokens of each training row: a prompt with its answer, or once with all of its answers."""
    _, kind, base = main_source(config, stage)
    tokenizer = tokenizer_of(config, stage, base)
    train, *_ = read_examples(StageData(config, stage, print), kind, TOKENIZE[kind], tokenizer)
    answers = [[row.completion_ids] if kind == "demonstrations" else row.completion_ids for row in train]
    return [len(row.prompt_ids) + sum(map(len, of)) for row, of in zip(train, answers, strict=True)]


def shares(lengths: Sequence[int], training: Epochs, at_once: int, room: int | None) -> dict[str, float]:
    """The share of padding by how batches are made.

    Args:
        at_once: rows in one forward.
        room: tokens of a packed row of SFT; None for the reward model.
    """

    def of(batch: Sequence[int]) -> Mean:
        return padding(forwards_of(batch, at_once, 1), lambda length: [(length, 0)])

    def of_packed(batch: Sequence[int]) -> Mean:
        rows = [[batch[i] for i in row] for row in level_rows([batch])[0]]
        return padding(forwards_of(rows, at_once, 1), lambda row: [(sum(row), 0)])

    plain = Batching(lengths, of)
    if room is None:
        packed = Batching(lengths, of_packed)
    else:
        rows = pack([Demonstration([], [0] * length) for length in lengths], room)
        packed = Batching([len(row.input_ids) for row in rows], of)
    ways = {"random": plain, "grouped": Batching(lengths, of, Lengths(lengths)), "packed": packed}
    return {name: padding_metrics(training, 0, way, way)["padding"] for name, way in ways.items()}


def main() -> None:
    config = load_experiment(Path(sys.argv[1]), sys.argv[2:])
    for stage in ("sft", "rm"):
        if stage == "rm" and kind_of(config, stage) != "rankings":
            continue
        training: Epochs = config.sft if stage == "sft" else config.rm
        lengths = lengths_of(config, stage)
        completions = 1 if stage == "sft" else 2
        at_once = max(1, training.micro_batch_size // completions)
        found = shares(lengths, training, at_once, config.data.max_length if stage == "sft" else None)
        shown = ", ".join(f"{name} {share:.3f}" for name, share in found.items())
        print(f"{stage}: {len(lengths)} rows, {at_once} of {training.batch_size} in a forward: {shown}")


if __name__ == "__main__":
    main()
