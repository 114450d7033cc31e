"""What is compared: a policy, its best of n answers, or the base with demonstrations in its prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from configs.errors import UserError

FORM = re.compile(
    r"(?P<policy>.+?)(?:@(?P<best_of>\d+))?(?:\+(?P<shots>\d+)(?P<choice>-nearest|-shuffled|-order\d+)?)?"
    r"(?P<reasons>\+cot)?(?:~(?P<votes>\d+))?"
)
FORMS = (
    "POLICY, POLICY@N (best of N), POLICY+K (K demonstrations), POLICY+K-nearest, POLICY+K-shuffled, "
    "POLICY+K-order2, POLICY~N (the answer that most of N give), POLICY+cot (after reasoning), POLICY+cot~N"
)
MOST = 1024
LEAST = {"best_of": 1, "shots": 0, "votes": 1}  # of each number in a name


@dataclass(frozen=True)
class Candidate:
    """One row of the comparison.

    Attributes:
        name: as the user wrote it, such as `ppo`, `sft@4`, `base+4-nearest`.
        policy: `base`, `sft`, `ppo`, or the folder of an adapter.
        best_of: answers to each prompt, of which the reward model picks one.
        shots: demonstrations in front of each prompt (Brown et al. 2020).
        choice: how they are chosen: `random`, `nearest` to the prompt by TF-IDF, or `shuffled`: random ones
            whose answers were exchanged, which shows whether the answers matter (Min et al. 2022). `order2`,
            `order3`, ...: the random ones in another order, which can matter as much (Lu et al. 2022).
        instruction: stands in front of each prompt (see `instructions.py`).
        reasons: it is asked to think step by step, and what it says at the end is its answer (Kojima et al.
            2022, "Large Language Models are Zero-Shot Reasoners").
        votes: answers to each prompt, of which the most frequent counts (self-consistency, Wang et al. 2022).
    """

    name: str
    policy: str
    best_of: int = 1
    shots: int = 0
    choice: str = "random"
    instruction: str = ""
    reasons: bool = False
    votes: int = 1

    @property
    def samples(self) -> int:
        """Answers to each prompt, of which one counts."""
        return self.best_of * self.votes

    @property
    def in_context(self) -> bool:
        """Whether the prompt holds more than the prompt."""
        return self.shots > 0 or self.reasons or bool(self.instruction)


def parse_candidates(names: Sequence[str]) -> list[Candidate]:
    """Read the names of candidates.

    Raises:
        UserError: a name has another form, a number out of range, or stands there twice.
    """
    names = [name.strip() for name in names]
    candidates = [_parse(name) for name in names]
    if len(candidates) < 2:
        raise UserError("--policies: name two or more, to compare. For example: --policies sft,ppo")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--policies: {twice[0]!r:.100} stands there twice.")
    return candidates


def _parse(name: str) -> Candidate:
    match = FORM.fullmatch(name)
    if match is None:
        raise UserError(f"--policies: {name!r:.100} is none of: {FORMS}.")
    best_of, shots, votes = (int(match[name] or least) for name, least in LEAST.items())
    if not 1 <= best_of <= MOST or not 1 <= votes <= MOST or shots > MOST:
        raise UserError(f"--policies: {name!r:.100}: from 1 to {MOST} answers or demonstrations.")
    if best_of > 1 and votes > 1:
        raise UserError(
            f"--policies: {name!r:.100}: @ has the reward model choose, and ~ a vote. Leave one out."
        )
    choice = (match["choice"] or "-random").removeprefix("-")
    return Candidate(
        name, match["policy"], best_of, shots, choice, reasons=bool(match["reasons"]), votes=votes
    )
