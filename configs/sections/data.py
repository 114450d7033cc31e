"""The section `data`: the sources of examples, and how text becomes tokens."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from configs.sections.values import Count, Fraction, NonNegative, Number, PlainNumber, Section, Size, Text
from configs.stage_names import STAGES, Stage, data_stage

# A source path with another ending names a hub dataset, unless it has a pattern's characters.
DATA_FILES = tuple(
    ending + compression
    for ending in (".jsonl", ".json", ".parquet", ".csv", ".tsv")
    for compression in ("", ".gz", ".zst")
)
FormatName = Literal[
    "demonstration",
    "conversation",
    "text",
    "preference",
    "ranking",
    "prompt",
    "ultrafeedback",
    "pandalm",
    "llmbar",
    "mt_bench",
    "reward_bench_2",
]


def ending_of(path: str) -> str | None:
    """Which of `DATA_FILES` a path ends in; None if it does in none."""
    return next((ending for ending in DATA_FILES if path.lower().endswith(ending)), None)


def _names_no_bound(label: str) -> str:
    """A label ends the names of figures, whose bounds and count have these endings."""
    if ending := next((ending for ending in ("_low", "_high", "_n") if label.endswith(ending)), None):
        raise ValueError(f"{label!r} ends as a bound of a figure does; choose one without {ending}")
    return label


Label = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=40),
    AfterValidator(_names_no_bound),
]
Weight = Annotated[float, Field(gt=0, le=1000), PlainNumber]


def names_files(path: str) -> bool:
    """Whether a path is that of a data file, or a pattern of several."""
    return ending_of(path) is not None or any(mark in path for mark in "*?[")


class Columns(Section):
    """Which key of a row is read as a key of the formats, for rows that have other names."""

    prompt: Text | None = Field(None, description="the key that holds the prompt")
    completion: Text | None = Field(None, description="the key that holds the answer")
    input: Text | None = Field(None, description="the key that holds what follows the prompt")
    system: Text | None = Field(None, description="the key that holds the system message")
    history: Text | None = Field(None, description="the key that holds earlier questions and answers")
    messages: Text | None = Field(None, description="the key that holds a conversation")
    text: Text | None = Field(None, description="the key that holds a text without a prompt")
    chosen: Text | None = Field(None, description="the key that holds the better answer")
    rejected: Text | None = Field(None, description="the key that holds the worse answer")
    score_chosen: Text | None = Field(None, description="the key that holds the score of the better answer")
    score_rejected: Text | None = Field(None, description="the key that holds the score of the worse answer")
    completions: Text | None = Field(None, description="the key that holds a list of answers")
    ranks: Text | None = Field(None, description="the key that holds the rank of each answer")
    scores: Text | None = Field(None, description="the key that holds the score of each answer")
    label: Text | None = Field(None, description="the key that rates the answer as good or bad")
    rating: Text | None = Field(None, description="the key that holds the rating of the answer")

    @property
    def names(self) -> dict[str, str]:
        """The key of the formats for each key of a row."""
        return {name: key for key, name in self.model_dump().items() if name is not None}

    @model_validator(mode="after")
    def _each_once(self) -> Columns:
        given = [name for name in self.model_dump().values() if name is not None]
        if twice := [name for name in given if given.count(name) > 1]:
            raise ValueError(f"{twice[0]!r:.60} is read as two keys; name it once")
        return self


class Source(Section):
    """Where a stage's examples come from: a file, a folder or a pattern of files, or a hub dataset."""

    path: Text = Field(
        description="a .jsonl, .json, .csv, .tsv or .parquet file, also with .gz or .zst; a folder; a "
        "pattern such as data/*.jsonl; or the id of a hub dataset"
    )
    name: Text | None = Field(None, description="configuration of a hub dataset or folder")
    data_dir: Text | None = Field(None, description="folder within a hub dataset, such as harmless-base")
    split: Text = Field("train", description="split of a hub dataset or folder")
    revision: Text | None = Field(None, description="branch, tag or commit of a hub dataset")
    streaming: bool = Field(
        False,
        description="read a hub dataset over the network row by row, up to `limit`, and store none of it; "
        "files are read row by row in any case",
    )
    label: Label | None = Field(
        None,
        description="name of the source in figures, if a stage has several; by default, that of its path",
    )
    weight: Weight = Field(
        1.0,
        description="how often a training row of this source is seen in an epoch: 2 is twice, 0.5 is half of "
        "the rows, the same half in each epoch",
    )
    limit: Count | None = Field(
        None, description="maximum number of rows to use, held-out ones included, of the stage's own prompts"
    )
    ignore_columns: tuple[Text, ...] = Field(
        (), description="keys of rows and messages to ignore; other keys that no format uses are refused"
    )
    columns: Columns = Columns()
    task: Text | None = Field(
        None,
        description="words each row as an instruction, by the templates of a pool that ships, such as nli, "
        "or of FILE.yaml or FILE.yaml:NAME",
    )
    format: FormatName | None = Field(
        None, description="the format of every row; by default, the keys of a row tell"
    )
    rank_by: Literal["overall_score", "aspects"] | None = Field(
        None,
        description="of UltraFeedback: rank by the overall score (the default), or by the mean rating of the "
        "aspects",
    )
    min_rating: Number | None = Field(
        None,
        description="of data.sft: rows with a `rating` below it are left out, and each row must have one",
    )
    held_out: NonNegative | Literal["all"] = Field(
        0.1, description="prompts kept for evaluation: below 1 a share, from 1 on a number; or all of them"
    )

    @property
    def identity(self) -> tuple[str | None, ...]:
        """Two sources are the same source if these values are equal."""
        return self.path, self.name, self.data_dir, self.split, self.revision

    @property
    def stem(self) -> str:
        """The last part of the path as a label: without an ending, and without letters that no label has."""
        for part in reversed(self.path.split("/")):
            name = part[: -len(ending)] if (ending := ending_of(part)) else part
            if label := re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40].strip("-"):
                return label
        return "source"

    @model_validator(mode="after")
    def _a_file_is_no_data_set(self) -> Source:
        if names_files(self.path) and self.streaming:
            raise ValueError(
                "streaming is of hub datasets, and the path is a file, which is read row by row; leave it out"
            )
        if names_files(self.path) and (key := self.changed("name", "data_dir", "split", "revision")):
            raise ValueError(f"{key} is of hub datasets and folders, and the path is a file; leave it out")
        return self

    @model_validator(mode="after")
    def _a_stream_ends(self) -> Source:
        if self.streaming and self.limit is None:
            raise ValueError(
                "streaming needs `limit`, the number of rows to read: a stage holds its rows in memory"
            )
        return self

    @model_validator(mode="after")
    def _a_column_is_read_or_ignored(self) -> Source:
        if both := sorted(set(self.columns.names) & set(self.ignore_columns)):
            raise ValueError(
                f"{both[0]!r:.60} stands in columns and in ignore_columns; name it in one of them"
            )
        return self

    @model_validator(mode="after")
    def _a_task_reads_its_own_columns(self) -> Source:
        if self.task and (key := self.changed("columns", "format", "rank_by", "min_rating")):
            remedy = "; write them into the task's `source.columns`" if key == "columns" else "; leave it out"
            raise ValueError(f"{key} is of formats, and `task` reads the columns of its templates{remedy}")
        return self

    @model_validator(mode="after")
    def _rank_by_is_of_ultrafeedback(self) -> Source:
        if self.rank_by and self.format not in (None, "ultrafeedback"):
            raise ValueError(f"rank_by is of UltraFeedback, and format is {self.format}; leave one out")
        return self

    @model_validator(mode="after")
    def _whole_prompts(self) -> Source:
        if not isinstance(self.held_out, str) and self.held_out > 1 and self.held_out % 1:
            raise ValueError(
                f"held_out ({self.held_out:g}) must be a share below 1 or a whole number of prompts"
            )
        return self

    def held_out_of(self, prompts: int) -> int:
        """How many of so many prompts are held out. A share is rounded, but it is at least one prompt."""
        if isinstance(self.held_out, str):
            return prompts
        if self.held_out == 0 or self.held_out >= 1:
            return round(self.held_out)
        return max(1, round(self.held_out * prompts))


