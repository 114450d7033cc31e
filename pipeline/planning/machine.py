"""The hardware that an experiment is for, and what this machine has, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from configs.deepspeed_json import read_deepspeed_json, zero_stage
from configs.schema import Experiment

HARDWARE = re.compile("^# Hardware: *(.+)$", re.MULTILINE)


def made_for(file: Path) -> str:
    """The hardware that the header of an experiment's YAML names, or ""."""
    found = HARDWARE.search(file.read_text(encoding="utf-8"))
    return found[1] if found else ""


def machine_in_words(accelerators: int, world: int, hostfile: Path | None = None) -> str:
    """What the stages run on.

    Args:
        accelerators: number of GPUs of this machine.
        world: number of ranks.
        hostfile: names the machines, if there are several.
    """
    ranks = "1 rank" if world == 1 else f"{world} ranks"
    if hostfile is not None:
        return f"runs on the machines of {hostfile}, {ranks}"
    if not accelerators:
        return f"has no GPU: the stages run on its CPU, {ranks}"
    return f"has {accelerators} GPU{'s' * (accelerators > 1)}; the stages run on {ranks}"


def machine_warnings(
    config: Experiment, accelerators: int, world: int, hostfile: Path | None = None
) -> Iterator[str]:
    """Why the machine does not fit the experiment, whose DeepSpeed JSON must have passed `check_files`."""
    zero = zero_stage(read_deepspeed_json(Path(config.deepspeed.config)))
    asked = f"warning: deepspeed.config asks for ZeRO-{zero}, which shards over several GPUs."
    if zero and not accelerators and hostfile is None:
        yield f"{asked} This machine has none: the plan below is for its CPU."
    elif zero and world == 1:
        yield f"{asked} On 1 rank it saves no memory. Give --num-accelerators or --hostfile."
