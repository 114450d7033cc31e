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
from configs.schema import labeller_kind
from data.sources.messages import Text, last_text
from stages.feedback.endpoint_judge import EndpointJudge
from stages.feedback.labellers import LABELLERS, labeller
from stages.feedback.rankers import CACHE
from stages.feedback.verdict_cache import VerdictCache
from stages.maths.statistics import wins

GOLD, REWARD_MODEL, PEOPLE = "gold", "rm", "people"
OPTION, ANSWERS = "--judges", "answers.jsonl"

Compared = tuple[float, int, int]  # how often our answer won, its length, and that of the other


class Judge(Protocol):
    """Compares answers.

    Attributes:
        name: in tables.
    """

    name: str

    def scores(self, prompts: Sequence[Text], answers: Answers) -> list[float]:
        """A score of each answer; empty if this judge only compares two."""

    def compare(self, prompts: Sequence[Text], ours: Answers, theirs: Answers) -> Sequence[Compared]:
        """For each prompt that is judged 1 if our answer is better, 0 if it is worse, 1/2 for a tie; and the
        lengths of both.
        """

    def notes(self) -> list[str]:
        """What it could not say, once it has judged."""


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

    def compare(self, prompts: Sequence[Text], ours: Answers, theirs: Answers) -> list[Compared]:
        """See `Judge`. Equal texts tie: the noise of two forwards is no preference."""
        won = wins(self.scores(prompts, ours), self.scores(prompts, theirs))
        tied = [0.5 if a == b else one for one, a, b in zip(won, ours.texts, theirs.texts, strict=True)]
        return list(zip(tied, ours.lengths, theirs.lengths, strict=True))

    def notes(self) -> list[str]:
        """None."""
        return []


@dataclass
class ComparingJudge:
    """A judge that is shown two answers, by an OpenAI-compatible endpoint."""

    name: str
    endpoint: EndpointJudge

    def scores(self, prompts: Sequence[Text], answers: Answers) -> list[float]:
        """Empty: this judge compares."""
        return []

    def compare(self, prompts: Sequence[Text], ours: Answers, theirs: Answers) -> list[Compared]:
        """See `Judge` and `EndpointJudge.prefer`."""
        won = self.endpoint.prefer(prompts, ours.texts, theirs.texts)
        return list(zip(won, ours.lengths, theirs.lengths, strict=True))

    def notes(self) -> list[str]:
        """How many replies were unreadable, if any were."""
        unreadable = len(self.endpoint.unreadable)
        counted = f"{unreadable} of {len(self.endpoint.replies)} replies were unreadable, and count as ties."
        return [f"{self.name}: {counted}"] if unreadable else []


def open_judges(run: TrainedRun, names: Sequence[str] | None, folder: Path) -> list[Judge]:
    """The judges `names`: `gold` (`ppo.judge`), `rm`, `people`, a labeller, a function, an endpoint's YAML.

    Args:
        names: None for all that the run has.
        folder: of the evaluation. The replies of endpoints are kept there.

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
    judges = [_open(run, name, folder) for name in dict.fromkeys(names)]
    if double := [name for name, number in Counter(judge.name for judge in judges).items() if number > 1]:
        raise UserError(f"--judges: two are called {double[0]!r:.100}. Rename one of the judges' files.")
    return judges


def _open(run: TrainedRun, name: str, folder: Path) -> Judge:
    if name == PEOPLE:
        return PeopleJudge(run.run, run.manifests, folder / ANSWERS)
    if name == REWARD_MODEL:
        run.require("rm")
        return ScoringJudge(name, lambda prompts, answers: answers.rewards)
    if labeller_kind(name) == "endpoint":
        config = read_judge(Path(name), OPTION)
        folder.mkdir(parents=True, exist_ok=True)
        return ComparingJudge(Path(name).stem, EndpointJudge(config, OPTION, VerdictCache(folder / CACHE)))
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
