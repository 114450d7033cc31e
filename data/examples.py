"""Training and held-out examples of a stage: read rows, split them by prompt, tokenize them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from configs.schema import Data, Experiment, Part, Stage, data_stage
from data.batches.encoding import encoder_of
from data.batches.fit import Counts, NoPair, NothingFits
from data.batches.tokenize import Prompt
from data.batches.wording import worded
from data.sources.collected_rankings import SPLITS, read_rankings, split_of_rounds
from data.sources.formats import Kind, Row
from data.sources.loading import SOME_ROWS, first_rows, is_large
from data.sources.messages import Text
from data.sources.mixture import (
    Mixture,
    as_metrics,
    by_source,
    count_split,
    load_mixture,
    reweighted,
    sentence,
)
from data.sources.near_duplicates import MOST, near_duplicates
from data.sources.reading import is_local
from data.sources.split import (
    NO_SIDES,
    Sides,
    Split,
    first_of_each_prompt,
    question_key,
    row_question,
    share_prompts_by_hash,
    stage_split,
)
from data.sources.tasks import check_trainable
from data.storage.source_digest import source_digest

Example = TypeVar("Example")
T = TypeVar("T")
Tokenize = Callable[..., tuple[list[Example], Counts]]
Note = Callable[[str], None]
SHOWN = 3  # near-duplicates


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
        only_checks: earlier stages' sources of the hub and large ones are left to the stage itself.
        ranked: a file of rankings on which the reward model trains; see `ranked_by_people`.
    """

    config: Experiment
    stage: Stage
    note: Note
    digests: Mapping[str, str] = field(default_factory=dict)
    only_checks: bool = False
    ranked: Path | None = None

    def rows(self, kind: Kind, *, once: bool = False) -> StageRows:
        """Rows that serve as `kind`, split by prompt.

        Args:
            once: no weight repeats a row; see `reweighted`.

        Raises:
            UserError: a row cannot be read, nothing is left to train on, or the source changed meanwhile.
        """
        data, stage, seed = self.config.data, self.stage, self.config.seed
        for part in data.parts(stage):
            check_trainable(part.source, part.key)
        mixture = self._load(kind)
        earlier, unread = self._earlier_sides()
        split = stage_split(data, stage, mixture.rows, seed, earlier)
        found = self._near_duplicates(split, earlier)
        train, held_out = worded(split.train, split.held_out, kind, data, seed)
        split = reweighted(data, stage, split._replace(train=train, held_out=held_out), seed, once=once)
        count_split(mixture.counts, split)
        for part in data.parts(stage):
            self.note(sentence(part, mixture.counts[part.label]))
        if split.missing:
            self.note(
                f"data.{stage}: {split.missing:,} prompts fewer are held out than held_out asks for, since "
                "earlier stages train on the others"
            )
        if split.turns:
            self.note(
                f"data.{stage}: {split.turns:,} earlier turns of conversations are context only, since their "
                "prompts are on the other side of the split"
            )
            found["turns_kept_apart"] = split.turns
        if unread:
            found["stages_not_compared"] = unread
        return StageRows(split.train, split.held_out, as_metrics(mixture.counts) | found)

    def _load(self, kind: Kind) -> Mixture:
        """The rows of the sources, which must not change meanwhile."""
        parts = {f"{part.key}.path": Path(part.source.path) for part in self.config.data.parts(self.stage)}
        planned = {key: self.digests.get(key) or source_digest(path) for key, path in parts.items()}
        mixture = load_mixture(self.config.data, self.stage, kind, self.config.seed, self.note)
        for key, path in parts.items():
            if source_digest(path) != planned[key]:
                raise UserError(
                    f"{key}: {path} changed while the stage was starting. Start the stage again when the "
                    "data is complete."
                )
        return mixture

    def _earlier_sides(self) -> tuple[Sides, int]:
        """The prompts that earlier stages train on and hold out, as they read their sources now.

        A line is noted about an earlier stage whose sources cannot be read. The number of these is the second
        result.
        """
        data, seed, sides, unread = self.config.data, self.config.seed, NO_SIDES, 0
        for earlier in self._compared():
            try:
                mixture = load_mixture(data, earlier, kind_of(self.config, earlier), seed, _silent)
                found = stage_split(data, earlier, mixture.rows, seed, sides).sides
            except UserError as error:
                unread += 1
                reason = str(error).partition("\n")[0]
                self.note(
                    f"data.{self.stage}: its prompts are not compared with those of data.{earlier}: {reason}"
                )
            else:
                sides = Sides(sides.trained | found.trained, sides.held_out | found.held_out)
                if earlier == "rm":
                    sides = _with_rankings(sides, self.config.rm.rankings.earlier)
        if self.ranked is not None:
            sides = _with_rankings(sides, [str(self.ranked)])
        return sides, unread

    def _compared(self) -> list[Stage]:
        """The earlier stages whose prompts this one, or one of them, may have, too."""
        data, compared = self.config.data, [self.stage]
        for earlier in reversed(self.config.upstream(self.stage)) if data.keep_apart else ():
            sources = data.sources(earlier)
            if self.only_checks and not all(is_local(one) and not is_large(one) for one in sources):
                continue
            if data.near_duplicates is not None or not all(
                share_prompts_by_hash(data, earlier, later) for later in compared
            ):
                compared.append(earlier)
        return compared[:0:-1]

    def _near_duplicates(self, split: Split, earlier: Sides) -> dict[str, int]:
        """Note held-out prompts that nearly repeat what this or an earlier stage trains on; count them."""
        threshold = self.config.data.near_duplicates
        if threshold is None or not split.held_out:
            return {}
        trained = earlier.trained.union(map(row_question, split.train))
        held_out = set(map(row_question, split.held_out))
        found = near_duplicates(held_out, trained, threshold)
        for side, prompts in {"training": trained, "held-out": held_out}.items():
            if len(prompts) > MOST:
                self.note(f"data.near_duplicates: {MOST:,} of {len(prompts):,} {side} prompts were compared")
        if found:
            examples = "\n".join(
                f"  {one.held_out!r:.100} held out, {one.trained!r:.100} trained on: {one.similarity:.2f}"
                for one in found[:SHOWN]
            )
            self.note(
                f"data.{self.stage}: {len(found):,} held-out prompts nearly repeat a training prompt "
                f"(data.near_duplicates: {threshold:g}). None is removed.\n{examples}"
            )
        return {"near_duplicates": len(found)}


