"""What the demo shows over seeds: gold score and its parts, fluency, non-words, variety, best of n.

tristage sweep --seeds 3 best.n=4
python tests/benchmarks/demo_seeds.py runs/demo [--json FILE]

All figures are of held-out prompts. Intervals are 95 % bootstrap intervals over prompts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from wordfreq import zipf_frequency

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from pipeline.state.results import Row, read_results, sweep_runs  # noqa: E402
from stages.maths.statistics import mean_with_interval, wins  # noqa: E402

ROLES = ("base", "sft", "ppo")
Figures = dict[str, dict[str, float]]  # of each figure: mean, low, high, n


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path, help="the run directory of the sweep")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    runs = {path.name: figures(read_results(path).evaluation) for path in sweep_runs(arguments.run)}
    if not runs:
        sys.exit(f"{arguments.run} holds no sweep. Run tristage sweep --seeds 3 first.")
    runs["best of n"] = best_of_n(arguments.run)
    for name, of_run in runs.items():
        print(name)
        for figure, value in of_run.items():
            print(f"  {figure:32} {value['mean']:8.3f} [{value['low']:.3f}, {value['high']:.3f}]")
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=1) + "\n")
    return 0


def figures(rows: Sequence[Row]) -> Figures:
    """The figures of one run, from the rows of its `ppo/evaluation.jsonl`."""
    result: Figures = {}
    columns = [name for name in rows[0] if name.startswith("gold_")]
    for name in columns:
        result[name] = interval(row[name] for row in rows)
    result["win rate of PPO, gold"] = interval(
        wins([row["gold_ppo"] for row in rows], [row["gold_sft"] for row in rows])
    )
    for part in ("gold", "gold_nats"):
        name = "gold, PPO less SFT" if part == "gold" else "nats per token, PPO less SFT"
        result[name] = interval(row[f"{part}_ppo"] - row[f"{part}_sft"] for row in rows)
    result["KL, nats per response"] = interval(row["kl"] for row in rows)
    for role in ROLES:
        texts = [row[role] for row in rows]
        words = [word for text in texts for word in words_of(text)]
        result[f"non-words, {role}"] = interval(zipf_frequency(word, "en") == 0 for word in words)
        result[f"different answers, {role}"] = interval([len(set(texts)) / len(texts)])
        result[f"words of an answer, {role}"] = interval(len(words_of(text)) for text in texts)
    return result


def best_of_n(run: Path) -> Figures:
    """Best of n SFT answers, chosen by the reward model, and by the judge itself."""
    answers = [
        json.loads(line)
        for file in sorted((run / "best" / "answers").glob("held_out-*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    n = len(answers[0]["gold"]) if answers else 0
    return {
        f"gold, best of {n} by the reward model": interval(map(chosen_by_reward_model, answers)),
        f"gold, best of {n} by the judge": interval(max(row["gold"]) for row in answers),
        "gold, mean of the answers": interval(fmean(row["gold"]) for row in answers),
    }


def chosen_by_reward_model(row: dict[str, Any]) -> float:
    """The judge's score of the answer with the highest reward score."""
    gold: float = max(zip(row["scores"], row["gold"], strict=True))[1]
    return gold


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+(?:'[a-z]+)?", text)


def interval(values: Iterable[float]) -> dict[str, float]:
    metrics = mean_with_interval("x", [float(value) for value in values])
    return {"mean": metrics["x"], "low": metrics["x_low"], "high": metrics["x_high"], "n": metrics["x_n"]}


if __name__ == "__main__":
    sys.exit(main())
