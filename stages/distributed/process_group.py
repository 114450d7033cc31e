"""How a process joins the others: device, threads, memory, and the process group."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
from datetime import timedelta

import deepspeed
import torch
from torch.distributed import is_torchelastic_launched

from configs.errors import UserError
from configs.schema import DeepSpeed
from stages.distributed.environment import check_meeting_place
from stages.distributed.ranks import Ranks
from stages.internals.deepspeed import build_no_ops

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that glibc takes
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for what is asked for next; returns whether it does so.

    Left to itself, it hands large tensors back to the kernel as they are freed. The next ones are then
    mapped anew, page by page, as they are first written: some microseconds a page on a virtual machine, as
    much as the arithmetic of an elementwise operation.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # Whichever is set, glibc no longer raises the other as it goes.
    return bool(
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and libc.mallopt(M_TRIM_THRESHOLD, NEVER)
    )


LOOPBACK = ("127.0.0.1", "localhost")


def init_distributed(config: DeepSpeed) -> Ranks:
    """Join the process group that deepspeed or torchrun describes; alone under plain python."""
    build_no_ops()
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
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
        if os.environ["MASTER_ADDR"] in LOOPBACK and not is_torchelastic_launched():
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


def leave_process_group() -> None:
    """Leave the process group. A process that ends with gloo's threads still running aborts.

    DeepSpeed's function also forgets DeepSpeed's own groups, so that the process can join another job.
    """
    deepspeed.comm.destroy_process_group()


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
