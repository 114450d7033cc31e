"""Private interfaces of torch."""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, Store
from torch.distributed.distributed_c10d import _get_default_store, _set_pg_timeout


def set_timeout(group: ProcessGroup, timeout: timedelta) -> None:
    """Change the timeout of a process group. The public API takes a timeout only when it makes a group."""
    _set_pg_timeout(timeout, group)


def default_store() -> Store:
    """The store in which the ranks met. The public API has only stores that one makes."""
    return _get_default_store()


def viewed_tensor(view: Tensor) -> Tensor | None:
    """The tensor that `view` is a view of; None if it has its own memory. torch has no public API for it."""
    return view._base


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether `onednn_linear` takes `dtype` on this CPU: fp32 always, bf16 if the CPU has AVX-512."""
    if not torch.backends.mkldnn.is_available():
        return False
    in_bf16: bool = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or in_bf16


def onednn_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's linear on a CPU, (..., in) to (..., out). `weight` may be packed for oneDNN.

    The public linear uses MKL in fp32, and takes no packed weight.
    """
    product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return product


def packed_weight(weight: Tensor, rows: int) -> Tensor:
    """`weight` (out, in) in the blocks that oneDNN's kernels read, for products of about `rows` rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed
