"""What the demo shows over seeds: gold score and its parts, fluency, non-words, variety, best of n.

tristage sweep --seeds 3 best.n=4
python tests/benchmarks/demo_seeds.py runs/demo [--records FILE]

All figures are of held-out prompts. Intervals are 95 % bootstrap intervals over prompts.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from wordfreq import zipf_frequency

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from data.storage.files import read_json_lines  # noqa: E402
from pipeline.reporting.figure_style import ROLE_NAMES  # noqa: E402
from pipeline.state.results import Results, Row, read_results, sweep_runs  # noqa: E402
from stages.maths.statistics import mean_with_interval, wins  # noqa: E402

Figures = dict[str, dict[str, float]]  # of each figure: mean, low, high, n


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path, help="the run directory of the sweep")
    parser.add_argument("--records", type=Path, help="also write the figures as records of docs/evidence")
    parser.add_argument("--machine", default="2-core CPU", help="for the records")
    arguments = parser.parse_args()
    of_all = read_results(arguments.run)  # SFT and the reward model, which all seeds share
    picks = best_answers(of_all)
    evaluations = {path.name: read_results(path).evaluation for path in sweep_runs(arguments.run)}
    if not evaluations:
        sys.exit(f"{arguments.run} holds no sweep. Run tristage sweep --seeds 3 best.n=4 first.")
    runs = {name: figures(rows) | beside_best(rows, picks) for name, rows in evaluations.items()}
    names = list(next(iter(runs.values())))
    rows = {name: {run: show(of_run[name]) for run, of_run in runs.items()} for name in names}
    shared = best_of_n(of_all, picks) | accuracies(of_all)
    for name, columns in rows.items():
        print(f"{name:50}", *(f"{value:>24}" for value in columns.values()))
    for name, value in shared.items():
        print(f"{name:50} {show(value):>24}")
    if arguments.records:
        number = len(next(iter(evaluations.values())))
        records = [
            record("seeds", name, number, columns, arguments.machine) for name, columns in rows.items()
        ]
        records += [
            record("shared", name, round(of["n"]), {"all seeds": show(of)}, arguments.machine)
            for name, of in shared.items()
        ]
        arguments.records.write_text("[\n " + ",\n ".join(map(json.dumps, records)) + "\n]\n")
    return 0


def show(value: dict[str, float]) -> str:
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def record(table: str, name: str, prompts: int, columns: dict[str, str], machine: str) -> dict[str, Any]:
    """One record of docs/evidence."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "table": table,
        "what": name,
        "command": "python tests/benchmarks/demo_seeds.py runs/demo",
        "n": f"{prompts} held-out prompts",
        "figures": columns,
        "commit": commit.stdout.strip(),
        "machine": machine,
        "date": f"{date.today():%Y-%m-%d}",
    }


def figures(rows: Sequence[Row]) -> Figures:
    """The figures of one run, from the rows of its `ppo/evaluation.jsonl`."""
    result: Figures = {}
    parts = [name.removesuffix("_ppo") for name in rows[0] if re.fullmatch(r"gold_(\w+_)?ppo", name)]
    for part in parts:
        label = part.replace("gold_", "gold, ") if part != "gold" else "gold score"
        for role in ROLE_NAMES:
            result[f"{label}: {ROLE_NAMES[role]}"] = interval(row[f"{part}_{role}"] for row in rows)
        result[f"{label}: PPO less SFT"] = interval(row[f"{part}_ppo"] - row[f"{part}_sft"] for row in rows)
    result["win rate of PPO against SFT"] = interval(
        wins([row["gold_ppo"] for row in rows], [row["gold_sft"] for row in rows])
    )
    result["KL of PPO to SFT, nats per response"] = interval(row["kl"] for row in rows)
    for role in ROLE_NAMES:
        texts = [row[role] for row in rows]
        words = [word for text in texts for word in words_of(text)]
        unknown = (zipf_frequency(word, "en") == 0 for word in words)
        result[f"share of non-words: {ROLE_NAMES[role]}"] = interval(unknown)
        result[f"share of different answers: {ROLE_NAMES[role]}"] = interval([len(set(texts)) / len(texts)])
        result[f"words of an answer: {ROLE_NAMES[role]}"] = interval(len(words_of(text)) for text in texts)
    return result


def best_answers(results: Results) -> list[Row]:
    """For each held-out prompt, its SFT answers of the stage `best`, their rewards and gold scores."""
    if not results.best_of_n:
        sys.exit("The stage best has no curve. Run the sweep with best.n=4.")
    files = sorted((results.run.stage("best") / "answers").glob("held_out-*.jsonl"))
    return [row for file in files for row in read_json_lines(file, ["prompt", "scores", "gold"])]


def beside_best(rows: Sequence[Row], answers: Sequence[Row]) -> Figures:
    """PPO's gold score less that of the reward model's pick, prompt by prompt."""
    if [row["prompt"] for row in rows] != [row["prompt"] for row in answers]:
        sys.exit("The stages best and ppo have other held-out prompts.")
    picks = [max(zip(row["scores"], row["gold"], strict=True))[1] for row in answers]
    n = len(answers[0]["scores"])
    return {
        f"gold score: PPO less best of {n} SFT answers": interval(
            row["gold_ppo"] - pick for row, pick in zip(rows, picks, strict=True)
        )
    }


def best_of_n(results: Results, answers: Sequence[Row]) -> Figures:
    """Best of n SFT answers, chosen by the reward model as the stage `best` did, and by the judge itself."""
    one, best = results.best_of_n[0], results.best_of_n[-1]
    n = best["n"]
    return {
        f"gold score: best of {n} SFT answers, by the reward model": of_metrics(best, "gold"),
        f"gold score: best of {n} SFT answers, by the judge": interval(max(row["gold"]) for row in answers),
        f"gold score: mean of {n} SFT answers": of_metrics(one, "gold"),
    }


def accuracies(results: Results) -> Figures:
    """How often the reward model, and rules that know nothing, order two answers as the labeller does."""
    report = json.loads((results.run.stage("rm") / "evaluation.json").read_text())
    lead = f"accuracy: the reward model less `{report['best_baseline']}`"
    return {
        "accuracy: the reward model": of_report(report["accuracy"]),
        **{f"accuracy: {name}": of_report(figure) for name, figure in report["baselines"].items()},
        lead: of_report(report["lead"]),
    }


def of_report(figure: Mapping[str, float]) -> dict[str, float]:
    return {"mean": figure["value"], **{end: figure[end] for end in ("low", "high", "n")}}


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+(?:'[a-z]+)?", text)


def interval(values: Iterable[float]) -> dict[str, float]:
    return of_metrics(mean_with_interval("x", [float(value) for value in values]), "x")


def of_metrics(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """A mean with its interval, by names of its own."""
    return {"mean": metrics[name], **{end: metrics[f"{name}_{end}"] for end in ("low", "high", "n")}}


if __name__ == "__main__":
    sys.exit(main())
