"""Do ensembles of reward models lower over-optimisation if the KL penalty is weak?

python -m tests.benchmarks.ensembles --base MODEL --texts STORIES.txt --seeds 0 1 2
python -m tests.benchmarks.ensembles --config configs/demo.yaml --members 3 ppo.kl_coef=0 ppo.iterations=12
python -m tests.benchmarks.ensembles --table

With `--config`, the task is that of an experiment. Without it, a small model continues openings of stories.
The gold score of a continuation is its sentiment (VADER) less three times the share of repeated word pairs.
Reward models learn it from 1,600 ranked answers, and PPO optimises them with a weak KL penalty.

Each seed trains one reward model and an ensemble, whose first member is that model, and then PPO against
each of the ways to combine them. So differences are paired by seed.

STORIES.txt has texts with <|endoftext|> between them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from data.storage.files import read_json_lines, write_json_lines
from stages.feedback.sentiment import sentiment
from stages.maths.statistics import mean_with_interval, repeated_bigrams

ROOT = Path(__file__).resolve().parents[2]
END = "<|endoftext|>"
OPENING = 8  # words of a prompt
TRAIN, HELD_OUT = 400, 96  # prompts of the reward model, and of each evaluation
ONE, MEAN = "one reward model", "mean"
WAYS: dict[str, tuple[str, ...]] = {
    ONE: (),
    MEAN: ("rm.members={}",),
    "min": ("rm.members={}", "ppo.ensemble=min"),
    "mean − deviation": ("rm.members={}", "ppo.ensemble=mean_minus_deviation"),
}
ROWS = {
    "gold_sft": "gold score: SFT",
    "gold_ppo": "gold score: PPO",
    "gold_best": "gold score: the best evaluation of PPO",
    "gold_lost": "gold score lost from its best evaluation to the end",
    "rm_score_ppo": "reward: PPO",
    "kl": "KL, nats per answer",
    "disagreement_sft": "disagreement: SFT",
    "disagreement_ppo": "disagreement: PPO",
    "accuracy": "held-out accuracy of the reward model",
}


def gold(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Sentiment less three times the share of repeated word pairs."""
    return [sentiment(text) - 3 * repeated_bigrams(text) for text in completions]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", help="folder or id of a small language model")
    parser.add_argument("--texts", type=Path, help=f"stories, with {END} between them")
    parser.add_argument("--config", type=Path, help="an experiment, in place of --base and --texts")
    parser.add_argument("--members", type=int, default=4, help="reward models of an ensemble")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of every run")
    parser.add_argument("--out", type=Path, default=Path("runs/ensembles"))
    parser.add_argument("--table", action="store_true", help="print the table of what has run")
    arguments = parser.parse_args()
    if not arguments.table:
        file = arguments.config or write_experiment(arguments)
        for seed, way in itertools.product(arguments.seeds, arguments.ways):
            overrides = [one.format(arguments.members) for one in WAYS[way]]
            overrides += [f"seed={seed}", *arguments.overrides]
            run_way(file, arguments.out / f"seed-{seed}", way, overrides)
    print_table(arguments.out)
    return 0


