"""Who says which answer is better: the gold function, the reward model, a function, an endpoint, people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from apps.evaluate.answers import Answers
from apps.evaluate.people_judge import PeopleJudge
from apps.trained_run import TrainedRun, this_process
from configs.errors import UserError
from configs.judge_file import read_judge
from configs.schema import JUDGE_FILES
from data.people.round import FOLDER, read_round
from data.sources.messages import Text, last_text
from stages.feedback.endpoint_judge import EndpointJudge
from stages.feedback.labellers import LABELLERS, labeller
from stages.maths.statistics import wins

GOLD, REWARD_MODEL, PEOPLE = "gold", "rm", "people"
OPTION = "--judges"


class Judge(Protocol):
    """Compares answers.

    Attributes:
        name: in tables.
    """

    name: str

    def scores(self, prompts: Sequence[Text], answers: Answers) -> list[float]:
        """A score of each answer; empty if this judge only compares two."""

    def prefer(self, prompts: Sequence[Text], ours: Answers, theirs: Answers) -> Sequence[float | None]:
        """For each prompt 1 if our answer is better, 0 if it is worse, 1/2 for a tie; None if not judged."""


@dataclass
class ScoringJudge:
    """A judge that gives each answer a score; the higher score wins.

    It is asked once about each candidate: some judges are slow, and some are random.
    """

    name: str
    score: Callable[[Sequence[str], Answers], list[float]]
    _given: dict[int, tuple[Answers, list[float]]] = field(default_factory=dict)  # by the answers' identity

    def scores(self, prompts: Sequence[Text], answers: Answers) -> list[float]:
        """See `Judge`."""
        if id(answers) not in self._given:
            self._given[id(answers)] = answers, self.score([last_text(prompt) for prompt in prompts], answers)
        return self._given[id(answers)][1]

    def prefer(self, prompts: Sequence[Text], ours: Answers, theirs: Answers) -> list[float]:
        """See `Judge`. Equal texts tie: the noise of two forwards is no preference."""
        won = wins(self.scores(prompts, ours), self.scores(prompts, theirs))
        return [0.5 if a == b else one for one, a, b in zip(won, ours.texts, theirs.texts, strict=True)]


@dataclass
class ComparingJudge:
    """A judge that is shown two answers, by an OpenAI-compatible endpoint."""

    name: str
    endpoint: EndpointJudge

    def scores(self, prompts: Sequence[Text], answers: Answers) -> list[float]:
        """Empty: this judge compares."""
        return []

    def prefer(self, prompts: Sequence[Text], ours: Answers, theirs: Answers) -> list[float]:
        """See `Judge` and `EndpointJudge.prefer`."""
        return self.endpoint.prefer(prompts, ours.texts, theirs.texts)


def open_judges(run: TrainedRun, names: Sequence[str] | None) -> list[Judge]:
    """The judges `names`: `gold` (`ppo.judge`), `rm`, `people`, a labeller, a function, an endpoint's YAML.

    Args:
        names: None for all that the run has.

    Raises:
        UserError: a name is none of these, or the run has no such judge.
    """
    if names is None:
        names = [
            *([GOLD] if run.config.ppo.judge else []),
            *([REWARD_MODEL] if "rm" in run.manifests else []),
        ]
    if not names:
        raise UserError(
            "--judges: this run has neither a judge (ppo.judge) nor a reward model. Name one, such as "
            "--judges my_module:my_function"
        )
    judges = [_open(run, name) for name in dict.fromkeys(names)]
    if double := [name for name, number in Counter(judge.name for judge in judges).items() if number > 1]:
        raise UserError(f"--judges: two are called {double[0]!r:.100}. Rename one of the judges' files.")
    return judges


def _open(run: TrainedRun, name: str) -> Judge:
    if name == PEOPLE:
        return PeopleJudge(read_round(run.run.path / FOLDER / "pairs"))
    if name == REWARD_MODEL:
        run.require("rm")
        return ScoringJudge(name, lambda prompts, answers: answers.rewards)
    if name.endswith(JUDGE_FILES):
        return ComparingJudge(Path(name).stem, EndpointJudge(read_judge(Path(name), OPTION), OPTION))
    function = run.config.ppo.judge if name == GOLD else name
    if function is None:
        raise UserError("--judges: gold: this run has no ppo.judge. Name a labeller or module:function.")
    if ":" not in function and function not in LABELLERS:
        raise UserError(
            f"--judges: {name!r:.100} is no judge. There are gold, rm, people, {', '.join(LABELLERS)}, "
            "module:function, and the YAML file of an endpoint."
        )
    judge = labeller(function, OPTION, this_process())

    def score(prompts: Sequence[str], answers: Answers) -> list[float]:
        return [judgement.score for judgement in judge(prompts, answers.texts)]

    return ScoringJudge(name, score)


def notes_of(judge: Judge) -> list[str]:
    """What a judge could not say, once it has judged."""
    if not isinstance(judge, PeopleJudge) or not judge.unjudged:
        return []
    return [
        f"People have judged {judge.asked - judge.unjudged} of {judge.asked} pairs of different answers. Ask "
        "about the rest: tristage collect pairs --answers RUN/evaluation/answers.jsonl --policy A,B"
    ]
