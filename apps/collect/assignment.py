"""Who gets which task: nobody gets what another holds, some tasks go to everyone, some come again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from data.people.events import Shown, Skipped, Submitted, now
from data.people.round import Round
from data.sources.unit import unit

AGAIN_AFTER = 5  # other tasks, at least, before a person gets one again


@dataclass(frozen=True)
class Plan:
    """How tasks are given out.

    Attributes:
        overlap: share of the tasks that everyone gets, so that people can be compared.
        again: share of a person's tasks that the same person gets a second time.
        lease_seconds: for which a task is held. Then another person may get it.
    """

    overlap: float = 0.1
    again: float = 0.05
    lease_seconds: float = 900


class Assignment:
    """Gives out the tasks of a round. It writes nothing: the caller records what is shown."""

    def __init__(self, content: Round, plan: Plan, clock: Callable[[], datetime] = now) -> None:
        self._round, self._labels, self._plan, self._clock = content, content.labels, plan, clock
        seed = content.settings.seed
        self._order = sorted(content.tasks, key=lambda task: unit(seed, "order", task))
        self._shared = content.shared
        self._until: dict[str, datetime] = {}  # end of each lease that was renewed, by showing
        for showing in reversed(self._open()):  # a server that starts does not know who is still at work
            if self.may_keep(showing):
                self.hold(showing)

    def held(self, labeller: str) -> Shown | None:
        """The task that a person has before it: the one that it took back last, or the last one shown."""
        open_ = {showing.showing: showing for showing in self.open_tasks(labeller)}
        taken_back = [showing for showing in self._labels.undone if showing in open_]
        return open_[next(reversed([*open_, *taken_back]))] if open_ else None

    def open_tasks(self, labeller: str) -> list[Shown]:
        """The tasks that a person has before it, in the order in which they were shown."""
        mine = (showing for showing in self._open() if showing.labeller == labeller)
        return [showing for showing in mine if self.may_keep(showing)]

    def next(self, labeller: str) -> Shown | None:
        """A new task for a person, not recorded yet; None if there is none for it now."""
        if (again := self._again(labeller, AGAIN_AFTER)) is not None:
            return self._showing(labeller, again, again=True)
        if task := next(self.candidates(labeller), None):
            return self._showing(labeller, task)
        last = self._again(labeller, 1)
        return None if last is None else self._showing(labeller, last, again=True)

    def candidates(self, labeller: str) -> Iterator[str]:
        """The tasks that a person may get now. Those that another person skipped come last."""
        seen = {showing.task for showing in self._labels.showings.values() if self._done(showing, labeller)}
        answered, skipped = self._tasks(Submitted), self._tasks(Skipped)
        held = {showing.task for showing in self._open() if self._is_held(showing)}
        free = [
            task
            for task in self._order
            if task not in seen and (task in self._shared or (task not in answered and task not in held))
        ]
        yield from (task for task in free if task not in skipped)
        yield from (task for task in free if task in skipped)

    def hold(self, showing: Shown) -> float:
        """Renew the lease of a task. Returns its seconds."""
        self._until[showing.showing] = self._clock() + timedelta(seconds=self._plan.lease_seconds)
        return self._plan.lease_seconds

    @property
    def held_now(self) -> int:
        """The number of tasks that somebody holds."""
        return sum(map(self._is_held, self._open()))

    def _showing(self, labeller: str, task: str, *, again: bool = False) -> Shown:
        """Show a task, its answers in an order that depends on the person and on how often it was shown."""
        name = f"{labeller}/{task}/{len(self._labels.showings)}"
        answers = range(len(self._round.tasks[task].completions))
        order = sorted(answers, key=lambda position: unit(self._round.settings.seed, name, str(position)))
        return Shown(
            showing=uuid4().hex[:16],
            time=self._clock(),
            task=task,
            labeller=labeller,
            order=tuple(order),
            again=again,
        )

    def _again(self, labeller: str, others: int) -> str | None:
        """A task that the person should get a second time, after `others` tasks or more."""
        showings = self._labels.showings
        mine = [shown for shown, _ in self._labels.submitted() if shown.labeller == labeller]
        twice = {shown.task for shown in showings.values() if shown.again and shown.labeller == labeller}
        for number, shown in enumerate(mine):
            due = not shown.again and shown.task not in twice and len(mine) - number > others
            if due and unit(self._round.settings.seed, f"again/{labeller}", shown.task) < self._plan.again:
                return shown.task
        return None

    def _open(self) -> list[Shown]:
        """The showings that nobody has answered or skipped."""
        labels = self._labels
        return [one for showing, one in labels.showings.items() if showing not in labels.outcomes]

    def _done(self, showing: Shown, labeller: str) -> bool:
        return showing.labeller == labeller and showing.showing in self._labels.outcomes

    def _tasks(self, kind: type[Submitted] | type[Skipped]) -> set[str]:
        labels = self._labels
        return {labels.showings[name].task for name, one in labels.outcomes.items() if isinstance(one, kind)}

    def _is_held(self, showing: Shown) -> bool:
        lease = timedelta(seconds=self._plan.lease_seconds)
        return self._clock() < self._until.get(showing.showing, showing.time + lease)

    def may_keep(self, showing: Shown) -> bool:
        """Whether a person may go on with a task: its lease lasts, or nobody else has got the task since."""
        if self._is_held(showing) or showing.again or showing.task in self._shared:
            return True
        others = (one for one in self._open() if one.labeller != showing.labeller)
        taken = any(one.task == showing.task and self._is_held(one) for one in others)
        return not taken and showing.task not in self._tasks(Submitted)
