"""What a step of the reward model costs if batches are random, grouped by length, or packed.

python tests/benchmarks/reward_batches.py configs/rm-hh.yaml FOLDER [--steps 9] [data.rm.path=F ...]

One stage SFT, and from it one stage rm for each way. Random and packed batches hold the same rankings,
grouped ones hold others. So time is that of as many tokens, without padding: CPU seconds of all steps but the
first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WAYS = {
    "random": ("rm.group_by_length=false",),
    "grouped by length": ("rm.group_by_length=true",),
    "packed": ("rm.group_by_length=false", "rm.packing=true"),
}
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("config", type=Path, help="the experiment's YAML, whose data.rm holds rankings")
    parser.add_argument("folder", type=Path, help="where the run directories go")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    options = ["--config", str(arguments.config), "tracking.wandb=disabled", *arguments.overrides]
    first = arguments.folder.resolve() / "sft"
    run("sft", first, [*options, "sft.max_steps=1"])
    print("| batches | padding | CPU seconds for 1,000 tokens | peak, MiB |\n|---|---|---|---|")
    for name, overrides in WAYS.items():
        run_dir = arguments.folder.resolve() / name.replace(" ", "-")
        shutil.copytree(first, run_dir)
        run("rm", run_dir, [*options, "sft.max_steps=1", f"rm.max_steps={arguments.steps}", *overrides])
        print(f"| {name} | {measured(run_dir)} |", flush=True)


def run(stage: str, run_dir: Path, options: list[str]) -> None:
    """One stage in a process of its own."""
    script = str(ROOT / "tests" / "support" / "timed_stage.py")
    command = [sys.executable, script, "--stage", stage, "--run-dir", str(run_dir), *options]
    subprocess.run(command, check=True, stdout=sys.stderr)


def measured(run_dir: Path) -> str:
    """The columns of a finished stage rm: padding, time, and memory."""
    seconds, tokens = (sum(column) for column in zip(*read(run_dir / "steps.json")[1:], strict=True))
    figures = read(run_dir / "rm" / "manifest.json")["metrics"]
    peak = figures["peak_memory_bytes"] / MIB
    return f"{figures['padding']:.3f} | {1000 * seconds / tokens:.3g} | {peak:.0f}"


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
