"""Private interfaces of DeepSpeed."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import groups
from torch import Tensor
from torch.distributed import ProcessGroup


def build_no_ops() -> None:
    """Have DeepSpeed take none of its compiled ops for available.

    Otherwise it runs a compiler to test them, and builds one, for a minute, for collectives on CPUs. A killed
    build leaves a lock that hangs every later run. No public switch exists. gloo and NCCL need none of them.
    """
    vars(deepspeed.ops)["__compatible_ops__"] = {}


def data_parallel_group() -> ProcessGroup:
    """The group that averages gradients. DeepSpeed makes it itself, and returns it nowhere."""
    group: ProcessGroup = groups._get_data_parallel_group()
    return group


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 manages `parameter`, whole or not. Public functions only gather."""
    return "ds_status" in vars(parameter)


def is_sharded_now(parameter: Tensor) -> bool:
    """Whether this rank holds no more than its shard of `parameter` at the moment."""
    return vars(parameter).get("ds_status") == ZeroParamStatus.NOT_AVAILABLE


def whole_shape(parameter: Tensor) -> torch.Size:
    """Shape of a partitioned parameter when it is whole; its own shape is that of a placeholder."""
    shape: torch.Size = vars(parameter)["ds_shape"]
    return shape


def clear_gradient_shards(engine: Any) -> None:
    """Zero ZeRO-3's gradient buffers.

    ZeRO-3 overwrites a buffer only in the first backward of a step. If a role trains in a later backward, its
    gradient would be added to that of the previous step. The public zero_grad leaves the buffers alone.
    """
    engine.optimizer.grad_partitions_flat_buffer.zero_()


def flat_parameters(engine: Any) -> list[Tensor]:
    """The fp32 tensors that ZeRO-3's inner optimizer updates, to which its state belongs."""
    return list(engine.optimizer.fp32_partitioned_groups_flat)


def link_moments(engine: Any) -> None:
    """Tie parameters to their slices of ZeRO-1 or ZeRO-2's flat moments.

    DeepSpeed does it once, after the first group has stepped. Groups without moments by then stay untied.
    """
    engine.optimizer._lazy_init_hp_params_optimizer_state()
