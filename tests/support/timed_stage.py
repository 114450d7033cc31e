"""`launch/run_stage.py` for SFT and the reward model, which also writes what each step cost.

python timed_stage.py --stage sft ... (the arguments of run_stage.py; --run-dir must be among them)

`RUN/steps.json` lists the CPU seconds and the tokens of each step. CPU seconds, because on a machine with
other work the clock tells more of that than of the step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from launch import run_stage  # noqa: E402
from stages.feedback.reward_ensemble import RewardEnsemble  # noqa: E402
from stages.sft import SftTrainer  # noqa: E402

Steps = list[tuple[float, int]]


def timed(trainer: type[Any], steps: Steps) -> None:
    """Let each step of `trainer` append its CPU seconds and tokens to `steps`."""
    take = trainer.step

    def step(self: Any, *arguments: Any) -> dict[str, float]:
        seconds, tokens = time.process_time(), self.meter.tokens
        metrics: dict[str, float] = take(self, *arguments)
        steps.append((time.process_time() - seconds, self.meter.tokens - tokens))
        return metrics

    trainer.step = step


def main() -> int:
    steps: Steps = []
    for trainer in (SftTrainer, RewardEnsemble):
        timed(trainer, steps)
    status = run_stage.main()
    run_dir = Path(sys.argv[sys.argv.index("--run-dir") + 1])
    (run_dir / "steps.json").write_text(json.dumps(steps))
    return status


if __name__ == "__main__":
    sys.exit(main())
