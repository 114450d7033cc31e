"""Training and held-out examples of a stage: read rows, split them by prompt, tokenize them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from configs.schema import Data, Experiment, Stage
from data.batches.encoding import encoder_of
from data.batches.fit import Counts, NothingFits
from data.batches.wording import worded
from data.sources.formats import Kind, Row
from data.sources.loading import SOME_ROWS, first_rows, load_rows
from data.sources.split import belongs_to, stage_split
from data.sources.tasks import check_trainable
from data.storage.source_digest import source_digest

Example = TypeVar("Example")
Tokenize = Callable[..., tuple[list[Example], Counts]]
Note = Callable[[str], None]


class Examples(NamedTuple, Generic[Example]):
    """Training and held-out examples, and how many rows and examples were read, kept and dropped, by name."""

    train: list[Example]
    held_out: list[Example]
    counts: dict[str, int]


class StageRows(NamedTuple):
    """Training and held-out rows, and how many were read, by name."""

    train: list[Row]
    held_out: list[Row]
    counts: dict[str, int]


@dataclass(frozen=True)
class StageData:
    """The data of one stage.

    Attributes:
        note: called with a line on rows that were left out, truncated or dropped.
        digests: `source_digest` of local sources when the stage was planned, by configuration key.
    """

    config: Experiment
    stage: Stage
    note: Note
    digests: Mapping[str, str] = field(default_factory=dict)

    def rows(self, kind: Kind) -> StageRows:
        """Rows that serve as `kind`, split by prompt.

        Raises:
            UserError: a row cannot be read, nothing is left to train on, or the source changed meanwhile.
        """
        data, seed, key = self.config.data, self.config.seed, f"data.{self.stage}.path"
        source = data.source(self.stage)
        check_trainable(source, f"data.{self.stage}")
        planned = self.digests.get(key) or source_digest(Path(source.path))
        loaded = load_rows(source, kind, self.note, belongs_to(data, self.stage, seed))
        if source_digest(Path(source.path)) != planned:
            raise UserError(
                f"{key}: {source.path} changed while the stage was starting. Start the stage again when the "
                "data is complete."
            )
        train, held_out = stage_split(data, self.stage, loaded.rows, seed)
        train, held_out = worded(train, held_out, kind, data, seed)
        self.note(
            f"data.{self.stage}: {loaded.read:,} rows read, {loaded.left_out:,} left out, "
            f"{loaded.of_other_stages:,} of other stages; {len(train):,} to train on, {len(held_out):,} "
            "held out"
        )
        counts = {
            "rows_read": loaded.read,
            "rows_left_out": loaded.left_out,
            "rows_of_other_stages": loaded.of_other_stages,
        }
        return StageRows(train, held_out, counts)


def some_rows(config: Experiment, stage: Stage, kind: Kind) -> list[Row]:
    """The usable rows among the first ones of a stage's source, held-out ones included.

    Raises:
        UserError: there are no rows, or one cannot be read.
    """
    source = config.data.source(stage)
    check_trainable(source, f"data.{stage}")
    return worded(first_rows(source, kind, SOME_ROWS), [], kind, config.data, config.seed)[0]


def read_examples(
    source: StageData, kind: Kind, tokenize: Tokenize[Example], tokenizer: PreTrainedTokenizerBase
) -> Examples[Example]:
    """Return the examples of a stage.

    Args:
        kind: what the rows serve as.
        tokenize: a function of `data.batches.tokenize` that turns rows into examples.

    Raises:
        UserError: a row cannot be read, or nothing is left to train on.
    """
    train, held_out, counts = source.rows(kind)
    try:
        examples = tokenized(source.config.data, tokenize, tokenizer, (train, held_out), source.note)
    except NothingFits as error:
        raise UserError(f"data.{source.stage}: {error}") from None
    return examples._replace(counts=counts | examples.counts)


def tokenized(
    data: Data,
    tokenize: Tokenize[Example],
    tokenizer: PreTrainedTokenizerBase,
    parts: tuple[Any, Any],
    note: Note,
) -> Examples[Example]:
    """Tokenize `(training, held_out)` rows. `note` is called with remarks on them and the counts of both."""
    for remark in _remarks([*parts[0], *parts[1]], tokenizer, data):
        note(remark)
    train, train_counts = tokenize(parts[0], tokenizer, data)
    note(f"training: {train_counts}")
    if not len(parts[1]):
        return Examples(train, [], train_counts.as_metrics(held_out=Counts()))
    held_out, held_out_counts = tokenize(parts[1], tokenizer, data)
    note(f"held out: {held_out_counts}")
    return Examples(train, held_out, train_counts.as_metrics(held_out_counts))


def _remarks(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data) -> Iterator[str]:
    """What a person might not expect of the way in which `rows` become tokens."""
    plain = sum(isinstance(row["prompt"], str) and row["prompt"] != "" for row in rows)
    if plain and not data.chat and tokenizer.chat_template is not None:
        yield (
            f"{plain:,} prompts are plain text, and the chat template of this base is not used for them. Set "
            "data.chat to true if they are turns of a chat."
        )
    with_special_tokens = [
        tokens
        for row in rows
        if (tokens := set(encoder_of(tokenizer).special_tokens_in("\n".join(_texts(row)))))
    ]
    if with_special_tokens:
        yield (
            f"{len(with_special_tokens):,} rows hold special tokens, such as {min(with_special_tokens[0])}. "
            "They are read as plain text: only the chat template writes control tokens."
        )


def _texts(row: Row) -> Iterator[str]:
    """Every text of a row."""
    for text in (row["prompt"], row.get("completion", ""), *row.get("completions", ())):
        yield from [text] if isinstance(text, str) else (message["content"] for message in text)
