"""The labels of a round as rows in the formats that stages read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data.people.events import Shown, Submitted
from data.people.round import Kind, Round
from data.sources.text import after
from data.storage.files import write_json_lines

Row = dict[str, Any]
DEMONSTRATIONS = "demonstrations.jsonl"


def rankings(content: Round) -> list[Row]:
    """A row for each ranking: if several people ranked the answers to a prompt, it has several rows.

    A ranking that a person gave again is left out: it only tells how well a person agrees with itself.
    """
    return [
        ranking_row(content, showing.task, label.ranks, showing.labeller)
        for showing, label in first_labels(content)
        if label.ranks
    ]


def ranking_row(
    content: Round, task_id: str, ranks: Sequence[int], labeller: str, scores: Sequence[float] = ()
) -> Row:
    """The answers of a task, best first.

    Args:
        ranks: of each of the task's answers.
        scores: of each, if there are any.
    """
    task = content.tasks[task_id]
    best_first = sorted(range(len(ranks)), key=lambda position: ranks[position])
    columns: Row = {"completions": task.completions, "completion_ids": task.completion_ids, "scores": scores}
    columns |= {"sources": task.sources} if content.settings.kind == "pairs" else {}
    return {
        "split": task.split,
        "prompt": task.prompt,
        **{name: [column[position] for position in best_first] for name, column in columns.items() if column},
        "ranks": [ranks[position] for position in best_first],
        **({"source": task.prompt_source} if task.prompt_source else {}),
        "labeller": labeller,
        "task": task.id,
    }


def ratings(content: Round) -> list[Row]:
    """A row for each answer, with the mean of its ratings."""
    given: dict[str, list[int]] = {}
    for showing, label in first_labels(content):
        given.setdefault(showing.task, []).append(label.rating or 0)
    return [
        {
            "prompt": content.tasks[task].prompt,
            "completion": content.tasks[task].completions[0],
            "rating": sum(each) / len(each),
            "task": task,
        }
        for task, each in given.items()
    ]


def demonstrations(content: Round) -> list[Row]:
    """A row for each answer that a person wrote, by itself or by editing the best of a ranking."""
    return [
        {
            "prompt": (prompt := content.tasks[showing.task].prompt),
            "completion": _joined(content, prompt, text),
            "labeller": showing.labeller,
            "task": showing.task,
        }
        for showing, label in first_labels(content)
        if (text := label.text or label.demonstration)
    ]


def _joined(content: Round, prompt: object, text: str) -> str:
    """The text as it stands after the prompt: words that continue a text are apart from it."""
    return after(prompt, text) if content.settings.continues_text and isinstance(prompt, str) else text


def first_labels(content: Round) -> Iterator[tuple[Shown, Submitted]]:
    """Each person's label of each task, without those that it gave again."""
    for showing, label in content.labels.submitted():
        if not showing.again:
            yield showing, label


ROWS: dict[Kind, Callable[[Round], list[Row]]] = {
    "rankings": rankings,
    "ratings": ratings,
    "demonstrations": demonstrations,
    "pairs": rankings,
}


def write_results(content: Round) -> None:
    """Write what stages read: `KIND.jsonl`, and the demonstrations that people wrote beside rankings."""
    write_json_lines(content.results_file, ROWS[content.settings.kind](content))
    edited, file = demonstrations(content), content.folder / DEMONSTRATIONS
    if content.settings.kind == "rankings" and (edited or file.exists()):  # they may all have been taken back
        write_json_lines(file, edited)