class Part(NamedTuple):
    """One source of a stage. `key` names it in messages; `label` in figures, "" if it is the only one."""

    key: str
    label: str
    source: Source


def _form(value: Any) -> str:
    return "list" if isinstance(value, (list, tuple)) else "one"


FORMS = ("one", "list")  # which pydantic puts into the place of an error
Sources = Annotated[
    Annotated[Source, Tag("one")]
    | Annotated[tuple[Source, ...], Field(min_length=1, max_length=100), Tag("list")],
    Discriminator(_form),
]


class Shares(Section):
    """Share of the prompts that each stage gets if several stages read the same source."""

    sft: Fraction = Field(0.2, description="share of SFT; 0 if it has another source")
    rm: Fraction = Field(0.4, description="share of the reward model")
    ppo: Fraction = Field(0.4, description="share of PPO, and of best-of-n")

    def of(self, stage: Stage) -> float:
        share: float = getattr(self, data_stage(stage))
        return share

    @model_validator(mode="after")
    def _at_most_everything(self) -> Shares:
        if self.sft + self.rm + self.ppo > 1 + 1e-9:
            raise ValueError("the three shares must add up to at most 1")
        return self


class Data(Section):
    """The sources of the three stages, and how text becomes tokens."""

    sft: Sources = Field(description="demonstrations: one source, or a list of sources")
    rm: Sources = Field(description="rankings, or prompts that a labeller ranks: one source, or a list")
    ppo: Sources = Field(description="prompts: one source, or a list of sources")
    shares: Shares = Shares()
    keep_apart: bool = Field(
        True,
        description="hold out what an earlier stage holds out, and train on what it trains on, so that no "
        "stage is judged on prompts that this or another stage has learned",
    )
    near_duplicates: Fraction | None = Field(
        0.8,
        description="similarity from which a held-out prompt counts as a near-duplicate of a training prompt "
        "(Jaccard's, of sequences of three words, estimated by MinHash); they are reported, not removed; "
        "null looks for none",
    )
    max_length: Size = Field(1024, description="maximum tokens of prompt and response together")
    max_prompt_length: Size = Field(512, description="maximum tokens of the prompt")
    overlong: Literal["drop", "truncate"] = Field(
        "drop", description="what happens to an example that exceeds one of the two limits"
    )
    train_on: Literal["all", "last"] = Field(
        "all", description="the assistant turns of a conversation that SFT learns: all, or the last one"
    )
    chat: bool = Field(False, description="treat plain strings as user and assistant turns of a chat")
    chat_template: Text | None = Field(
        None,
        description="a Jinja file that replaces the tokenizer's template (both, if rm.base has its own)",
    )

    def parts(self, stage: Stage) -> list[Part]:
        """The sources that `stage` reads, in order."""
        given, key = getattr(self, data_stage(stage)), f"data.{data_stage(stage)}"
        if isinstance(given, Source):
            return [Part(key, "", given)]
        stems = Counter(source.label or source.stem for source in given)
        numbered = [
            source.stem if stems[source.stem] == 1 else f"{source.stem}-{number}"
            for number, source in enumerate(given, 1)
        ]
        return [Part(f"{key}[{i}]", source.label or numbered[i], source) for i, source in enumerate(given)]

    def sources(self, stage: Stage) -> list[Source]:
        """The sources that `stage` reads, in order."""
        return [part.source for part in self.parts(stage)]

    def claims(self, stage: Stage) -> list[Part]:
        """The sources in the order in which they claim prompts: those that are held out whole come first."""
        return sorted(self.parts(stage), key=lambda part: part.source.held_out != "all")

    def readers(self, source: Source) -> list[Stage]:
        """The stages that read a source."""
        return [
            stage
            for stage in STAGES
            if any(other.identity == source.identity for other in self.sources(stage))
        ]

    @model_validator(mode="after")
    def _labels_differ(self) -> Data:
        for stage in STAGES:
            labels: dict[str, str] = {}
            for key, label, _ in self.parts(stage):
                if first := labels.get(label):
                    place = key.removeprefix("data.")
                    raise ValueError(
                        f"{place}.label: {label!r} is {first}, too; give each source its own label"
                    )
                labels[label] = key.removeprefix("data.")
        return self

    @model_validator(mode="after")
    def _each_source_once(self) -> Data:
        for stage in STAGES:
            seen: dict[tuple[Any, ...], str] = {}
            for key, _, source in self.parts(stage):
                read = (*source.identity, source.columns, source.format, source.rank_by, source.task)
                if first := seen.get(read):
                    raise ValueError(
                        f"{key.removeprefix('data.')}: it reads what {first} reads; name the source once, "
                        "with a weight if its rows are to be seen more often"
                    )
                seen[read] = key.removeprefix("data.")
        return self

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Data:
        for stage in STAGES:
            if all(source.held_out == "all" for source in self.sources(stage)):
                raise ValueError(
                    f"{stage}: held_out is all in each of its sources, which leaves none to train on; add a "
                    "source, or set a number"
                )
        return self

    @model_validator(mode="after")
    def _only_demonstrations_are_rated(self) -> Data:
        for part in (*self.parts("rm"), *self.parts("ppo")):
            if part.source.min_rating is not None:
                place = part.key.removeprefix("data.")
                raise ValueError(f"{place}.min_rating: only sft learns rated answers; leave it out")
        return self

    @model_validator(mode="after")
    def _prompt_leaves_room(self) -> Data:
        if self.max_prompt_length >= self.max_length:
            raise ValueError("max_prompt_length must be below max_length to leave room for a response")
        return self