def _with_rankings(sides: Sides, files: Sequence[str]) -> Sides:
    """The sides with the prompts of rankings, on which the reward model trains, too."""
    rounds = [read_rankings(Path(file), "Restore the file.") for file in files]
    placed = list(split_of_rounds(rounds, sides.trained, sides.held_out, question_key))
    train, held_out = (
        frozenset(question_key(row["prompt"]) for row, own in placed if own == split) for split in SPLITS
    )
    return Sides(sides.trained | train, sides.held_out | held_out)


def ranked_by_people(config: Experiment, stage: Stage, run: Path) -> Path | None:
    """The rankings that people gave in a run, if `stage` must keep its prompts apart from theirs.

    People may have ranked answers to prompts of another file than `data.rm`.
    """
    file = run / "rm" / "rankings.jsonl"
    follows = data_stage(stage) == "ppo" and "rm" in config.upstream(stage) and config.data.keep_apart
    return file if follows and config.rm.rankings.labeller == "people" and file.is_file() else None


def kind_of(config: Experiment, stage: Stage) -> Kind:
    """What the rows of a stage serve as."""
    if stage == "sft":
        return "demonstrations"
    return "rankings" if stage == "rm" and config.rm.rankings.labeller == "file" else "prompts"


def _silent(_: str) -> None:
    """The stage itself notes what it leaves out."""


