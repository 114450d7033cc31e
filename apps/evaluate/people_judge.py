"""People as judge of two policies: what they chose on the page of `tristage collect pairs`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from apps.evaluate.answers import Answers
from configs.errors import UserError
from configs.schema import Stage
from data.people.choices import choices
from data.people.round import FOLDER, rounds
from data.sources.messages import Text
from pipeline.reporting.people import ask_people
from pipeline.state.manifest import Manifest, output_digests
from pipeline.state.run_directory import RunDirectory

RECORDED = ("sft", "ppo")  # PPO's own evaluation has their answers


class PeopleJudge:
    """Tells whom people preferred in all rounds of pairs of a run.

    People judged the answers of their round, not those that an evaluation samples: a policy answers each time
    with other noise.
    """

    name = "people"

    def __init__(self, run: RunDirectory, manifests: Mapping[Stage, Manifest], answers: Path) -> None:
        """Read the rounds.

        Args:
            manifests: of the run's stages. A round about answers of earlier ones does not count.
            answers: the file of the evaluation, whose answers people can be asked about.

        Raises:
            UserError: there is no round of pairs, or one is damaged.
        """
        pairs = [content for content in rounds(run.path) if content.settings.kind == "pairs"]
        if not pairs:
            ask = ask_people(run.path)
            raise UserError(f"--judges people: nobody has compared answers of {run.path}. Ask them: {ask}")
        present = output_digests(manifests)
        self._stale = [content for content in pairs if content.settings.is_stale(present)]
        self._rounds = [content for content in pairs if content not in self._stale]
        self._run, self._answers = run.path, answers
        self._judged: dict[tuple[str, str], tuple[int, int]] = {}  # of two policies: pairs judged, and in all

    def scores(self, prompts: Sequence[Text], answers: Answers) -> list[float]:
        """Empty: people compare."""
        return []

    def compare(
        self, prompts: Sequence[Text], ours: Answers, theirs: Answers
    ) -> list[tuple[float, int, int]]:
        """See `Judge`. Lengths are in characters, and the prompts are those of the rounds."""
        names = ours.candidate.name, theirs.candidate.name
        about = [content for content in self._rounds if set(names) == set(content.settings.policies)]
        found = [choice for content in about for choice in choices(content, *names)]
        asked = sum(len(content.tasks) + content.settings.equal for content in about)
        self._judged[names] = len(found), asked
        return [(choice.won, len(choice.ours), len(choice.theirs)) for choice in found]

    def notes(self) -> list[str]:
        """What the figures are about, and what people have not judged."""
        notes = [
            f"People judged {judged} of {asked} pairs of {' and '.join(names)}, with answers of their round."
            for names, (judged, asked) in self._judged.items()
            if asked
        ]
        notes += [
            f"{one.folder}: left out, as a stage behind its answers was trained again." for one in self._stale
        ]
        unasked = [names for names, (_, asked) in self._judged.items() if not asked]
        if unasked:
            notes.append(
                f"Nobody was asked about {' and '.join(unasked[0])}. Ask people: {self._command(unasked[0])}"
            )
        return notes

    def _command(self, names: tuple[str, str]) -> str:
        """The command that asks about two policies, in a round of its own."""
        folder = self._run / FOLDER / re.sub(r"[^\w@.+~-]+", "-", f"pairs-{'-'.join(names)}")
        words = ["tristage", "collect", "pairs", "--run-dir", str(self._run), "--policy", ",".join(names)]
        if set(names) != set(RECORDED):
            words += ["--answers", str(self._answers)]
        return shlex.join([*words, "--out", str(folder)])
