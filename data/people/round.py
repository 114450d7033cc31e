"""A labelling round: a folder with what people are asked and what they answered.

round.json     what was asked, and of which policies
tasks.jsonl    a task in each line; its SHA-256 is in round.json
labels.jsonl   what happened, an event in each line (see `events`)
KIND.jsonl     what the labels are worth, in the format that stages read (see `results`)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from configs.errors import UserError
from data.people.events import LabelFile, Labels, Shown, Submitted, read_events
from data.sources.messages import Message, Text
from data.sources.unit import unit
from data.storage.files import json_lines, read_json_lines, sha256, write_text
from data.storage.source_digest import source_digest

Kind = Literal["rankings", "ratings", "demonstrations", "pairs"]
GIVEN: dict[Kind, str] = {
    "rankings": "ranks",
    "pairs": "ranks",
    "ratings": "rating",
    "demonstrations": "text",
}
KINDS: tuple[Kind, ...] = ("rankings", "ratings", "demonstrations", "pairs")
MOST_RANKED = 9  # answers: a digit gives each its rank
FOLDER = "people"  # of a run; a round is in the folder of its kind there, unless --out names another
SETTINGS, TASKS, LABELS, LOCK = "round.json", "tasks.jsonl", "labels.jsonl", ".lock"


class Task(BaseModel):
    """What one page asks.

    Attributes:
        id: of its prompt and answers.
        split: of the prompt: `train` or `held_out`.
        completions: the answers, as they stand after the prompt; of a demonstration, the policy's draft.
        completion_ids: the tokens that were sampled; empty if the answers are not a policy's.
        sources: where each answer is from, such as `sft`. No labeller sees it.
        prompt_source: label of the prompt's data source, if the run has several.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    split: Literal["train", "held_out"] = "train"
    prompt: str | list[Message]
    completions: tuple[str, ...] = ()
    completion_ids: tuple[tuple[int, ...], ...] = ()
    sources: tuple[str, ...] = ()
    prompt_source: str = ""


def task_id(prompt: Text, completions: Sequence[str]) -> str:
    """12 hexadecimal digits that depend on the prompt and the answers."""
    content = json.dumps([prompt, list(completions)], ensure_ascii=False)
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:12]


class Settings(BaseModel):
    """What a round asks. A round that is continued must have the same.

    Attributes:
        run: the experiment's name.
        answers: to each prompt.
        policies: that gave them.
        prompts: where they are from.
        sources: SHA-256 of the local files, folders and patterns that they were read from, by path.
        adapters: SHA-256 of the adapters that the answers depend on, by the stage that trained them.
        seed: of samples, of the order of answers, and of who gets which task.
        continues_text: the answers go on where the prompt's text ends.
        equal: prompts that nobody is asked about, because their answers are the same.
        tasks_sha256: of `tasks.jsonl`.
        overlap: share of the tasks that everyone gets, so that people can be compared.
        words: settings of the run that this round began with changed, such as `rm.rankings.completions=6`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    run: str
    answers: int
    policies: tuple[str, ...]
    prompts: str
    sources: dict[str, str] = {}
    adapters: dict[str, str] = {}
    seed: int = 0
    continues_text: bool = False
    equal: int = 0
    tasks_sha256: str = ""
    overlap: float = 0.0
    words: tuple[str, ...] = ()

    def changed_sources(self) -> list[str]:
        """The paths whose content is not what it was when the round began. What is gone does not count."""
        present = {path: source_digest(Path(path)) for path in self.sources}
        return [path for path, digest in present.items() if digest not in (None, self.sources[path])]

    def is_stale(self, present: Mapping[str, str]) -> bool:
        """Whether an adapter behind the answers is not the present one of its stage: it was trained again."""
        return any(present.get(stage) != digest for stage, digest in self.adapters.items())


class Round:
    """The content of a round's folder.

    Attributes:
        tasks: by id, in the order of the file.
        labels: what people did so far.
    """

    def __init__(self, folder: Path, settings: Settings, tasks: dict[str, Task], labels: Labels) -> None:
        self.folder, self.settings, self.tasks, self.labels = folder, settings, tasks, labels

    @property
    def id(self) -> str:
        """12 hexadecimal digits that depend on the tasks."""
        return self.settings.tasks_sha256[:12]

    @property
    def results_file(self) -> Path:
        """What stages read; see `results.write_results`."""
        return self.folder / f"{self.settings.kind}.jsonl"

    @property
    def unlabelled(self) -> list[Task]:
        """The tasks that nobody has answered or skipped."""
        done = {self.labels.showings[showing].task for showing in self.labels.outcomes}
        return [task for task in self.tasks.values() if task.id not in done]

    def missing(self, share: float = 1.0) -> int:
        """How many tasks people must still answer or skip, until a share of all is done."""
        needed = math.ceil(share * len(self.tasks) - 1e-9)  # 0.07 * 100 is 7.000000000000001
        return max(0, needed - (len(self.tasks) - len(self.unlabelled)))

    @property
    def shared(self) -> frozenset[str]:
        """The tasks that everyone gets."""
        seed = self.settings.seed
        by_chance = sorted(self.tasks, key=lambda task: unit(seed, "overlap", task))
        return frozenset(by_chance[: round(self.settings.overlap * len(by_chance))])

    @property
    def uncompared(self) -> int:
        """How many of the tasks that everyone gets have fewer than two people's labels."""
        people: dict[str, set[str]] = {task: set() for task in self.shared}
        for showing, _ in self.labels.submitted():
            if showing.task in people:
                people[showing.task].add(showing.labeller)
        return sum(len(names) < 2 for names in people.values())

    def share(self, overlap: float) -> None:
        """Let everyone get this share of the tasks from now on. The caller holds the round."""
        if overlap != self.settings.overlap:
            self.settings = self.settings.model_copy(update={"overlap": overlap})
            _write_settings(self.folder, self.settings)

    def snapshot(self) -> Round:
        """The same round, which later events do not change."""
        return Round(self.folder, self.settings, self.tasks, self.labels.snapshot())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a round's folder for this process.

    Raises:
        UserError: another process holds it.
    """
    lock = FileLock(folder / LOCK, is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder}: another server collects labels there. Use that one, or end it first."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def held_round(folder: Path) -> Iterator[tuple[Round, LabelFile]]:
    """A round to append labels to. It is read once it is held: another process may have written until then.

    Raises:
        UserError: another process holds it; or see `read_round`.
    """
    read_settings(folder)
    with locked(folder):
        file = LabelFile(folder / LABELS)
        yield read_round(folder), file


def create_round(folder: Path, settings: Settings, tasks: Sequence[Task]) -> None:
    """Write the tasks of a new round. `round.json` comes last: with it, the round is whole.

    Raises:
        UserError: another process holds the folder, or has made a round there meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [task.model_dump(mode="json", exclude_defaults=True) for task in tasks]
    content = json_lines(rows)
    digest = hashlib.sha256(content.encode()).hexdigest()
    with locked(folder):
        if has_round(folder):
            raise UserError(f"{folder}: another command made a round there meanwhile. Start this one again.")
        write_text(folder / TASKS, content)
        _write_settings(folder, settings.model_copy(update={"tasks_sha256": digest}))