def write_experiment(arguments: argparse.Namespace) -> Path:
    """Write the data and the YAML of the experiment. Returns the YAML's path."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    stories = [" ".join(text.split()) for text in arguments.texts.read_text(encoding="utf-8").split(END)]
    rows = [row for text in stories if (row := opened(text))]
    rows = list({row["prompt"]: row for row in rows}.values())
    parts = {
        "sft": rows[:400],
        "rm": rows[400 : 400 + TRAIN + HELD_OUT],
        "ppo": rows[400 + TRAIN + HELD_OUT :],
    }
    for name, of_part in parts.items():
        kept = of_part if name == "sft" else [{"prompt": row["prompt"]} for row in of_part]
        write_json_lines(arguments.out / f"{name}.jsonl", kept)
    file: Path = arguments.out / "experiment.yaml"
    file.write_text(json.dumps(experiment(arguments), indent=1))  # JSON is YAML
    return file


def opened(text: str) -> dict[str, str] | None:
    """The first words of a story, and what follows; None if it is too short."""
    words = text.split()
    if len(words) < OPENING + 20:
        return None
    following = " ".join(words[OPENING : OPENING + 40])
    return {"prompt": " ".join(words[:OPENING]), "completion": f" {following}"}


def experiment(arguments: argparse.Namespace) -> dict[str, Any]:
    sampled = {"max_new_tokens": 32, "batch_size": 64}
    function = f"{__spec__.name if __spec__ else __name__}:gold"
    return {
        "name": "ensembles",
        "base": {"model": arguments.base, "quantization": "none", "compute_dtype": "float32"},
        "adapter": {"r": 32, "alpha": 64},
        "data": {
            "sft": {"path": "sft.jsonl", "held_out": 32},
            "rm": {"path": "rm.jsonl", "held_out": HELD_OUT},
            "ppo": {"path": "ppo.jsonl", "held_out": HELD_OUT},
            "max_length": 128,
            "max_prompt_length": 48,
        },
        "sft": {"learning_rate": 5e-4, "batch_size": 32, "micro_batch_size": 32},
        "rm": {
            "learning_rate": 3e-3,
            "batch_size": 20,
            "micro_batch_size": 40,
            "epochs": 4,
            "pooling": "mean",
            "rankings": {"labeller": function, "completions": 4, "rollout": sampled},
        },
        "ppo": {
            "learning_rate": 1e-3,
            "iterations": 30,
            "batch_size": 64,
            "minibatches": 2,
            "micro_batch_size": 32,
            "kl_coef": 0.02,
            "missing_eos_penalty": 0,
            "eval_steps": 5,
            "save_steps": 1000,
            "rollout": sampled,
            "judge": function,
        },
        "tracking": {"wandb": "disabled"},
    }


def run_way(file: Path, folder: Path, way: str, overrides: Sequence[str]) -> None:
    """Train PPO in one way, on the SFT policy of the first way and on the ensemble of the second."""
    run_dir = folder / folder_of(way)
    for stage, owner in (("sft", ONE), ("rm", MEAN)):
        has_it = folder / folder_of(owner) / stage
        if has_it.exists() and not (run_dir / stage).exists() and (stage == "sft" or way != ONE):
            shutil.copytree(has_it, run_dir / stage)
    tristage(file, run_dir, *overrides)


def folder_of(way: str) -> str:
    return way.replace(" ", "-")


def tristage(file: Path, run_dir: Path, *overrides: str) -> None:
    words = ["run", str(file), "--run-dir", str(run_dir), *overrides]
    subprocess.run([sys.executable, "-m", "launch.cli", *words], cwd=ROOT, check=True)


def results(out: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """The way and the figures of each run that has finished."""
    for way in WAYS:
        for manifest in sorted(out.glob(f"seed-*/{folder_of(way)}/ppo/manifest.json")):
            found = json.loads(manifest.read_text())
            if found["status"] == "finished":
                yield way, figures(manifest.parents[1], found["metrics"])


def figures(run: Path, metrics: Mapping[str, float]) -> dict[str, float]:
    """Of one run: what its manifests have, and the course of the gold score."""
    rows = read_json_lines(run / "ppo" / "metrics.jsonl")
    golds = [row["eval/gold"] for row in rows if "eval/gold" in row]
    accuracy = json.loads((run / "rm" / "manifest.json").read_text())["metrics"]["accuracy"]
    return dict(metrics) | {
        "accuracy": accuracy,
        "gold_best": max(golds),
        "gold_lost": max(golds) - golds[-1],
    }


def print_table(out: Path) -> None:
    """Print means over seeds with 95 % intervals, and of each seed the difference to one reward model."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for way, of_run in results(out):
        found[way].append(of_run)
    print(f"{'':52}", *(f"{way:>26}" for way in WAYS))
    for name, label in ROWS.items():
        cells = [shown([row[name] for row in runs if name in row]) for runs in found.values()]
        print(f"{label:52}", *(f"{cell:>26}" for cell in cells))
    for seed in sorted(path.name for path in out.glob("seed-*")):
        cells = [shown(against_one(out / seed, way)) for way in WAYS]
        label = f"gold score of PPO less that against one, {seed}"
        print(f"{label:52}", *(f"{cell:>26}" for cell in cells))
    print(
        f"seeds: {', '.join(f'{way} {len(runs)}' for way, runs in found.items())}; intervals over seeds, "
        "and over prompts in the rows of one seed"
    )


def against_one(folder: Path, way: str) -> list[float]:
    """Gold scores of PPO less those against one reward model, prompt by prompt; none if a run is missing."""
    one, other = (gold_by_prompt(folder / folder_of(name)) for name in (ONE, way))
    return [other[prompt] - one[prompt] for prompt in sorted(one.keys() & other.keys())]


def gold_by_prompt(run: Path) -> dict[str, float]:
    file = run / "ppo" / "evaluation.jsonl"
    return {row["prompt"]: row["gold_ppo"] for row in read_json_lines(file)} if file.exists() else {}


def shown(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{fmean(values):.2f}" if values else "–"
    found = mean_with_interval("x", values)
    return f"{found['x']:.2f} [{found['x_low']:.2f}, {found['x_high']:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
