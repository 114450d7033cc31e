"""The rank of this process and the rendezvous address, from the launcher's environment variables."""

from __future__ import annotations

import os

from configs.errors import UserError

LARGEST_PORT = 65535
ACCELERATORS = ("cpu", "cuda")
REMEDY = "Start with `deepspeed`, `torchrun` or `tristage run`, or unset it for a single process."


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without a launcher.

    Raises:
        UserError: one of RANK and WORLD_SIZE is missing or not a number, or the rank is too large.
    """
    if not os.environ.get("RANK") and os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return 0, 1
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    if rank >= world:
        raise UserError(f"RANK={rank}: WORLD_SIZE is {world}, so ranks end at {world - 1}. {REMEDY}")
    return rank, world


def check_rendezvous() -> None:
    """Raise UserError unless LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set and valid."""
    _number("LOCAL_RANK")
    _text("MASTER_ADDR")
    if (port := _number("MASTER_PORT")) > LARGEST_PORT:
        raise UserError(f"MASTER_PORT={port}: ports end at {LARGEST_PORT}. {REMEDY}")


def check_accelerator() -> None:
    """Raise UserError if DS_ACCELERATOR names what this project has no code for."""
    name = os.environ.get("DS_ACCELERATOR", "cpu")
    if name not in ACCELERATORS:
        raise UserError(
            f"DS_ACCELERATOR={name:.40}: unknown; use one of {', '.join(ACCELERATORS)}, or unset it."
        )


def _text(name: str) -> str:
    text = os.environ.get(name, "")
    if not text:
        others = ", ".join(key for key in ("RANK", "WORLD_SIZE") if key in os.environ and key != name)
        raise UserError(f"{name} is not set, though {others} is. {REMEDY}")
    return text


def _number(name: str) -> int:
    text = _text(name)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"{name}={text:.40}: not a number. {REMEDY}")
    return int(text)
