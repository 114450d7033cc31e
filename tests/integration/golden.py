"""The trajectories of the tiny experiment's three stages, kept in `golden.json`.

python -m tests.integration.golden      # rewrites golden.json, for an intended change of behaviour
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.schema import STAGES, Stage
from tests.support.runs import ROOT, rows, start_warm

FILE = Path(__file__).with_name("golden.json")
RECIPES = ROOT / "tests" / "support" / "recipes.py"
STEPS = 20
LONGER = (
    *("sft.epochs=3", f"sft.max_steps={STEPS}", "rm.epochs=3", f"rm.max_steps={STEPS}"),
    f"ppo.iterations={STEPS}",
    *(f"{stage}.{key}={STEPS}" for stage in STAGES for key in ("eval_steps", "save_steps")),
)
FIGURES: dict[Stage, tuple[str, ...]] = {
    "sft": ("loss",),
    "rm": ("loss",),
    "ppo": ("loss/policy_avg", "loss/value_avg", "objective/scores", "objective/kl"),
}

Trajectories = dict[str, list[dict[str, Any]]]


def run(upstream: Path, folder: Path, *overrides: str) -> Trajectories:
    """Run the stages on one rank, each on the adapters in `upstream`; returns what they logged."""
    deepspeed_json = ROOT / "configs" / "deepspeed" / "zero0.json"
    result = start_warm([RECIPES, upstream, folder, deepspeed_json, "go", *overrides], ranks=1)
    assert result.returncode == 0, result.stdout
    return {stage: trajectory(folder / stage, FIGURES[stage]) for stage in STAGES}


def trajectory(folder: Path, figures: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of each step, with its logged responses."""
    logged = [row for row in rows(folder / "metrics.jsonl") if "learning_rate" in row]
    responses: dict[int, list[str]] = {row["step"]: [] for row in logged}
    for row in rows(folder / "samples.jsonl"):
        responses[row["step"]].append(row["response"])
    return [{name: row[name] for name in figures} | {"responses": responses[row["step"]]} for row in logged]


def rounded(value: Any) -> Any:
    """All numbers in `value` to 6 significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trajectories = run(Path(folder), Path(folder), *LONGER)
    FILE.write_text(json.dumps(rounded(trajectories), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {FILE}")
