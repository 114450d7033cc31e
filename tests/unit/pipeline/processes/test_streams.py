"""Standard output that nobody reads, or that cannot be written, ends nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
TRAINING = """
import sys, logging
from pathlib import Path
from pipeline.processes.streams import protect_streams, say
protect_streams()
for step in range(20000):
    say(f"step {step} in Ünï \\x1b[31m with top-secret-key")
Path(sys.argv[1]).write_text("trained")
print("warned", file=sys.stderr)
"""


def train(place: Path, output: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", TRAINING, str(place / "result")]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "MY_KEY": "top-secret-key"} | variables
    return subprocess.run(
        ["bash", "-c", f'"$@" {output}; echo ${{PIPESTATUS[0]}}', "_", *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("output", ["| head -1", "> /dev/full", ">&-", "2>&1 | head -1"])
def test_output_that_cannot_be_written_is_dropped(output: str, tmp_path: Path) -> None:
    done = train(tmp_path, output)
    assert (tmp_path / "result").read_text() == "trained", done.stderr
    assert done.stdout.splitlines()[-1] == "0" and done.stderr in ("warned\n", "")


def test_an_encoding_that_lacks_a_letter_ends_nothing(tmp_path: Path) -> None:
    done = train(tmp_path, "| tail -1", PYTHONIOENCODING="ascii")
    assert "\\xdcn\\xef" in done.stdout and (tmp_path / "result").exists()


def test_lines_hold_neither_secrets_nor_escapes(tmp_path: Path) -> None:
    line = train(tmp_path, "| head -1").stdout.splitlines()[0]
    assert line == "step 0 in Ünï ␛[31m with [redacted]"
