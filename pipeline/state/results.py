"""What a run directory holds so far: manifests, metrics, samples and evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import ALL_STAGES, Experiment, Stage
from data.storage.files import read_json_lines
from pipeline.state.manifest import Manifest, read_manifest
from pipeline.state.run_directory import RunDirectory

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """One run. A stage that has not run is missing from `manifests`, and its lists are empty.

    Attributes:
        metrics: the rows of each stage's `metrics.jsonl`.
        samples: prompts and responses seen during PPO.
        evaluation: answers of base, SFT and PPO to the held-out prompts.
        rankings: the rankings that the RM stage collected.
        best_of_n: KL and scores on held-out prompts for each n.
    """

    run: RunDirectory
    experiment: Experiment
    manifests: dict[Stage, Manifest]
    metrics: dict[Stage, list[Row]]
    samples: list[Row]
    evaluation: list[Row]
    rankings: list[Row]
    best_of_n: list[Row]

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
    if not run.config_file.is_file():
        raise UserError(
            f"{run_dir}: not a run directory, it has no config.yaml. Run a stage first, or give another "
            "--run-dir."
        )
    manifests = {stage: read_manifest(run.manifest(stage)) for stage in ALL_STAGES}
    return Results(
        run=run,
        experiment=load_experiment(run.config_file),
        manifests={stage: manifest for stage, manifest in manifests.items() if manifest},
        metrics={stage: read_lines(run.stage(stage) / "metrics.jsonl", ["step"]) for stage in ALL_STAGES},
        samples=read_lines(run.stage("ppo") / "samples.jsonl", ["step", "prompt", "response"]),
        evaluation=read_lines(run.stage("ppo") / "evaluation.jsonl", ["prompt", "base", "sft", "ppo"]),
        rankings=read_lines(run.stage("rm") / "rankings.jsonl", ["prompt", "completions", "ranks"]),
        best_of_n=read_lines(run.stage("best") / "curve.jsonl", ["n", "kl", "rm_score"]),
    )


def read_lines(path: Path, required: Sequence[str]) -> list[Row]:
    """The objects of a JSONL file that a stage may still be writing; empty if there is no file."""
    return read_json_lines(path, required, growing=True) if path.exists() else []


def sweep_runs(root: Path) -> Iterator[Path]:
    """Run directories of the sweep in `root` whose PPO has at least begun."""
    yield from sorted(manifest.parent.parent for manifest in (root / "sweep").glob("*/ppo/manifest.json"))
