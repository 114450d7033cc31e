"""Tokens per second of a PPO iteration as batch, response length and number of ranks grow.

python tests/benchmarks/scaling.py [--model MODEL] [--steps 1] [--ranks 1 2]

Each line is an iteration of four roles over one NF4 base as in `peers.py ppo`, in separate processes: prompts
of 38 tokens, and responses of the full length. Tokens per second count both. Ranks share the CPU cores, or
have one GPU each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).with_name("peers.py")
sys.path[0] = str(PEERS.parents[2])

from tests.benchmarks.peers import command_line_options, local_model  # noqa: E402

PROMPT = 38
BATCHES, LENGTHS = (8, 16, 32), (24, 48, 96)
HEADER = """| sequences | tokens of a response | ranks | tokens/s | peak memory of a rank |
|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="embedded name, folder or hub id")
    parser.add_argument("--steps", type=int, default=1, help="measured iterations, after one that warms up")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    arguments.model = local_model(arguments.model)
    middle = BATCHES[1], LENGTHS[0], arguments.ranks[0]
    cases = [(batch, *middle[1:]) for batch in BATCHES]
    cases += [(middle[0], length, middle[2]) for length in LENGTHS]
    cases += [(*middle[:2], ranks) for ranks in arguments.ranks]
    print(HEADER)
    for batch, length, ranks in dict.fromkeys(cases):
        seconds, peak = measure(arguments, batch, length, ranks)
        rate = batch * (PROMPT + length) / seconds
        print(f"| {batch} | {length} | {ranks} | {rate:.0f} | {peak / 2**30:.2f} GiB |", flush=True)


def measure(arguments: argparse.Namespace, batch: int, length: int, ranks: int) -> tuple[float, int]:
    """Median seconds of an iteration, and the peak memory of a rank."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    options = {"batch": batch, "response": length, "prompt": PROMPT, "micro": BATCHES[0]}
    options |= {"model": arguments.model, "steps": arguments.steps}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))}
    result = subprocess.run(
        [*launcher, str(PEERS), "--side", "ppo_tristage", *command_line_options(options)],
        env=os.environ | threads,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    rank_results = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"seconds"')]
    return statistics.median(rank_results[0]["seconds"]), max(
        rank_result["peak"] for rank_result in rank_results
    )


if __name__ == "__main__":
    main()
