"""What each stage learns at each learning rate, in the experiment that a run directory holds.

python tests/benchmarks/learning_rates.py --run runs/demo --stages sft --rates 1e-4 2e-4 5e-4 sft.max_steps=16
python tests/benchmarks/learning_rates.py --run runs/demo --stages ppo --rates 1e-5 1e-4 4e-4 ppo.iterations=4

Each rate of a stage gets its own run in RUN/learning-rates. The reward model and PPO start from the stages
before them in RUN, and the reward model reads the rankings that RUN has collected. `key=value` overrides the
experiment. A rate that has finished with the same configuration is not run again. `--record FILE` writes the
results as records of docs/evidence, too.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from configs.schema import STAGES, Stage  # noqa: E402
from tests.support.runs import RUN_STAGE, start  # noqa: E402

FIGURES: dict[Stage, dict[str, str]] = {
    "sft": {"eval_loss_before": "loss before", "eval_loss": "loss"},
    "rm": {"accuracy": "accuracy", "eval_loss": "loss"},
    "ppo": {"kl": "KL", "gold_sft": "gold, SFT", "gold_ppo": "gold, PPO", "win_rate": "win rate"},
}
SECONDS = 24 * 3600.0

Record = dict[str, Any]


def main() -> None:
    arguments = parse()
    records: list[Record] = []
    for stage in arguments.stages:
        print(f"\n| {stage} at | {' | '.join(FIGURES[stage].values())} | n |")
        print("|---" * (len(FIGURES[stage]) + 2) + "|")
        for rate in arguments.rates:
            for seed in arguments.seeds:
                record = measure(arguments, stage, rate, seed)
                print(
                    f"| {record['what']} | {' | '.join(record['figures'].values())} | {record['n']} |",
                    flush=True,
                )
                records.append(record)
    if arguments.record:
        lines = ",\n ".join(json.dumps(record, ensure_ascii=False) for record in records)
        arguments.record.write_text(f"[\n {lines}\n]\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--run", type=Path, required=True, help="run directory with the stages before")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--rates", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--record", type=Path, help="JSON file to write")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args()


def train(arguments: argparse.Namespace, stage: Stage, rate: str, seed: int) -> dict[str, float]:
    """The final metrics of `stage` at a learning rate."""
    run = (arguments.run / "learning-rates" / f"{stage}-{rate}-seed{seed}").resolve()
    run.mkdir(parents=True, exist_ok=True)
    for upstream in STAGES[: STAGES.index(stage)]:
        if not (run / upstream).exists():
            (run / upstream).symlink_to(arguments.run.resolve() / upstream)
    overrides = [f"{stage}.learning_rate={rate}", f"{stage}.seed={seed}", "tracking.wandb=disabled"]
    rankings = arguments.run.resolve() / "rm" / "rankings.jsonl"
    if stage == "rm" and rankings.exists():
        overrides += ["rm.rankings.labeller=file", f"data.rm.path={rankings}"]
        overrides += ["data.rm.ignore_columns=[split, completion_ids]"]
    config = arguments.run / "config.yaml"
    options = ["--stage", stage, "--config", config, "--run-dir", run, *overrides, *arguments.overrides]
    result = start([sys.executable, RUN_STAGE, *options], timeout=SECONDS)
    if result.returncode:
        sys.exit(result.stdout)
    metrics: dict[str, float] = json.loads((run / stage / "manifest.json").read_text())["metrics"]
    return metrics


def measure(arguments: argparse.Namespace, stage: Stage, rate: str, seed: int) -> Record:
    """The held-out figures of a stage, as a record of docs/evidence."""
    metrics = train(arguments, stage, rate, seed)
    names = FIGURES[stage]
    count = next(metrics[f"{name}_n"] for name in names if f"{name}_n" in metrics)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "table": stage,
        "what": rate,
        "command": f"python {shlex.join(sys.argv)}",
        "n": f"{metrics['steps']:.0f} steps, seed {seed}, {count:.0f} held-out prompts",
        "figures": {names[name]: with_interval(metrics, name) for name in names if name in metrics},
        "commit": commit.stdout.strip(),
        "machine": processor(),
        "date": date.today().isoformat(),
    }


def with_interval(metrics: dict[str, float], name: str) -> str:
    """A figure, with its 95 % interval if it has one."""
    if f"{name}_low" not in metrics:
        return f"{metrics[name]:.2f}"
    return f"{metrics[name]:.2f} [{metrics[f'{name}_low']:.2f}, {metrics[f'{name}_high']:.2f}]"


def processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} cores of {names[0].partition(':')[2].strip()}"


if __name__ == "__main__":
    main()
