"""`tristage doctor --train`: one step of a tiny model with each quantization, under each ZeRO stage."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launch.arguments import ROOT
from launch.deepspeed_command import Launch
from launch.stage_sequence import readable_status
from pipeline.doctor import Finding
from pipeline.state.manifest import read_manifest
from pipeline.state.run_directory import RunDirectory

TINY = ROOT / "configs" / "tiny.yaml"
QUANTIZATIONS, ZERO_STAGES = ("nf4", "int8", "none"), (0, 2, 3)
SECONDS = 600  # for one trial, with the imports of its process


def trials(script: Path) -> Iterator[Finding]:
    """Run SFT for one step on all devices of this machine, once for each pair. Takes minutes.

    Args:
        script: `launch/run_stage.py`.
    """
    for quantization in QUANTIZATIONS:
        for zero in ZERO_STAGES:
            about = f"{quantization}, ZeRO-{zero}"
            with tempfile.TemporaryDirectory() as folder:
                reason = _trial(script, Path(folder), quantization, zero)
            if reason:
                yield Finding("note", about, f"did not train: {reason}")
            else:
                yield Finding("ok", about, "trains")


def _trial(script: Path, folder: Path, quantization: str, zero: int) -> str:
    """Why a stage with this pair fails, or ""."""
    overrides = [
        *("sft.max_steps=1", f"sft.batch_size={8 * Launch(script, []).world()}", "base.compute_dtype=auto"),
        f"base.quantization={quantization}",
        f"deepspeed.config={ROOT}/configs/deepspeed/zero{zero}.json",
    ]
    launch = Launch(script, ["--config", str(TINY), "--run-dir", str(folder), *overrides])
    with (folder / "output").open("wb") as output:
        try:
            status = subprocess.run(
                launch.command("sft"),
                env=launch.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=SECONDS,
                start_new_session=True,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"no end within {SECONDS} seconds"
    manifest = read_manifest(RunDirectory(folder).manifest("sft"))
    if manifest is not None and manifest.status == "finished":
        return ""
    lines = (folder / "output").read_text(errors="replace").split("\n")
    said = [line for line in lines if "rror" in line] or list(filter(str.strip, lines)) or [""]
    end = f"ended with status {readable_status(status)}: {said[-1].strip():.200}"
    return (manifest and manifest.error) or end.removesuffix(": ")
