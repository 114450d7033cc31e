"""What a stage sees of its rows: their tokens, what is learned, scored or cut of them, and their lengths.

Each row goes through the functions that training uses, twice: with the limits of the experiment, and without.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from configs.schema import Data, Experiment, Stage
from data.batches.fit import NoPair, NothingFits
from data.batches.pack import PackedSequence, pack
from data.batches.tokenize import TOKENIZE, Demonstration, Prompt, Ranking, demonstrations
from data.examples import StageData, some_rows
from data.sources.formats import Kind, Row
from data.sources.loading import SOME_ROWS, is_large

Label = Literal["cut", "prompt", "context", "learned", "answer", "score"]
Example = Demonstration | Ranking | Prompt
LONGEST = 2**20  # tokens; no limit


class Piece(NamedTuple):
    """Neighbouring tokens of one label, and their heading."""

    label: Label
    ids: list[int]
    title: str


class Preview(NamedTuple):
    """One row. `remark` says why the stage drops it, or is ""."""

    where: str
    pieces: list[Piece]
    remark: str


class Lengths(NamedTuple):
    """Lengths in tokens of all rows, before anything is cut, and the limit with its key; None without one."""

    title: str
    values: list[int]
    key: str
    limit: int | None


def rows_of(config: Experiment, stage: Stage, kind: Kind, note: Callable[[str], None]) -> list[Row]:
    """The training rows of a stage; only the first ones of a large file.

    Raises:
        UserError: a row cannot be read, or nothing is left to train on.
    """
    parts = config.data.parts(stage)
    if large := [key for key, _, source in parts if is_large(source)]:
        note(
            f"{', '.join(large)}: large; only the first {SOME_ROWS:,} rows were read, held-out ones included"
        )
        return some_rows(config, stage, kind)
    return StageData(config, stage, note).rows(kind).train


def preview(row: Row, kind: Kind, tokenizer: PreTrainedTokenizerBase, data: Data) -> Preview:
    """The tokens of a row as the stage sees them. A row that it drops is shown whole.

    Raises:
        UserError: the chat template does not fit the row.
    """
    where = str(row["where"])
    try:
        (whole,) = TOKENIZE[kind]([row], tokenizer, _without_limits(data))[0]
    except NoPair:
        return Preview(where, [], "dropped: no two of its answers differ in rank and in text")
    try:
        (kept,) = TOKENIZE[kind]([row], tokenizer, data)[0]
    except NothingFits:
        return Preview(where, _pieces(whole, whole), _too_long(whole, data))
    except NoPair:
        return Preview(where, _pieces(whole, whole), "dropped: what is kept of its answers is the same")
    return Preview(where, _pieces(kept, whole), "")


def lengths(rows: Sequence[Row], kind: Kind, tokenizer: PreTrainedTokenizerBase, data: Data) -> list[Lengths]:
    """The lengths of prompts, of answers, and of prompts with their longest answer.

    Raises:
        UserError: the chat template does not fit a row, or no ranking has a pair.
    """
    examples: list[Example] = TOKENIZE[kind](rows, tokenizer, _without_limits(data))[0]
    prompts = [len(example.prompt_ids) for example in examples]
    answers = [[len(ids) for ids in _answers(example)] for example in examples]
    found = [Lengths("prompts", prompts, "data.max_prompt_length", data.max_prompt_length)]
    if kind != "prompts":
        both = [prompt + max(longest) for prompt, longest in zip(prompts, answers, strict=True)]
        found.append(Lengths("answers", [length for row in answers for length in row], "", None))
        found.append(Lengths("prompt and longest answer", both, "data.max_length", data.max_length))
    return found


class Packed(NamedTuple):
    """An example of a packed sequence: its row, its first position, and how many of its tokens carry loss."""

    where: str
    first: int
    ids: list[int]
    learned: int


def packed(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data) -> list[list[Packed]]:
    """The sequences that packed SFT trains on, each as its examples in turn.

    Raises:
        UserError: the chat template does not fit a row.
    """
    examples: list[Demonstration] = []
    places: dict[tuple[int, ...], deque[str]] = defaultdict(deque)
    for row in rows:
        with suppress(NothingFits):
            (example,) = demonstrations([row], tokenizer, data)[0]
            examples.append(example)
            places[*example.prompt_ids, *example.completion_ids].append(str(row["where"]))
    sequences = pack(examples, data.max_length)
    return [list(_examples_of(sequence, places)) for sequence in sequences]


def _examples_of(sequence: PackedSequence, places: Mapping[tuple[int, ...], deque[str]]) -> Iterator[Packed]:
    first = 0
    for length in sequence.seq_lengths:
        ids = sequence.input_ids[first : first + length]
        learned = sum(sequence.completion_mask[first : first + length])
        yield Packed(places[tuple(ids)].popleft(), first, ids, learned)
        first += length


def _without_limits(data: Data) -> Data:
    return data.model_copy(update={"max_length": LONGEST, "max_prompt_length": LONGEST - 1})


def _too_long(example: Example, data: Data) -> str:
    prompt = len(example.prompt_ids)
    if prompt > data.max_prompt_length:
        return f"dropped: its prompt has {prompt} tokens; data.max_prompt_length is {data.max_prompt_length}"
    longest = prompt + max(map(len, _answers(example)))
    return f"dropped: prompt and longest answer have {longest} tokens; data.max_length is {data.max_length}"


def _answers(example: Example) -> list[list[int]]:
    if isinstance(example, Prompt):
        return []
    return [example.completion_ids] if isinstance(example, Demonstration) else example.completion_ids


def _pieces(kept: Example, whole: Example) -> list[Piece]:
    """The tokens that the stage sees, between those that it cuts from the whole example."""
    cut = len(whole.prompt_ids) - len(kept.prompt_ids)
    pieces = [Piece("cut", whole.prompt_ids[:cut], "cut"), Piece("prompt", kept.prompt_ids, "prompt")]
    for number, (answer, uncut) in enumerate(_pairs(kept, whole)):
        pieces += _answer(kept, number, answer)
        pieces.append(Piece("cut", uncut[len(answer) :], "cut"))
    return [piece for piece in pieces if piece.ids]


def _pairs(kept: Example, whole: Example) -> Iterator[tuple[list[int], list[int]]]:
    """Each kept answer beside the one that it was cut from."""
    uncut = _answers(whole)
    for answer in _answers(kept):
        origin = next(ids for ids in uncut if ids[: len(answer)] == answer)
        uncut = uncut[uncut.index(origin) + 1 :]
        yield answer, origin


def _answer(example: Any, number: int, ids: list[int]) -> Iterator[Piece]:
    """The pieces of one answer: what SFT learns of it, or where the reward model reads its score."""
    if isinstance(example, Ranking):
        yield Piece("answer", ids[:-1], f"rank {example.ranks[number]}")
        yield Piece("score", ids[-1:], "score")
        return
    learned = example.completion_mask[len(example.prompt_ids) :]
    for is_learned, run in groupby(zip(ids, learned, strict=True), key=lambda pair: pair[1]):
        label: Label = "learned" if is_learned else "context"
        yield Piece(label, [id_ for id_, _ in run], label)
