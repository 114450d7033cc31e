"""One kill in each phase of an experiment: of its stages, of `tristage run`, its report and a sweep."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.schema import Stage
from tests.chaos.attempt import STAGE, Kill
from tests.chaos.campaign import OPTIONS, Campaign, Undisturbed, Watch, differences
from tests.chaos.stage import REPORT, WANDB_END
from tests.support.runs import TINY, copy_upstream, files

# Phase, stage, and how the moment begins. Of several such moments, the last one counts.
IN_STAGES: list[tuple[str, Stage, str]] = [
    ("collection of rankings", "rm", "in rm: sampling"),
    ("normalisation", "rm", "in rm: normalizing"),
    ("final evaluation", "ppo", "in ppo: answers of"),
    ("W&B's end", "sft", WANDB_END),
    ("best-of-n", "best", "in best: "),
]
SWEPT = "seed=1"
HEADER = "| phase | killed | when | recovered | every record identical |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Outcome:
    """What came of one kill."""

    phase: str
    killed: str
    when: str
    finished: bool
    faults: Sequence[str]

    def row(self) -> str:
        answers = ["yes" if holds else "no" for holds in (self.finished, self.finished and not self.faults)]
        return f"| {' | '.join((self.phase, self.killed, self.when, *answers))} |"


def outcomes(campaign: Campaign, ranks: int, only: str = "") -> Iterator[Outcome]:
    """One kill in each phase, or in one of a stage alone."""
    for phase, stage, beginning in IN_STAGES:
        if only in ("", phase):
            yield _in_stage(campaign, ranks, phase, stage, beginning)
    if only:
        return
    reference = campaign.undisturbed("ppo", ranks).run
    commands = Tristage(campaign, ranks)
    yield commands.orchestrator(reference)
    yield commands.report(reference)
    yield commands.sweep(reference)


def _in_stage(campaign: Campaign, ranks: int, phase: str, stage: Stage, beginning: str) -> Outcome:
    def draw(reference: Undisturbed, _: int) -> Kill:
        moments = [moment for moment in reference.moments if moment.startswith(beginning)]
        return Kill("all", moment=moments[-1])

    life = campaign.live(stage, ranks, campaign.folder / phase.replace(" ", "-"), 1, draw)
    when = life.kills[0].moment if life.kills else "never"
    return Outcome(phase, f"all processes of {stage}", when, life.finished, life.faults)


class Tristage:
    """Commands of `tristage` that are killed alone: the processes that they started must end, too."""

    def __init__(self, campaign: Campaign, ranks: int) -> None:
        self.campaign, self.ranks = campaign, ranks
        self._run = campaign.folder / "orchestrator"
        self._moments: list[str] = []

    def orchestrator(self, reference: Path) -> Outcome:
        """`tristage run` dies while the reward model trains."""
        run = copy_upstream(reference, "rm", self._run)
        begun, watch = run / "rm" / "metrics.jsonl", Watch(run, "rm")
        finished, faults = self._killed(self._command("run", run), run, watch, Kill("tristage"), begun)
        if finished:
            for stage in ("sft", "rm", "ppo"):
                faults += differences(run / stage, reference / stage)
        return Outcome("orchestrator", "tristage run", "in rm: training", finished, faults)

    def report(self, reference: Path) -> Outcome:
        """`tristage run` dies while it writes the report of the run that `orchestrator` has left."""
        writes = [moment for moment in self._moments if moment.startswith("write")]
        if not writes:
            return Outcome("report", "tristage run", "never", False, ["nothing wrote a report"])
        before, kill = files(self._run / REPORT), Kill("tristage", moment=writes[len(writes) // 2])
        watch = Watch(self._run, "ppo")
        finished, faults = self._killed(self._command("run", self._run), self._run, watch, kill)
        if finished:
            faults += differences(self._run / "ppo", reference / "ppo")
            faults += [] if files(self._run / REPORT) == before else ["the report differs"]
        return Outcome("report", "tristage run", kill.moment, finished, faults)

    def sweep(self, reference: Path) -> Outcome:
        """`tristage sweep` dies while PPO trains in its run, and is compared with another sweep."""
        whole, run = (
            copy_upstream(reference, "ppo", self.campaign.folder / name) for name in ("whole-sweep", "sweep")
        )
        undisturbed = self.campaign.attempt(self._command("sweep", whole, f"ppo.{SWEPT}"), whole, REPORT)
        assert undisturbed.end() == 0, undisturbed.output.read_text()
        swept = run / "sweep" / SWEPT
        begun, watch = swept / "ppo" / "metrics.jsonl", Watch(swept, "ppo")
        command = self._command("sweep", run, f"ppo.{SWEPT}")
        finished, faults = self._killed(command, run, watch, Kill("tristage"), begun)
        if finished:
            faults += differences(swept / "ppo", whole / "sweep" / SWEPT / "ppo")
        return Outcome("sweep", "tristage sweep", "in ppo: training", finished, faults)

    def _command(self, word: str, run: Path, *overrides: str) -> list[str]:
        options = [f"--num-accelerators={self.ranks}", "--config", str(TINY), "--run-dir", str(run)]
        return [sys.executable, str(STAGE), word, *options, *OPTIONS, *overrides]

    def _killed(
        self, command: list[str], run: Path, watch: Watch, kill: Kill, begun: Path | None = None
    ) -> tuple[bool, list[str]]:
        """Kill a command, and run it again to its end: whether it finishes, and what is wrong."""
        attempt = self.campaign.attempt(command, run, REPORT, kill.moment)
        if not attempt.strike(kill, random.Random(0), begun):
            return False, [f"ended before it was killed: {attempt.output.read_text()[-2000:]}"]
        faults = watch.after_a_kill(attempt)
        again = self.campaign.attempt(command, run, REPORT)
        if status := again.end():
            return False, [*faults, f"ended with status {status}: {again.output.read_text()[-2000:]}"]
        if again.trace.exists():
            self._moments = list(dict.fromkeys(again.trace.read_text().splitlines()))
        return True, [*faults, *watch.after_a_kill(again), *watch.at_the_end()]
