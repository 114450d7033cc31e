"""`tristage preview`: the tokens of rows with what happens to them, and histograms of lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from configs.schema import Experiment, Stage
from data.preview import Label, Lengths, Packed, Preview

STYLES: dict[Label, str] = {
    "cut": "red strike",
    "prompt": "",
    "context": "dim",
    "learned": "bold green",
    "answer": "cyan",
    "score": "bold magenta",
}
LEGEND: dict[Label, str] = {
    "cut": "cut: left out, as the example is over-long",
    "prompt": "prompt: read, and not learned",
    "context": "context: read, and not learned",
    "learned": "learned: these tokens carry loss",
    "answer": "rank N: an answer, 0 is the best",
    "score": "score: the reward model reads the score of an answer at this token",
}
BINS, BAR = 10, 40
SHOWN = 4  # tokens at each end of a packed example
VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def print_previews(
    console: Console, previews: Sequence[Preview], tokenizer: PreTrainedTokenizerBase, ending: str
) -> None:
    """Print rows, each label on its own line, and the legend of the labels that occur.

    Args:
        ending: what follows the tokens of a row that is not dropped; "" for nothing.
    """
    for row in previews:
        _print(console, Text(row.where, "bold"))
        for piece in row.pieces:
            tokens = "│".join(token_text(tokenizer, id_) for id_ in piece.ids)
            _print(console, Text.assemble(f"  {piece.title:<8} ", (tokens, STYLES[piece.label])))
        if row.remark or ending:
            _print(console, Text(f"  {row.remark or ending}", "yellow" if row.remark else ""))
        console.print()
    labels = {piece.label for row in previews for piece in row.pieces}
    for label, meaning in LEGEND.items():
        if label in labels:
            _print(console, Text(meaning, STYLES[label]))
    _print(console, Text("│ stands between two tokens, ↵ for a line break."))


def print_packed(
    console: Console,
    sequences: Sequence[Sequence[Packed]],
    number: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> None:
    """Print how full packed sequences are, and where the examples of the first `number` begin and end."""
    used = sum(len(example.ids) for sequence in sequences for example in sequence)
    examples = sum(map(len, sequences))
    console.print()
    _print(
        console,
        Text(
            f"packed: {examples:,} examples in {len(sequences):,} sequences of up to {max_length:,} tokens, "
            f"{used / (len(sequences) * max_length):.0%} full",
            "bold",
        ),
    )
    for place, sequence in enumerate(sequences[:number], start=1):
        length = sum(len(example.ids) for example in sequence)
        _print(console, Text(f"sequence {place}: {length:,} tokens"))
        for example in sequence:
            _print(console, _packed_line(example, tokenizer))
    _print(
        console, Text("No token sees another example of its sequence, and positions start from 0 in each.")
    )


def _packed_line(example: Packed, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The positions of an example in its sequence, its row, and its tokens at both ends."""
    last = example.first + len(example.ids) - 1
    cut = len(example.ids) > 2 * SHOWN
    shown = [example.ids[:SHOWN], example.ids[-SHOWN:]] if cut else [example.ids]
    tokens = " … ".join("│".join(token_text(tokenizer, id_) for id_ in ids) for ids in shown)
    return Text.assemble(
        f"  {example.first:>6} to {last:<6} {example.where}, {example.learned} learned: ", (tokens, "cyan")
    )


def ending(config: Experiment, stage: Stage) -> str:
    """What the stage adds to the tokens of a row, in words; "" for nothing."""
    rankings = config.rm.rankings
    if stage == "ppo":
        limit = config.ppo.rollout.max_new_tokens
        return f"then the policy samples up to {limit} tokens; the score is read at the last of them"
    if stage == "rm" and rankings.labeller != "file":
        return (
            f"then {rankings.completions} answers of up to {rankings.rollout.max_new_tokens} tokens are "
            f"sampled, and ranked by {rankings.labelled_by}"
        )
    return ""


def token_text(tokenizer: PreTrainedTokenizerBase, id_: int) -> str:
    """The text of one token; its name in the vocabulary if it is not text by itself."""
    name = str(tokenizer.convert_ids_to_tokens(id_))
    text = name.replace("▁", " ") if name.startswith("▁") else tokenizer.decode([id_])
    if not text or "\ufffd" in text:
        return name
    return "".join(VISIBLE.get(letter, letter) for letter in text)


def print_histogram(console: Console, lengths: Lengths) -> None:
    """Print how many examples have which length, with the limit where it lies."""
    values = lengths.values
    console.print()
    _print(
        console,
        Text(
            f"{lengths.title}, in tokens: {len(values)}, median {median(values):g}, longest {max(values)}",
            "bold",
        ),
    )
    for line in _histogram(lengths, "#" if console.options.ascii_only else "█"):
        _print(console, Text(line))


def _histogram(lengths: Lengths, block: str) -> Iterator[str]:
    counts = bins(lengths.values)
    width = len(f"{max(high for _, high in counts)}") * 2 + 1
    scale = BAR / max(counts.values())
    limit_line = ""
    if lengths.limit is not None:
        longer = sum(value > lengths.limit for value in lengths.values)
        limit_line = f"  {'limit':>{width}}  {lengths.key} is {lengths.limit}: {longer} are longer"
    for (low, high), count in counts.items():
        if limit_line and lengths.limit is not None and low > lengths.limit:
            yield limit_line
            limit_line = ""
        bar = block * math.ceil(count * scale)
        name = str(low) if low == high else f"{low}-{high}"
        yield f"  {name:>{width}}  {bar} {count}"
    if limit_line:
        yield limit_line


def bins(values: Sequence[int]) -> Mapping[tuple[int, int], int]:
    """At most BINS ranges of equal width that hold all values, and the number of values in each."""
    low, high = min(values), max(values)
    width = math.ceil((high - low + 1) / BINS)
    ranges = [(begin, begin + width - 1) for begin in range(low, high + 1, width)]
    return {(begin, end): sum(begin <= value <= end for value in values) for begin, end in ranges}


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=not console.is_terminal)  # a file or a pipe gets whole lines
