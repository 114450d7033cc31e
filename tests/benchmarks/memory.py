"""Peak memory of the PPO stage, which has four roles over one base, relative to that of the SFT stage.

python tests/benchmarks/memory.py [--model smollm2-135m-instruct] [--length 128] [--micro-batch-size 4]

Both stages run on the same quantized base with the same shape: micro-batches of the same number of sequences,
every sequence of `length` tokens (PPO: half of them the prompt, half the response). Each stage runs in its
own process. Its peak is that of the GPU if there is one, else the process's largest resident size. The latter
includes the libraries, so the table also shows the size of a process before it loads the base.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from configs.schema import STAGES  # noqa: E402
from tests.benchmarks.peers import importing_first  # noqa: E402

TARGET = 1.5
IMPORTS = (
    "import stages.sft, stages.rm, stages.ppo, pipeline.stage_process, bitsandbytes;"
    "from stages.training.throughput import peak_memory_bytes; print(peak_memory_bytes())"
)


def main() -> int:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="tristage-memory-") as folder:
        config = write_experiment(Path(folder), arguments)
        baseline = int(run_command([sys.executable, "-c", IMPORTS]).splitlines()[-1])
        for stage in STAGES:
            options = ["--stage", stage, "--config", str(config), "--run-dir", folder]
            run_command([sys.executable, str(ROOT / "launch" / "run_stage.py"), *options])
        print_table(arguments, baseline, {stage: read_metrics(Path(folder) / stage) for stage in STAGES})
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="embedded name, folder or hub id")
    parser.add_argument("--quantization", default="nf4", choices=("nf4", "int8", "none"))
    parser.add_argument("--length", type=int, default=128, help="tokens of each sequence (default: 128)")
    parser.add_argument("--micro-batch-size", type=int, default=4, help="sequences at once (default: 4)")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of each stage (default: 3)")
    return parser.parse_args()


def write_experiment(folder: Path, arguments: argparse.Namespace) -> Path:
    """Write an experiment and its data. Every sequence is cut to `length` tokens."""
    half = arguments.length // 2
    text = " ".join(f"{number} apples and {number + 1} pears" for number in range(arguments.length))
    row = {"prompt": f"Count: {text}", "completion": text}
    ranked = {"prompt": row["prompt"], "completions": [text, f"No. {text}"]}
    write_rows(folder / "sft.jsonl", [row | {"prompt": f"{n} {row['prompt']}"} for n in range(64)])
    write_rows(folder / "ranked.jsonl", [ranked | {"prompt": f"{n} {row['prompt']}"} for n in range(64)])
    training = {
        "batch_size": 2 * arguments.micro_batch_size,
        "micro_batch_size": arguments.micro_batch_size,
        "save_steps": 1000,
    }
    source = {"path": "ranked.jsonl", "held_out": 0}
    experiment = {
        "name": "memory",
        "base": {"model": arguments.model, "quantization": arguments.quantization},
        "data": {
            "sft": {"path": "sft.jsonl", "held_out": 0},
            "rm": source,
            "ppo": source,
            "shares": {"sft": 0, "rm": 0.5, "ppo": 0.5},
            "max_length": arguments.length,
            "max_prompt_length": half,
            "overlong": "truncate",
        },
        "sft": training | {"max_steps": arguments.steps},
        "rm": training
        | {
            "max_steps": 1,
            "normalization_prompts": 1,
            "rankings": {"rollout": {"max_new_tokens": 1}},
        },
        "ppo": training
        | {
            "iterations": arguments.steps,
            "epochs": 1,
            "rollout": {"max_new_tokens": half, "batch_size": arguments.micro_batch_size},
        },
        "tracking": {"wandb": "disabled"},
    }
    file = folder / "memory.yaml"
    file.write_text(json.dumps(experiment, indent=1))  # JSON is YAML
    return file


def write_rows(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_command(command: list[str]) -> str:
    """Run a command and return its output. If it fails, exit with its output as the message."""
    result = subprocess.run(command, cwd=ROOT, env=importing_first(), capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout


def read_metrics(stage: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads((stage / "manifest.json").read_text())["metrics"]
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    lengths = [row["completions/mean_length"] for row in rows if "completions/mean_length" in row]
    return metrics | ({"response": max(lengths)} if lengths else {})


def print_table(
    arguments: argparse.Namespace, baseline: int, metrics_by_stage: dict[str, dict[str, float]]
) -> None:
    gib = {stage: metrics["peak_memory_bytes"] / 2**30 for stage, metrics in metrics_by_stage.items()}
    print(
        f"{arguments.model}, {arguments.quantization}: {arguments.steps} steps, micro-batches of "
        f"{arguments.micro_batch_size} sequences of {arguments.length} tokens"
    )
    half = arguments.length // 2
    print(f"(PPO's responses had {metrics_by_stage['ppo']['response']:.0f} tokens on average, of {half})")
    print(f"{'':24}{'peak':>10}{'less start':>14}")
    print(f"{'process, libraries only':24}{baseline / 2**30:>6.2f} GiB")
    for stage in ("sft", "ppo"):
        print(f"{stage:24}{gib[stage]:>6.2f} GiB{gib[stage] - baseline / 2**30:>10.2f} GiB")
    ratio = gib["ppo"] / gib["sft"]
    verdict = "within" if ratio <= TARGET else "above"
    print(f"{'ppo / sft':24}{ratio:>6.2f}     {verdict} the target of {TARGET}")


if __name__ == "__main__":
    sys.exit(main())
