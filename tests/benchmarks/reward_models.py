"""Reward models over seeds: accuracy on held-out prompts, simple rules on the same pairs, calibration.

python tests/benchmarks/reward_models.py configs/rm-hh.yaml --data harmless.jsonl [--seeds 3] [key=value ...]

A seed gives its own split, order and head. So the held-out prompts of several seeds overlap: the last line
takes the mean of each prompt over its seeds first, and its intervals draw prompts. `--data FILE` replaces all
three sources. A seed that has finished with the same configuration is not run again. `--records FILE` writes
the table as records of docs/evidence, too.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from configs.load import load_experiment  # noqa: E402
from pipeline.reporting.reward_model import report_of  # noqa: E402
from pipeline.state.results import Row, read_results  # noqa: E402
from pipeline.terminal.format import show_number  # noqa: E402
from stages.maths.preferences import ScoredRanking, reward_report  # noqa: E402
from stages.maths.statistics import Figure  # noqa: E402
from tests.support.runs import start  # noqa: E402

SECONDS = 24 * 3600.0
Columns = dict[str, str]


def main() -> int:
    arguments = parse()
    name = arguments.name or load_experiment(arguments.config).name
    runs = {seed: train(arguments, name, seed) for seed in range(arguments.seeds)}
    table = {f"seed {seed}": of_seed(run) for seed, run in runs.items()}
    table[f"{len(runs)} seeds"] = of_all([rankings_of(run) for run in runs.values()])
    columns = list(table["seed 0"])
    print(f"\n| {name} | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for what, figures in table.items():
        print(f"| {what} | {' | '.join(figures.get(column, '') for column in columns)} |")
    if arguments.records:
        lines = [json.dumps(record(arguments, name, *row), ensure_ascii=False) for row in table.items()]
        arguments.records.write_text("[\n " + ",\n ".join(lines) + "\n]\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("config", type=Path, help="the experiment's YAML")
    parser.add_argument("--data", type=Path, help="a file that replaces all three sources")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", help="of the runs and of the table; the experiment's, if none is given")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories go")
    parser.add_argument("--records", type=Path, help="also write the table as records of docs/evidence")
    parser.add_argument("--machine", default="2-core CPU", help="for the records")
    parser.add_argument("settings", nargs="*", help="key=value, as of tristage run")
    return parser.parse_intermixed_args()


def train(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    """The run directory of one seed, trained up to the reward model."""
    run: Path = arguments.runs / f"{name}-seed{seed}"
    sources = [f"data.{stage}.path={arguments.data.resolve()}" for stage in ("sft", "rm", "ppo")]
    command = [Path(sys.executable).with_name("tristage"), "run", arguments.config, "--until", "rm"]
    command += ["--run-dir", run, f"seed={seed}", f"name={name}-seed{seed}", *arguments.settings]
    done = start([*command, *(sources if arguments.data else [])], SECONDS)
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}\n{shlex.join(map(str, command))}: status {done.returncode}")
    return run


def of_seed(run: Path) -> Columns:
    """The figures of one reward model, as its own report has them."""
    results = read_results(run)
    report = report_of(results)
    if report is None:
        sys.exit(f"{run} holds no held-out pair")
    calibration, metrics = report["calibration"], results.final_metrics("rm")
    return {
        **accuracies(report),
        "calibration error": f"{show_number(calibration['error'])} (of a calibrated one: "
        f"{show_number(calibration['error_of_calibrated'])})",
        "temperature": "none"
        if calibration["temperature"] is None
        else show_number(calibration["temperature"]),
        "held-out prompts": show_number(len(rankings_of(run))),
        "steps": show_number(metrics["steps"]),
    }


def shown(value: Figure) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def rankings_of(run: Path) -> list[Row]:
    """The held-out rankings with their scores, as the run has them on file."""
    return [row for row in read_results(run).scored_rankings if len(set(row["ranks"])) > 1]


def of_all(seeds: Sequence[Sequence[Row]]) -> Columns:
    """Figures over all seeds: a prompt that several of them held out counts once, with its mean."""
    rows = [row for of_seed in seeds for row in of_seed]
    names = ScoredRanking.__dataclass_fields__
    rankings = [ScoredRanking(**{name: row[name] for name in names if name in row}) for row in rows]
    keys = [json.dumps([one.prompt, sorted(one.answers)]) for one in rankings]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    report = reward_report(rankings, None, [numbers[key] for key in keys])
    return accuracies(report) | {"held-out prompts": show_number(report["accuracy"]["n"])}


def accuracies(report: Mapping[str, Any]) -> Columns:
    """Accuracy, that of the baselines, and the difference to the best of them."""
    return {
        "accuracy": shown(report["accuracy"]),
        **{name: shown(baseline) for name, baseline in report["baselines"].items()},
        "less the best baseline": f"{shown(report['lead'])} ({report['best_baseline']})",
    }


def record(arguments: argparse.Namespace, name: str, what: str, figures: Columns) -> dict[str, Any]:
    """One record of docs/evidence."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    data = ["--data", "FILE"] if arguments.data else []
    command = [
        "python",
        "tests/benchmarks/reward_models.py",
        str(arguments.config),
        *data,
        *arguments.settings,
    ]
    return {
        "table": name,
        "what": what,
        "command": shlex.join(command),
        "n": f"{figures['held-out prompts']} held-out prompts",
        "figures": {key: value for key, value in figures.items() if key != "held-out prompts"},
        "commit": commit.stdout.strip(),
        "machine": arguments.machine,
        "date": f"{date.today():%Y-%m-%d}",
    }


if __name__ == "__main__":
    sys.exit(main())
