"""What `tristage doctor` finds on this machine: one finding a line, each ok, a note or a problem."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import requests
from packaging.requirements import Requirement

from pipeline.terminal.format import show_seconds
from stages.distributed.free_memory import free_ram

GIB = 2**30
LOW_DISK, FULL_DISK = 10 * GIB, GIB  # bytes free: a note below the first, a problem below the second
STALE_SECONDS = 15 * 60  # no extension takes that long to build
TIMEOUT = 3  # seconds for an answer of a service
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "deepspeed")
SERVICES = {
    "model hub": (
        "HF_ENDPOINT",
        "https://huggingface.co",
        "models and data sets of the hub cannot be downloaded",
    ),
    "W&B": ("WANDB_BASE_URL", "https://api.wandb.ai", "runs stay offline, or set tracking.wandb to disabled"),
}


Level = Literal["ok", "note", "problem"]


class Finding(NamedTuple):
    """`problem` would stop a run."""

    level: Level
    about: str
    text: str


def examine(folder: Path) -> Iterator[Finding]:
    """Examine this machine for runs below `folder`. Nothing is started or written."""
    yield versions()
    yield accelerators()
    yield compiler()
    yield from extension_locks(extensions_folder())
    for name, (variable, default, otherwise) in SERVICES.items():
        yield service(name, os.environ.get(variable) or default, otherwise)
    yield from disks(folder)


def versions() -> Finding:
    """Python and the main libraries, and whether each requirement of this project is met."""
    faults = []
    for line in requires("tristage") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            faults.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            faults.append(f"{requirement.name} is {installed}, not {requirement.specifier}")
    if faults:
        return Finding("problem", "versions", f"{'; '.join(faults)}. Run make setup.")
    shown = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return Finding("ok", "versions", f"Python {sys.version.split()[0]}, {shown}")


def accelerators() -> Finding:
    """The GPUs that torch can use, or why it can use none; else the CPU."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        first = torch.cuda.get_device_properties(0)
        return Finding(
            "ok", "accelerators", f"{count} x {first.name}, {first.total_memory / GIB:.0f} GiB each"
        )
    shown = list(Path("/dev").glob("nvidia[0-9]*"))
    if shown and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        reason = (
            "its driver is too old or broken" if torch.version.cuda else "this torch is built without CUDA"
        )
        return Finding(
            "problem", "accelerators", f"{len(shown)} NVIDIA devices, but {reason}. See nvidia-smi."
        )
    fast = "with" if torch.backends.cpu.get_cpu_capability() == "AVX512" else "without"
    return Finding(
        "note",
        "accelerators",
        f"no GPU: runs use the CPU, {os.cpu_count()} cores {fast} AVX-512, {free_ram() / GIB:.1f} of "
        f"{psutil.virtual_memory().total / GIB:.1f} GiB of memory available",
    )


def compiler() -> Finding:
    """The compiler. No stage needs it: `build_no_ops` keeps DeepSpeed from compiling. vLLM may."""
    name = os.environ.get("CXX", "c++")
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if shutil.which(name, path=beside) is None:
        needs = "Stages compile nothing; pip may, and vLLM without enforce_eager."
        return Finding("note", "compiler", f"{name} is not on PATH. {needs} Install g++ for these.")
    return Finding("ok", "compiler", f"{name} is on PATH")


def extensions_folder() -> Path:
    """Where torch builds extensions."""
    default = Path.home() / ".cache" / "torch_extensions"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or default)


def extension_locks(folder: Path) -> list[Finding]:
    """Locks that killed builds left in `folder`. A stage builds nothing; other programs wait for them."""
    found = []
    for lock in sorted(folder.glob("**/lock")):
        age = time.time() - lock.stat().st_mtime
        if age > STALE_SECONDS:
            text = f"{lock} is {show_seconds(age)} old. No stage waits for it. Other programs may: remove it."
            found.append(Finding("note", "extension lock", text))
        else:
            found.append(
                Finding("note", "extension lock", f"{lock}: something builds, since {show_seconds(age)}")
            )
    return found or [Finding("ok", "extension locks", f"none in {folder}")]


def service(name: str, url: str, otherwise: str) -> Finding:
    """Whether a service answers within TIMEOUT. Any answer will do."""
    try:
        requests.head(url, timeout=TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        reason = type(error).__name__
        return Finding("note", name, f"{url} does not answer ({reason}): {otherwise}")
    return Finding("ok", name, f"{url} answers")


def disks(folder: Path) -> Iterator[Finding]:
    """Free space for runs, and for models and data sets."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for about, place in (("disk for runs", folder), ("disk for models", Path(HF_HUB_CACHE))):
        existing = next(path for path in (place, *place.parents) if path.is_dir())
        free = shutil.disk_usage(existing).free
        level: Level = "problem" if free < FULL_DISK else "note" if free < LOW_DISK else "ok"
        yield Finding(level, about, f"{free / GIB:.1f} GiB free in {place}")
