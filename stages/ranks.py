"""The processes of a job: what each of them handles, and what they tell one another."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from torch import Tensor
from torch.distributed import is_torchelastic_launched

from configs.errors import UserError
from configs.schema import DeepSpeed
from data.sampler import rank_share
from stages.heap import keep_freed_memory
from stages.job import check_meeting_place

LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Round:
    """Items that one rank handles together; `weight` 0 if they only keep it in step with the others."""

    items: list[Any]
    weight: int


@dataclass(frozen=True)
class Ranks:
    """This process among all: `rank` of `world`, computing on `device`."""

    rank: int
    world: int
    device: torch.device

    def share(self, items: list[Any]) -> list[Any]:
        """This rank's contiguous share of `items`, whose number `world` divides."""
        return rank_share(items, self.rank, self.world)

    def rounds(self, items: list[Any], size: int) -> list[Round]:
        """This rank's items in rounds of at most `size`, as many rounds on every rank.

        Under ZeRO-3 all ranks must take part in every forward: a rank that has run out of items repeats
        the last one with weight 0.
        """
        count = -(-len(items) // (size * self.world))
        rounds = []
        for first in range(0, count * size * self.world, size * self.world):
            mine = items[first : first + size * self.world][self.rank :: self.world]
            rounds.append(Round(mine, 1) if mine else Round(items[-1:], 0))
        return rounds

    def sum(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Each value summed over ranks, in float64."""
        total = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
        total = total.to(self.device)
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def max(self, value: int) -> int:
        """The largest value of all ranks."""
        if self.world == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all ranks, in order of rank."""
        if self.world == 1:
            return items
        parts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def barrier(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()


def init_distributed(config: DeepSpeed) -> Ranks:
    """Join the process group that deepspeed or torchrun describes; alone under plain python."""
    # Left to itself, DeepSpeed runs a compiler to see which of its ops it could build, and builds one, for a
    # minute, for collectives on CPUs. Where that is killed, files stay behind, and a lock that hangs every
    # later run. None of its ops is used here: gloo and NCCL do without.
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    joined = torch.distributed.is_initialized()
    if not joined:
        check_meeting_place()
    local_rank = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"--num_accelerators: there is no GPU for rank {local_rank} of this machine, which has "
                f"{torch.cuda.device_count()}. Start as many ranks as there are GPUs, or fewer."
            )
        torch.cuda.set_device(local_rank)
    else:
        keep_freed_memory()
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    if neighbours > 1 and not cuda and "OMP_NUM_THREADS" not in os.environ:
        # Ranks that each take all cores wait for one another in every matrix product.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // neighbours))
    backend, timeout = "nccl" if cuda else "gloo", timedelta(minutes=config.timeout_minutes)
    try:
        if not joined and os.environ["MASTER_ADDR"] in LOOPBACK and not is_torchelastic_launched():
            _meet_on_loopback(backend, timeout)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)
    except torch.distributed.DistNetworkError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"MASTER_ADDR, MASTER_PORT: the ranks cannot meet at {where} "
            f"({str(error).splitlines()[0]:.200}). The port may be taken: choose another "
            "with the launcher's --master_port."
        ) from error
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


def _meet_on_loopback(backend: str, timeout: timedelta) -> None:
    """Join ranks of this machine by ports that are open to this machine alone.

    Left to themselves, torch's store and gloo listen on all interfaces.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    listening = None
    if rank == 0:
        try:
            place = socket.create_server((host, port))
        except OSError as error:
            raise torch.distributed.DistNetworkError(str(error)) from error
        port, listening = place.getsockname()[1], place.detach()
    store = torch.distributed.TCPStore(host, port, world, rank == 0, timeout, master_listen_fd=listening)
    for _, name in socket.if_nameindex():
        if name.startswith("lo"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    # As DeepSpeed does: it makes NCCL's communicator at once, on this rank's device.
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" and world > 1 else None
    torch.distributed.init_process_group(
        backend, timeout=timeout, world_size=world, rank=rank, store=store, device_id=device
    )


def seed_from(*parts: Any) -> int:
    """A 63-bit seed that is a function of `parts` alone: (experiment seed, what for, step, ...)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
