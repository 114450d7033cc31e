"""Training and held-out examples of a stage: read rows, split them by prompt, tokenize them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from configs.schema import Data, Experiment, Stage
from data.batches.encoding import encoder_of
from data.batches.tokenize import Counts
from data.sources.formats import Kind, Row, load_rows
from data.sources.split import stage_split

Example = TypeVar("Example")
Tokenize = Callable[..., tuple[list[Example], Counts]]
Note = Callable[[str], None]


def read_examples(
    config: Experiment,
    stage: Stage,
    kind: Kind,
    tokenize: Tokenize[Example],
    tokenizer: PreTrainedTokenizerBase,
    note: Note,
) -> tuple[list[Example], list[Example]]:
    """Return training and held-out examples of `stage`.

    Args:
        kind: what the rows serve as.
        tokenize: a function of `data.batches.tokenize` that turns rows into examples.
        note: called with a line on rows that were left out, truncated or dropped.

    Raises:
        UserError: a row cannot be read, or nothing is left to train on.
    """
    rows = load_rows(getattr(config.data, stage), kind, note)
    parts = stage_split(config.data, stage, rows, config.seed)
    return tokenized(config.data, tokenize, tokenizer, parts, note)


def tokenized(
    data: Data,
    tokenize: Tokenize[Example],
    tokenizer: PreTrainedTokenizerBase,
    parts: tuple[Any, Any],
    note: Note,
) -> tuple[list[Example], list[Example]]:
    """Tokenize `(training, held_out)` rows. `note` is called with remarks on them and the counts of both."""
    for remark in _remarks([*parts[0], *parts[1]], tokenizer, data):
        note(remark)
    train, train_counts = tokenize(parts[0], tokenizer, data)
    note(f"training: {train_counts}")
    if not len(parts[1]):
        return train, []
    held_out, held_out_counts = tokenize(parts[1], tokenizer, data)
    note(f"held out: {held_out_counts}")
    return train, held_out


def _remarks(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data) -> Iterator[str]:
    """What a person might not expect of the way in which `rows` become tokens."""
    plain = sum(isinstance(row["prompt"], str) for row in rows)
    if plain and not data.chat and tokenizer.chat_template is not None:
        yield (
            f"{plain:,} prompts are plain text, and the chat template of this base is not used for them. Set "
            "data.chat to true if they are turns of a chat."
        )
    found = [tokens for row in rows if (tokens := set(encoder_of(tokenizer).found("\n".join(_texts(row)))))]
    if found:
        yield (
            f"{len(found):,} rows hold special tokens, such as {min(found[0])}. They are read as plain text: "
            "only the chat template writes control tokens."
        )


def _texts(row: Row) -> Iterator[str]:
    """Every text of a row."""
    for text in (row["prompt"], row.get("completion", ""), *row.get("completions", ())):
        yield from [text] if isinstance(text, str) else (message["content"] for message in text)
