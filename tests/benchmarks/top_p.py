"""Speed of top-p on a batch of logits: transformers' warper, which sorts the vocabulary, and ours take turns.

python tests/benchmarks/top_p.py [--rows 32] [--turns 30]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import LogitsProcessor, TopPLogitsWarper

sys.path[0] = str(Path(__file__).resolve().parents[2])

from stages.sampling.decoding import TopP  # noqa: E402

VOCABULARIES = {"SmolLM2": 49_152, "Qwen2.5": 151_936}
# Standard deviations of the logits: a peaked distribution, as a model's usually is, and a flat one.
SCALES = {"peaked": 8.0, "flat": 3.0}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--p", type=float, default=0.9)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(
        f"{device}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads; "
        f"{arguments.rows} rows, p = {arguments.p}; milliseconds, median of {arguments.turns}"
    )
    print(f"{'vocabulary':>18} {'logits':>8} {'kept':>6} {'transformers':>13} {'ours':>8} {'ratio':>6}")
    for name, vocabulary in VOCABULARIES.items():
        for shape, scale in SCALES.items():
            generator = torch.Generator().manual_seed(0)
            logits = scale * torch.randn(arguments.rows, vocabulary, generator=generator).to(device)
            kept = TopP(arguments.p)(logits.new_empty(0), logits).isfinite().sum(1).float().median()
            theirs, ours = compare(logits, arguments.p, arguments.turns)
            print(
                f"{name:>10} {vocabulary:7} {shape:>8} {kept:6.0f} {theirs:13.2f} {ours:8.2f} "
                f"{ours / theirs:6.3f}",
                flush=True,
            )


def compare(logits: torch.Tensor, p: float, turns: int) -> tuple[float, float]:
    sides: dict[str, LogitsProcessor] = {"transformers": TopPLogitsWarper(p), "ours": TopP(p)}
    milliseconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 + turns):
        for name, warper in sides.items():
            begin = time.perf_counter()
            warper(logits.new_empty(0, dtype=torch.long), logits)
            if logits.is_cuda:
                torch.cuda.synchronize()
            milliseconds[name].append(1000 * (time.perf_counter() - begin))
    theirs, ours = (statistics.median(times[1:]) for times in milliseconds.values())
    return theirs, ours


if __name__ == "__main__":
    main()
