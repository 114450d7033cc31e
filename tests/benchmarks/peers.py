"""Time and peak memory of training steps beside TRL's trainers. The sides take turns in separate processes.

python tests/benchmarks/peers.py [CASE ...] [--model MODEL] [--turns 2] [--steps 3]

sft, rm   TRL's SFTTrainer and RewardTrainer as installed; NF4 base, the same fp32 LoRA, batch and token ids
          on both sides, gradient checkpointing off, SFT without packing.
kwise     rankings of K = 4 with one forward of each completion, beside their 6 pairs as 12 completions.
ppo       the PPOTrainer of TRL 1.12.0, the last release that has it. This script installs it into a separate
          folder. TRL has a LoRA policy and separate reward and value models, none quantized; here, four
          roles over one NF4 base.
critic    PPO whose critic is a head on the policy, beside PPO with a separate critic.

On a GPU without access to the hub, --model random-1b makes a 1B-parameter model of random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from pipeline.processes import logs  # noqa: E402
from tests.benchmarks import peers_tristage, peers_trl  # noqa: E402
from tests.benchmarks.peers_workload import Seconds  # noqa: E402

logs.silence()

OLD_TRL = "1.12.0"
FETCHED = ROOT / "runs" / "benchmarks" / f"trl-{OLD_TRL}"
RANDOM_1B = ROOT / "runs" / "benchmarks" / "random-1b"


@dataclass(frozen=True)
class Case:
    """Two sides, and the largest share of the baseline's time and memory that the measured side may take."""

    measured: str
    baseline: str
    time: float
    memory: float | None


CASES = {
    "sft": Case("sft_tristage", "sft_trl", 1.0, 1.0),
    "rm": Case("rm_tristage", "rm_trl", 0.9, 1.0),
    "kwise": Case("kwise_rankings", "kwise_pairs", 0.4, None),
    "ppo": Case("ppo_tristage", "ppo_trl", 0.7, 0.4),
    "critic": Case("ppo_shared", "ppo_tristage", 1.0, 1.0),
}


def main() -> int:
    arguments = parse()
    if arguments.side:
        print(json.dumps(run_side(arguments)))
        return 0
    print(
        f"{arguments.model}, {arguments.batch} sequences, {arguments.turns} turns of {arguments.steps} steps"
    )
    arguments.model = local_model(arguments.model)
    for name in arguments.cases or CASES:
        compare(name, CASES[name], arguments)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="embedded name, folder or hub id")
    parser.add_argument("--batch", type=int, default=32, help="sequences of one optimizer step")
    parser.add_argument("--micro", type=int, default=16, help="sequences in one forward")
    parser.add_argument("--prompt", type=int, default=38, help="tokens of each prompt")
    parser.add_argument("--response", type=int, default=24, help="tokens of a response at most")
    parser.add_argument(
        "--steps", type=int, default=3, help="measured steps of a turn, after one that warms up"
    )
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


# The two sides in turns.


def compare(name: str, case: Case, arguments: argparse.Namespace) -> None:
    results: dict[str, list[dict[str, Any]]] = {case.measured: [], case.baseline: []}
    for _ in range(arguments.turns):
        for side, runs in results.items():
            runs.append(run_in_process(side, arguments))
    times = {
        side: statistics.median(s for run in runs for s in run["seconds"]) for side, runs in results.items()
    }
    peaks = {side: max(run["peak"] for run in runs) for side, runs in results.items()}
    for side in results:
        print(f"{side:16} {times[side]:8.2f} s a step {peaks[side] / 2**30:8.2f} GiB")
    verdict("time", times[case.measured] / times[case.baseline], case.time, name)
    if case.memory is not None:
        verdict("peak memory", peaks[case.measured] / peaks[case.baseline], case.memory, name)


def verdict(quantity: str, ratio: float, target: float, name: str) -> None:
    print(
        f"{name}: {quantity} {ratio:.2f} x, target {target} x: {'met' if ratio <= target else 'missed'}",
        flush=True,
    )


def run_in_process(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options = {
        name: value for name, value in vars(arguments).items() if name not in ("cases", "side", "turns")
    }
    environment = importing_first(*[fetch_old_trl()] * (side == "ppo_trl"))
    result = subprocess.run(
        [sys.executable, __file__, "--side", side, *command_line_options(options)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        sys.exit(f"{side}\n{result.stdout}{result.stderr}")
    measurement: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measurement


def importing_first(*folders: Path) -> dict[str, str]:
    """This process's environment, but Python imports from `folders` and the project first."""
    path = [*map(str, folders), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def command_line_options(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def fetch_old_trl() -> Path:
    if not (FETCHED / "trl").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FETCHED)]
        environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        subprocess.run([*pip, f"trl=={OLD_TRL}"], check=True, env=environment)
    return FETCHED


def local_model(name: str) -> str:
    """A folder or hub id that both sides can load. TRL does not know embedded models."""
    if name == "random-1b":
        return str(make_random_1b())
    from stages.models.demo_models import EMBEDDED, embedded_model

    return str(embedded_model(name)) if name in EMBEDDED else name


def make_random_1b() -> Path:
    """A Llama of 1.2 billion random parameters in bf16, with the tokenizer of the embedded random model."""
    if not (RANDOM_1B / "config.json").exists():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

        from stages.models.demo_models import embedded_model

        sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
        heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256}
        config = LlamaConfig(**sizes, **heads, tie_word_embeddings=True)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # drawing takes a CPU a minute
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(RANDOM_1B)
        AutoTokenizer.from_pretrained(embedded_model("tiny-random")).save_pretrained(RANDOM_1B)
    return RANDOM_1B


# One side, in its own process.


def run_side(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import set_seed

    torch.manual_seed(0)
    set_seed(0)
    seconds: Seconds = {**vars(peers_tristage), **vars(peers_trl)}[arguments.side](arguments)
    from stages.training.throughput import peak_memory_bytes

    return {"seconds": seconds, "peak": peak_memory_bytes()}


if __name__ == "__main__":
    sys.exit(main())
