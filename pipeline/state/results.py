"""What a run directory holds so far: manifests, metrics, samples and evaluations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from configs.load import load_experiment
from configs.schema import ALL_STAGES, Experiment, Stage
from pipeline.state.manifest import Manifest, read_manifest
from pipeline.state.reward_check import RewardCheck, read_check
from pipeline.state.rows import (
    CurveRow,
    EvaluationRow,
    MetricRow,
    RankingRow,
    Row,
    SampleRow,
    ScoredRankingRow,
    read_rows,
)
from pipeline.state.run_directory import RunDirectory


@dataclass(frozen=True)
class Results:
    """One run. A stage that has not run is missing from `manifests`, and its lists are empty.

    Attributes:
        metrics: the rows of each stage's `metrics.jsonl`.
        samples: prompts and responses seen during PPO.
        evaluation: answers of base, SFT and PPO to the held-out prompts.
        rankings: the rankings that the RM stage collected.
        scored_rankings: the held-out rankings with the reward model's scores.
        best_of_n: KL and scores on held-out prompts for each n.
        check: what `tristage check rm` found, of this reward model or of an earlier one.
    """

    run: RunDirectory
    experiment: Experiment
    manifests: dict[Stage, Manifest]
    metrics: dict[Stage, list[Row]]
    samples: list[Row]
    evaluation: list[Row]
    rankings: list[Row]
    best_of_n: list[Row]
    scored_rankings: list[Row] = field(default_factory=list)
    check: RewardCheck | None = None

    def finished(self, stage: Stage) -> bool:
        return stage in self.manifests and self.manifests[stage].status == "finished"

    def final_metrics(self, stage: Stage) -> dict[str, float]:
        """The final metrics of `stage`, NaN left out; empty until it is finished."""
        if not self.finished(stage):
            return {}
        metrics = self.manifests[stage].metrics
        return {name: value for name, value in metrics.items() if value == value}

    def curve(self, stage: Stage, name: str) -> tuple[list[int], list[float]]:
        """Steps at which metric `name` was logged as a number, and its values there."""
        rows = [row for row in self.metrics[stage] if row.get(name) is not None]
        return [row["step"] for row in rows], [row[name] for row in rows]


def read_results(run_dir: Path) -> Results:
    """Read the results of the stages that have run.

    Raises:
        UserError: `run_dir` is no run directory, or a file in it is damaged.
    """
    run = RunDirectory(run_dir)
    run.check()
    manifests = {stage: read_manifest(run.manifest(stage)) for stage in ALL_STAGES}
    return Results(
        run=run,
        experiment=load_experiment(run.config_file),
        manifests={stage: manifest for stage, manifest in manifests.items() if manifest},
        metrics={stage: read_rows(run.stage(stage) / "metrics.jsonl", MetricRow) for stage in ALL_STAGES},
        samples=read_rows(run.stage("ppo") / "samples.jsonl", SampleRow),
        evaluation=read_rows(run.stage("ppo") / "evaluation.jsonl", EvaluationRow),
        rankings=read_rows(run.stage("rm") / "rankings.jsonl", RankingRow),
        best_of_n=read_rows(run.stage("best") / "curve.jsonl", CurveRow),
        scored_rankings=read_rows(run.stage("rm") / "evaluation.jsonl", ScoredRankingRow),
        check=read_check(run_dir),
    )


def sweep_runs(root: Path) -> Iterator[Path]:
    """Run directories of the sweep in `root` whose PPO has at least begun. Further rounds may lie beside."""
    begun = (manifest.parent.parent for manifest in (root / "sweep").glob("*/ppo/manifest.json"))
    yield from sorted(run for run in begun if re.fullmatch(r"(.+-)?seed=\d+", run.name))
