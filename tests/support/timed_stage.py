"""`launch/run_stage.py` for SFT, which also writes the CPU seconds of each step to `RUN/steps.json`.

python timed_stage.py --stage sft ... (the arguments of run_stage.py; --run-dir must be among them)

CPU seconds, because on a machine with other work the clock tells more of that than of the step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from launch import run_stage  # noqa: E402
from stages import sft  # noqa: E402


def main() -> int:
    seconds: list[float] = []
    step = sft.SftTrainer.step

    def timed(self: sft.SftTrainer, batch: Any) -> dict[str, float]:
        start = time.process_time()
        metrics = step(self, batch)
        seconds.append(time.process_time() - start)
        return metrics

    sft.SftTrainer.step = timed  # type: ignore[method-assign]
    status = run_stage.main()
    run_dir = Path(sys.argv[sys.argv.index("--run-dir") + 1])
    (run_dir / "steps.json").write_text(json.dumps(seconds))
    return status


if __name__ == "__main__":
    sys.exit(main())
