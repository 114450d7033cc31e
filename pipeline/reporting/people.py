"""What people say of the result: the win rate in the run's round of pairs, or how they are asked."""

from __future__ import annotations

import shlex
from pathlib import Path

from configs.schema import Stage
from data.people.choices import choices
from data.people.round import FOLDER, has_round, read_round
from pipeline.state.manifest import output_digests
from pipeline.state.results import Results
from stages.maths.statistics import mean_with_interval

POLICIES: tuple[Stage, Stage] = ("sft", "ppo")


def people_win_rate(results: Results) -> dict[str, float]:
    """`win_rate` of PPO against SFT with its interval; empty before people have judged these policies."""
    folder = results.run.path / FOLDER / "pairs"
    if not has_round(folder) or not results.finished("ppo"):
        return {}
    content = read_round(folder)
    policies = {stage: results.manifests[stage] for stage in POLICIES if stage in results.manifests}
    if content.settings.adapters != output_digests(policies):
        return {}
    won = [choice.won for choice in choices(content, "ppo", "sft")]
    return mean_with_interval("win_rate", won) if won else {}


def ask_people(run: Path) -> str:
    """The command by which people judge the answers of SFT and PPO."""
    return shlex.join(["tristage", "collect", "pairs", "--run-dir", str(run)])
