"""Private interfaces of torch."""

from __future__ import annotations

from datetime import timedelta

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import _set_pg_timeout


def set_timeout(group: ProcessGroup, timeout: timedelta) -> None:
    """Change the timeout of a process group. The public API takes a timeout only when it makes a group."""
    _set_pg_timeout(timeout, group)


def viewed_tensor(view: Tensor) -> Tensor | None:
    """The tensor that `view` is a view of; None if it has its own memory. No public API tells."""
    return view._base
