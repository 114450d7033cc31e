"""What a run directory holds by now: manifests, curves, samples and judgements, as far as its stages got."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import STAGES, Experiment, Stage
from pipeline.manifest import Manifest, read_manifest
from pipeline.rundir import RunDirectory

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """One run; a stage that has not run is missing from `manifests`, and its lists are empty.

    Attributes:
        metrics: the rows of each stage's `metrics.jsonl`.
        samples: prompts and responses seen during PPO.
        evaluation: answers of base, SFT and PPO to the held-out prompts.
        rankings: the rankings that the RM stage collected.
    """

    run: RunDirectory
    experiment: Experiment
    manifests: dict[Stage, Manifest]
    metrics: dict[Stage, list[Row]]
    samples: list[Row]
    evaluation: list[Row]
    rankings: list[Row]

    def finished(self, stage: Stage) -> bool:
        return stage in self.manifests and self.manifests[stage].status == "finished"

    def figures(self, stage: Stage) -> dict[str, float]:
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
    """Read what there is.

    Raises:
        UserError: `run_dir` is no run directory, or a file in it is not what it should be.
    """
    run = RunDirectory(run_dir)
    if not run.config_file.is_file():
        raise UserError(
            f"{run_dir}: not a run directory, it has no config.yaml. Run a stage first, or give another "
            "--run-dir."
        )
    found = {stage: read_manifest(run.manifest(stage)) for stage in STAGES}
    return Results(
        run=run,
        experiment=load_experiment(run.config_file),
        manifests={stage: manifest for stage, manifest in found.items() if manifest},
        metrics={stage: read_lines(run.stage(stage) / "metrics.jsonl", ["step"]) for stage in STAGES},
        samples=read_lines(run.stage("ppo") / "samples.jsonl", ["step", "prompt", "response"]),
        evaluation=read_lines(run.stage("ppo") / "evaluation.jsonl", ["prompt", "base", "sft", "ppo"]),
        rankings=read_lines(run.stage("rm") / "rankings.jsonl", ["prompt", "completions", "ranks"]),
    )


def read_lines(path: Path, required: Sequence[str]) -> list[Row]:
    """The objects of a JSONL file, each with the keys in `required`; empty where there is no file.

    A last line without its line break is passed over: a kill, or a stage that is still writing, left it so.
    """
    if not path.exists():
        return []
    # Not splitlines: a JSON string may hold U+2028 and other characters at which that breaks lines.
    *lines, _half = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_row(path, number, line, required) for number, line in enumerate(lines, 1) if line.strip()]


def _row(path: Path, number: int, line: str, required: Sequence[str]) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error.msg}). Remove the line.") from None
    except (RecursionError, ValueError):
        raise UserError(f"{path}, line {number}: more than anybody wrote there. Remove the line.") from None
    missing = [key for key in required if not isinstance(row, dict) or key not in row]
    if missing:
        raise UserError(f"{path}, line {number}: no {', '.join(missing)} there. Remove the line.")
    return dict(row)
