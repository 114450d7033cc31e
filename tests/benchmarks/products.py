"""Speed of fp32 products x W^T on a CPU. MKL, which torch uses, and oneDNN take turns.

python tests/benchmarks/products.py [--rows 992 256] [--turns 30]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path[0] = str(Path(__file__).resolve().parents[2])

from stages.internals.torch import onednn_linear  # noqa: E402

# Widths in and out of linear layers: SmolLM2-135M's, Qwen2.5-0.5B's, and Llama-3.2-1B's.
SHAPES = [
    (576, 576), (576, 1536), (1536, 576),
    (896, 896), (896, 4864), (4864, 896),
    (2048, 2048), (2048, 8192), (8192, 2048),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[992, 256])
    parser.add_argument("--turns", type=int, default=30)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; GFLOP/s, median of {arguments.turns}")
    print(f"{'rows':>6} {'in':>6} {'out':>6} {'MKL':>8} {'oneDNN':>8} {'ratio':>6}")
    for rows in arguments.rows:
        for width, height in SHAPES:
            mkl, onednn = compare(rows, width, height, arguments.turns)
            print(f"{rows:6} {width:6} {height:6} {mkl:8.0f} {onednn:8.0f} {onednn / mkl:6.2f}", flush=True)


def compare(rows: int, width: int, height: int, turns: int) -> tuple[float, float]:
    x, weight = torch.randn(rows, width), torch.randn(height, width)
    sides = {
        "MKL": lambda: torch.nn.functional.linear(x, weight),
        "oneDNN": lambda: onednn_linear(x, weight, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 + turns):
        for name, product in sides.items():
            begin = time.perf_counter()
            product()
            seconds[name].append(time.perf_counter() - begin)
    work = 2e-9 * rows * width * height
    mkl, onednn = (work / statistics.median(times[1:]) for times in seconds.values())
    return mkl, onednn


if __name__ == "__main__":
    main()
