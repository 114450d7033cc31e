"""The `deepspeed` command line of a stage, and the devices of this machine and of a hostfile."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.schema import Stage
from pipeline.processes.parent_watch import mark_of_this_process

EXAMPLE = Path(__file__).with_name("hostfile.example")
SLOTS = re.compile("slots=[1-9][0-9]{0,5}")
# A host name or an IPv4 address. DeepSpeed hands it to pdsh and ssh, which take other forms as options, files
# or ranges of hosts, and what stands before a colon as a kind of connection.
HOST = re.compile(r"(?!.{254})[A-Za-z0-9]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9_-]{0,62}))*\.?")


@dataclass(frozen=True)
class Launch:
    """How each stage starts.

    Attributes:
        script: `launch/run_stage.py`.
        arguments: `--config`, `--run-dir`, overrides and switches to pass on.
        accelerators: number per machine; None for all, or for one process if the machine has none.
        hostfile: machines and their slots in DeepSpeed's form; None for only this machine.
    """

    script: Path
    arguments: Sequence[str]
    accelerators: int | None = None
    hostfile: Path | None = None

    def world(self) -> int:
        """Number of ranks."""
        if self.hostfile is not None:
            return sum(min(slots, self.accelerators or slots) for slots in read_slots(self.hostfile))
        return self.accelerators or max(1, count_accelerators())

    def environment(self) -> dict[str, str]:
        """This process's environment, with its mark, its `bin` first in PATH, and the accelerator named."""
        environment = os.environ | mark_of_this_process()
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
        if self.hostfile is None and not count_accelerators():
            environment.setdefault("DS_ACCELERATOR", "cpu")
        return environment

    def check_devices(self) -> None:
        """Raises UserError: this machine has too few devices, or DeepSpeed cannot take their names."""
        available = 0 if self.hostfile is not None else count_accelerators()
        if not available:
            return
        if self.accelerators and self.accelerators > available:
            raise UserError(
                f"--num-accelerators: {self.accelerators}, but this machine has {available}. "
                f"Set it to {available} or less."
            )
        for device in _named_devices():
            if not device.isdigit():
                raise UserError(
                    f"CUDA_VISIBLE_DEVICES: deepspeed takes only numbers, not {device:.60}. Give those of "
                    "`nvidia-smi -L`, or start stages by torchrun or plain python."
                )

    def command(self, stage: Stage) -> list[str]:
        """The `deepspeed` command line of one stage."""
        # The ranks report their own failures, so the launcher's messages are left out.
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--log_level", "critical"]
        if self.hostfile is not None:
            launcher += ["--hostfile", str(self.hostfile)]
            launcher += ["--num_accelerators", str(self.accelerators)] if self.accelerators else []
        else:
            launcher += ["--master_port", str(free_port()), *self._local_devices()]
        return [*launcher, str(self.script), "--stage", stage, "--caller", "tristage", *self.arguments]

    def _local_devices(self) -> list[str]:
        """Options that choose devices. Given a number, DeepSpeed ignores CUDA_VISIBLE_DEVICES."""
        named = _named_devices()
        if self.accelerators and named and count_accelerators():
            return ["--include", f"localhost:{','.join(named[: self.accelerators])}"]
        if self.accelerators or not count_accelerators():
            return ["--num_accelerators", str(self.accelerators or 1)]
        return []


def count_accelerators() -> int:
    """Accelerators that torch can use; 0 on a machine with only CPUs."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def visible_devices() -> list[str]:
    """The accelerators that torch can use, as CUDA_VISIBLE_DEVICES names them."""
    count = count_accelerators()
    return _named_devices()[:count] or [str(number) for number in range(count)]


def guess_accelerators() -> int:
    """Number of NVIDIA devices that this machine shows. Does not import torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return len(_named_devices())
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _named_devices() -> list[str]:
    """The devices that CUDA_VISIBLE_DEVICES names; empty if it is not set."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name.strip() for name in names if name.strip()]


def read_slots(hostfile: Path) -> list[int]:
    """Slots of each machine of a DeepSpeed hostfile.

    DeepSpeed's own `fetch_hostfile` imports torch, takes `slots=0` and words after it, names no line, and
    falls back to this machine if the file is missing.

    Raises:
        UserError: the file is missing, a line is not `NAME slots=N`, or it names a machine twice or none.
    """
    if not hostfile.is_file():
        raise UserError(f"--hostfile: {hostfile} does not exist; {EXAMPLE} shows the form.")
    slots: dict[str, int] = {}
    for number, line in enumerate(_text_of(hostfile).split("\n"), 1):  # as DeepSpeed splits it
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not SLOTS.fullmatch(words[1]):
            raise UserError(
                f"{hostfile}: line {number}: expected `NAME slots=N`, found `{line.strip():.80}`. Correct it."
            )
        if not HOST.fullmatch(words[0]):
            raise UserError(
                f"{hostfile}: line {number}: {words[0]!r:.80} is not a host name or an IPv4 address. "
                "Write a name of letters, digits, hyphens and dots; user and port belong into ~/.ssh/config."
            )
        if words[0] in slots:
            raise UserError(f"{hostfile}: line {number}: {words[0]:.80} is named twice. Add up its slots.")
        slots[words[0]] = int(words[1].removeprefix("slots="))
    if not slots:
        raise UserError(f"{hostfile}: names no machine; {EXAMPLE} shows the form.")
    return list(slots.values())


def _text_of(hostfile: Path) -> str:
    try:
        return hostfile.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{hostfile}: cannot be read: {error.strerror}. Give another --hostfile.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{hostfile}: not UTF-8 at byte {error.start}; it must be plain text.") from error


def free_port() -> int:
    """A port of this machine that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