def some_rows(config: Experiment, stage: Stage, kind: Kind, parts: Sequence[Part] = ()) -> list[Row]:
    """The usable rows among the first ones of each of a stage's sources, held-out ones included.

    Args:
        parts: the sources to read; all of the stage by default.

    Raises:
        UserError: there are no rows, or one cannot be read.
    """
    rows: list[Row] = []
    for part in parts or config.data.parts(stage):
        check_trainable(part.source, part.key)
        found = first_rows(part.source, kind, min(SOME_ROWS, part.source.limit or SOME_ROWS))
        rows += [{**row, "source": part.label} for row in found] if part.label else found
    return worded(rows, [], kind, config.data, config.seed)[0]


def read_examples(
    source: StageData,
    kind: Kind,
    tokenize: Tokenize[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    once: bool = False,
) -> Examples[Example]:
    """Return the examples of a stage.

    Args:
        kind: what the rows serve as.
        tokenize: a function of `data.batches.tokenize` that turns rows into examples.
        once: no weight repeats a row; see `reweighted`.

    Raises:
        UserError: a row cannot be read, or nothing is left to train on.
    """
    train, held_out, counts = source.rows(kind, once=once)
    try:
        examples = tokenized(source.config.data, tokenize, tokenizer, (train, held_out), source.note)
    except NothingFits as error:
        raise UserError(f"data.{source.stage}: {error}") from None
    return examples._replace(counts=counts | examples.counts)


def once_each(prompts: Sequence[Prompt], note: Note) -> list[Prompt]:
    """One of the prompts that are the same: a policy is asked once, and its answer counts once."""
    return _once_each(prompts, lambda one: one.prompt, note)


def rows_once_each(rows: Sequence[Row], note: Note) -> list[Row]:
    """One of the rows whose prompts are the same; see `once_each`."""
    return _once_each(rows, lambda row: row["prompt"], note)


def _once_each(items: Sequence[T], prompt_of: Callable[[T], Text], note: Note) -> list[T]:
    found = first_of_each_prompt(items, prompt_of)
    if repeated := len(items) - len(found):
        note(f"{repeated:,} of {len(items):,} prompts repeat others; each is answered once")
    return found


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
    train, train_counts = _by_source(tokenize, parts[0], tokenizer, data)
    note(f"training: {sum(train_counts.values(), Counts())}")
    held_out: list[Example] = []
    held_out_counts: dict[str, Counts] = {}
    if len(parts[1]):
        held_out, held_out_counts = _by_source(tokenize, parts[1], tokenizer, data, lenient=True)
        note(f"held out: {sum(held_out_counts.values(), Counts())}")
    return Examples(train, held_out, _as_metrics(train_counts, held_out_counts))


def _by_source(
    tokenize: Tokenize[Example],
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    *,
    lenient: bool = False,
) -> tuple[list[Example], dict[str, Counts]]:
    """Tokenize the rows, and count what becomes of those of each source, by its label.

    Args:
        lenient: of several sources, some may have no row that fits.
    """
    examples: list[Example] = []
    counts: dict[str, Counts] = {}
    refusal: UserError | None = None
    for label in dict.fromkeys(row.get("source", "") for row in rows):
        of_source = [row for row in rows if row.get("source", "") == label]
        try:
            found, counts[label] = tokenize(of_source, tokenizer, data)
        except (NothingFits, NoPair) as error:
            refusal = type(error)(f"{label}: {error}" if label else str(error))
            if not (lenient and label):
                raise refusal from None
            left = len(of_source)
            counts[label] = (
                Counts(dropped=left) if isinstance(error, NothingFits) else Counts(without_pair=left)
            )
        else:
            examples += found
    if refusal is not None and not examples:
        raise refusal
    return examples, counts


def _as_metrics(train: Mapping[str, Counts], held_out: Mapping[str, Counts]) -> dict[str, int]:
    """The counts of examples by name; see `by_source`."""
    none = Counts()
    total = sum(train.values(), none).as_metrics(sum(held_out.values(), none))
    labels = dict.fromkeys((*train, *held_out))
    return by_source(
        total, {label: train.get(label, none).as_metrics(held_out.get(label, none)) for label in labels}
    )


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
