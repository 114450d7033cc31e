"""`launch/slurm.sbatch` with stubs for Slurm's programs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
STAND_INS = {
    "scontrol": '[ "$1" = show ] && echo node-1 || echo "scontrol $*" >> "$LOG"',
    "scancel": 'echo "scancel $*" >> "$LOG"; touch "$LOG.stop"',
    # A stage that takes LONG tenths of a second, one more to stop, and exits with STATUS.
    "srun": """
[ "$1" = --cpus-per-task="$SLURM_CPUS_PER_TASK" ] || exit 9  # srun does not take it from its job
while [ "$1" != --stage ]; do shift; done
echo "srun $2" >> "$LOG"
for _ in $(seq "$LONG"); do
    [ -e "$LOG.stop" ] && sleep 0.1 && echo "saved $2" >> "$LOG" && exit 1
    sleep 0.1
done
exit "$STATUS"
""",
}


def submit(folder: Path, tenths: int, status: int = 0) -> subprocess.Popen[bytes]:
    """Start the script as a job. The stubs log their calls in folder/log."""
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(folder / "log")}
    environment |= {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "16",
    }
    environment |= {"LONG": str(tenths), "STATUS": str(status)}
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "tristage").symlink_to("/bin/true")
    command = ["bash", str(ROOT / "launch" / "slurm.sbatch"), "configs/tiny.yaml"]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


def test_stages_follow_one_another(tmp_path: Path) -> None:
    assert submit(tmp_path, tenths=0).wait(30) == 0
    assert log(tmp_path) == ["srun sft", "srun rm", "srun ppo"]


def test_a_stage_that_fails_is_the_last(tmp_path: Path) -> None:
    assert submit(tmp_path, tenths=0, status=2).wait(30) == 2
    assert log(tmp_path) == ["srun sft"]


def test_a_job_whose_time_is_up_waits_for_its_ranks_and_goes_back_to_the_queue(tmp_path: Path) -> None:
    job = submit(tmp_path, tenths=200)
    deadline = time.monotonic() + 10
    while log(tmp_path) != ["srun sft"] and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)  # as `--signal=B:TERM` does, to the script alone
    assert job.wait(30) == 143
    assert log(tmp_path) == ["srun sft", "scancel --signal=TERM 7", "saved sft", "scontrol requeue 7"]
