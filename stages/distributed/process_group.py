"""Joins and leaves the process group, and sets up device and threads of this rank."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import deepspeed
import torch
from torch.distributed import is_torchelastic_launched

from configs.errors import UserError
from configs.schema import DeepSpeed
from stages.distributed.environment import check_rendezvous
from stages.distributed.ranks import Ranks
from stages.internals.deepspeed import build_no_ops

LOOPBACK = ("127.0.0.1", "localhost")


def init_distributed(config: DeepSpeed) -> Ranks:
    """Join the process group of the launcher, deepspeed or torchrun. Under plain python, be the only rank.

    Raises:
        UserError: the environment variables are not usable, this rank has no GPU on a machine with GPUs, or
            the ranks cannot meet.
    """
    build_no_ops()
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    check_rendezvous()
    local_rank = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    if os.environ.get("DS_ACCELERATOR") == "cuda" and not cuda:
        raise UserError("DS_ACCELERATOR=cuda: torch finds no GPU here. Unset it, or set it to cpu.")
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"this machine has {torch.cuda.device_count()} GPUs, none for local rank {local_rank}. "
                "Start as many ranks as there are GPUs, or fewer."
            )
        torch.cuda.set_device(local_rank)
    ranks_on_machine = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    if ranks_on_machine > 1 and not cuda and "OMP_NUM_THREADS" not in os.environ:
        # If every rank uses all cores, ranks wait for each other in every matrix product.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_on_machine))
    backend, timeout = "nccl" if cuda else "gloo", timedelta(minutes=config.timeout_minutes)
    try:
        if os.environ["MASTER_ADDR"] in LOOPBACK and not is_torchelastic_launched():
            _join_on_loopback(backend, timeout)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)
    except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"MASTER_ADDR, MASTER_PORT: the ranks cannot meet at {address} "
            f"({str(error).splitlines()[0]:.200}). The port may be taken: choose another with the launcher's "
            "--master_port. If a rank did not come within deepspeed.timeout_minutes, see what it waits for."
        ) from error
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


def leave_process_group() -> None:
    """Leave the process group. Otherwise the process aborts at its end, because gloo's threads still run.

    DeepSpeed's function also forgets DeepSpeed's own groups, so that the process can join another job.
    """
    deepspeed.comm.destroy_process_group()


def _join_on_loopback(backend: str, timeout: timedelta) -> None:
    """Join the ranks of this machine over ports that only this machine can reach.

    By default, torch's store and gloo listen on all network interfaces.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    listen_fd = None
    if rank == 0:
        try:
            server = socket.create_server((host, port))
        except OSError as error:
            raise torch.distributed.DistNetworkError(str(error)) from error
        port, listen_fd = server.getsockname()[1], server.detach()
    store = torch.distributed.TCPStore(host, port, world, rank == 0, timeout, master_listen_fd=listen_fd)
    for _, name in socket.if_nameindex():
        if name.startswith("lo"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    # As DeepSpeed does: NCCL's communicator is made now, on this rank's device.
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" and world > 1 else None
    torch.distributed.init_process_group(
        backend, timeout=timeout, world_size=world, rank=rank, store=store, device_id=device
    )
