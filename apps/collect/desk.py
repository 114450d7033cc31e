"""The desk of a round: it hands out tasks, and takes labels. What it says is done is on the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from apps.collect.assignment import Assignment, Plan
from data.people.events import (
    LabelFile,
    Labels,
    Outcome,
    Shown,
    Skipped,
    SkipReason,
    Submitted,
    Undone,
    now,
)
from data.people.round import GIVEN, Round

Json = dict[str, Any]


class UnknownShowing(Exception):
    """A page speaks of a task that its person does not have before it."""


class WrongKind(Exception):
    """A page answers something else than the round asks."""


@dataclass(frozen=True)
class Answer:
    """What a page submits.

    Attributes:
        ranks: of the answers in the order in which they were shown, 1 for the best. Equal numbers tie.
        rating, text, demonstration: see `Submitted`.
    """

    showing: str
    submission: str
    seconds: float
    ranks: Sequence[int] | None = None
    rating: int | None = None
    text: str | None = None
    demonstration: str | None = None


class Desk:
    """Hands out tasks and takes labels. One thread calls it."""

    def __init__(
        self, content: Round, file: LabelFile, plan: Plan, clock: Callable[[], datetime] = now
    ) -> None:
        content.share(plan.overlap)
        self.round, self._file, self._clock = content, file, clock
        self.assignment = Assignment(content, plan, clock)

    @property
    def labels(self) -> Labels:
        """What people did so far."""
        return self.round.labels

    def next(self, labeller: str) -> Shown | None:
        """The task for a person: the one that it has already, or a new one; None if there is none now."""
        if held := self.assignment.held(labeller):
            self.assignment.hold(held)
            return held
        showing = self.assignment.next(labeller)
        if showing is not None:
            self._record(showing)
        return showing

    def submit(self, labeller: str, answer: Answer) -> None:
        """Take an answer. One that was sent before does not count again.

        Raises:
            UnknownShowing: it answers no task of this person, or one that has an answer already.
            WrongKind: it is not what the round asks.
            OSError: it cannot be written.
        """
        showing = self._answered(labeller, answer.showing, answer.submission)
        if showing is None:
            return
        self._check(answer, showing)
        ranks = None if answer.ranks is None else _ranks_of_task(answer.ranks, showing.order)
        self._record(
            Submitted(
                showing=showing.showing,
                time=self._clock(),
                submission=answer.submission,
                seconds=answer.seconds,
                ranks=ranks,
                rating=answer.rating,
                text=answer.text,
                demonstration=answer.demonstration,
            )
        )

    def skip(
        self, labeller: str, showing: str, submission: str, seconds: float, reason: SkipReason, note: str
    ) -> None:
        """Pass a task on; see `submit` for what it raises."""
        shown = self._answered(labeller, showing, submission)
        if shown is not None:
            self._record(
                Skipped(
                    showing=showing,
                    time=self._clock(),
                    submission=submission,
                    seconds=seconds,
                    reason=reason,
                    note=note,
                )
            )

    def undo(self, labeller: str) -> tuple[Shown, Outcome] | None:
        """Take back a person's last answer or skip. Its task is before the person again."""
        for showing, outcome in reversed(self.labels.outcomes.items()):
            shown = self.labels.showings[showing]
            if shown.labeller == labeller:
                self._record(Undone(showing=showing, time=self._clock()))
                self.assignment.hold(shown)
                return shown, outcome
        return None

    def hold(self, labeller: str, showing: str) -> float:
        """Renew a lease. Returns its seconds; raises UnknownShowing if the person does not have the task."""
        shown = self._open(labeller, showing)
        if not self.assignment.may_keep(shown):
            raise UnknownShowing
        return self.assignment.hold(shown)

    def counts(self, labeller: str) -> Json:
        """What a person has done, and what is left for it beside the task in sight."""
        before = [shown.task for shown in self.assignment.open_tasks(labeller)]
        in_sight = self.assignment.held(labeller)
        left = {*self.assignment.candidates(labeller), *before} - {in_sight.task if in_sight else None}
        mine = [outcome for shown, outcome in self.labels.submitted() if shown.labeller == labeller]
        today = self._clock().astimezone().date()
        return {
            "done": len(mine),
            "left": len(left),
            "total": len(self.round.tasks),
            "today": sum(one.time.astimezone().date() == today for one in mine),
            "median_seconds": median(one.seconds for one in mine) if mine else None,
        }

    def _answered(self, labeller: str, showing: str, submission: str) -> Shown | None:
        """The showing that is answered; None if this very submission is on the disk already.

        A person's answer counts even if another has got the task since: it is work, and is not thrown away.
        """
        return None if self.labels.has(submission) else self._open(labeller, showing)

    def _open(self, labeller: str, showing: str) -> Shown:
        """A showing that its person has not answered; raises UnknownShowing if it is none."""
        shown = self.labels.showings.get(showing)
        if shown is None or shown.labeller != labeller or showing in self.labels.outcomes:
            raise UnknownShowing
        return shown

    def _check(self, answer: Answer, showing: Shown) -> None:
        given = {name for name in ("ranks", "rating", "text") if getattr(answer, name) is not None}
        kind = self.round.settings.kind
        if given != {GIVEN[kind]} or (answer.demonstration is not None and kind != "rankings"):
            raise WrongKind(f"this round collects {kind}: give {GIVEN[kind]} and nothing else")
        if answer.ranks is not None and len(answer.ranks) != len(showing.order):
            raise WrongKind(f"give a rank to each of the {len(showing.order)} answers")
        if kind == "demonstrations" and not (answer.text or "").strip():
            raise WrongKind("the text is empty")

    def _record(self, event: Shown | Submitted | Skipped | Undone) -> None:
        self._file.append(event)
        self.labels.add(event)


def _ranks_of_task(shown: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Ranks of the task's answers from 0, without gaps, from those of the answers as they were shown."""
    levels = sorted(set(shown))
    ranks = dict(zip(order, (levels.index(rank) for rank in shown), strict=True))
    return tuple(ranks[position] for position in range(len(order)))
