"""People as judge of two answers: what they chose on the page of `tristage collect pairs`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from apps.evaluate.answers import Answers
from data.people.results import first_labels
from data.people.round import Round
from data.sources.messages import Text, dialogue
from data.sources.text import collapsed
from stages.maths.statistics import wins

Pair = tuple[str, str, str]  # a prompt and two answers, with single blanks


class PeopleJudge:
    """Looks up whom people preferred. Only pairs with exactly these two answers count.

    Attributes:
        asked: pairs of different answers so far.
        unjudged: those of them that nobody has judged.
    """

    name = "people"

    def __init__(self, content: Round) -> None:
        self.asked = self.unjudged = 0
        self._chosen: dict[Pair, list[float]] = {}
        for showing, label in first_labels(content):
            task, ranks = content.tasks[showing.task], label.ranks
            if ranks is not None and len(ranks) == 2:
                first, second = task.completions
                (won,) = wins([-ranks[0]], [-ranks[1]])
                self._add(dialogue(task.prompt), first, second, won)
                self._add(dialogue(task.prompt), second, first, 1 - won)

    def scores(self, prompts: Sequence[Text], answers: Answers) -> list[float]:
        """Empty: people compare."""
        return []

    def prefer(self, prompts: Sequence[Text], ours: Answers, theirs: Answers) -> list[float | None]:
        """For each prompt the mean choice of those who judged the pair; None if nobody has.

        Equal answers tie.
        """
        return [
            self._choice(dialogue(prompt), mine, other)
            for prompt, mine, other in zip(prompts, ours.texts, theirs.texts, strict=True)
        ]

    def _choice(self, prompt: str, ours: str, theirs: str) -> float | None:
        if collapsed(ours) == collapsed(theirs):
            return 0.5
        self.asked += 1
        chosen = self._chosen.get(_pair(prompt, ours, theirs))
        self.unjudged += chosen is None
        return None if chosen is None else fmean(chosen)

    def _add(self, prompt: str, ours: str, theirs: str, won: float) -> None:
        self._chosen.setdefault(_pair(prompt, ours, theirs), []).append(won)


def _pair(prompt: str, ours: str, theirs: str) -> Pair:
    return collapsed(prompt), collapsed(ours), collapsed(theirs)