def _write_settings(folder: Path, settings: Settings) -> None:
    write_text(folder / SETTINGS, settings.model_dump_json(indent=1) + "\n")


def has_round(folder: Path) -> bool:
    """Whether `folder` holds a round."""
    return (folder / SETTINGS).is_file()


def rounds(run: Path) -> list[Round]:
    """All rounds in the folder `people` of a run directory, in the order of their folders' names.

    Raises:
        UserError: one is damaged.
    """
    return [read_round(folder) for folder in sorted((run / FOLDER).glob("*")) if has_round(folder)]


def read_round(folder: Path) -> Round:
    """Read a round.

    Raises:
        UserError: there is none, or a file of it is damaged.
    """
    settings = read_settings(folder)
    file = folder / TASKS
    if not file.is_file() or sha256(file) != settings.tasks_sha256:
        raise UserError(f"{file}: missing or damaged (its SHA-256 is not the one in {SETTINGS}). Restore it.")
    tasks = [Task.model_validate(row) for row in read_json_lines(file)]
    by_id = {task.id: task for task in tasks}
    labels = Labels()
    for number, event in enumerate(read_events(folder / LABELS), 1):
        if fault := _fault(event, labels, by_id, settings.kind):
            raise UserError(f"{folder / LABELS}, line {number}: damaged ({fault}). Restore the file.")
        labels.add(event)
    return Round(folder, settings, by_id, labels)


def read_settings(folder: Path) -> Settings:
    """What a round asks.

    Raises:
        UserError: there is no round, or the file is damaged.
    """
    file = folder / SETTINGS
    if not file.is_file():
        raise UserError(f"{folder}: no labelling round is there (it has no {SETTINGS}).")
    try:
        return Settings.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}: damaged ({where}: {first['msg']:.150}). Restore the file.") from None


def _fault(event: object, labels: Labels, tasks: dict[str, Task], kind: Kind) -> str:
    """What is wrong with an event of this round; "" if nothing is."""
    if isinstance(event, Shown):
        if event.task not in tasks:
            return f"no task {event.task!r:.40} is in {TASKS}"
        answers = len(tasks[event.task].completions)
        return "" if sorted(event.order) == list(range(answers)) else "`order` does not order the answers"
    showing = labels.showings.get(getattr(event, "showing", ""))
    if showing is None:
        return "an earlier line must show the task"
    if not isinstance(event, Submitted):
        return ""
    if event.given != {GIVEN[kind]}:
        return f"a round of {kind} needs `{GIVEN[kind]}` and nothing else"
    if event.ranks is not None and len(event.ranks) != len(showing.order):
        return f"{len(event.ranks)} ranks for {len(showing.order)} answers"
    return ""
