"""Private interfaces of vLLM. It is an optional extra, so each function imports it.

vLLM runs in the process that trains and changes it. No public switch leaves the process as it was.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.distributed import ProcessGroup, destroy_process_group


@contextmanager
def process_kept(device: torch.device) -> Iterator[None]:
    """Restore what vLLM changes in this process. Its own variables stay, because its modules read them later.

    vLLM seeds and draws from the global generators. On a CPU it also replaces `torch.set_num_threads` and
    sets variables, such as LD_PRELOAD, that later child processes would inherit. When it stops, it destroys
    torch's default process group, which training uses.
    """
    python, numpy, variables = random.getstate(), np.random.get_state(), dict(os.environ)
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        patch.multiple(torch, set_num_threads=torch.set_num_threads),
        patch.object(torch.distributed, "destroy_process_group", _destroy_subgroup),
    ):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            _restore(variables)


def _destroy_subgroup(group: ProcessGroup | None = None) -> None:
    if group is not None:
        destroy_process_group(group)


def _restore(variables: Mapping[str, str]) -> None:
    changed = {name for name in os.environ if variables.get(name) != os.environ[name]}
    for name in {name for name in changed if not name.startswith("VLLM_")}:
        del os.environ[name]
    os.environ.update({name: value for name, value in variables.items() if not name.startswith("VLLM_")})


def shut_down(llm: Any) -> None:
    """Stop the engine and free its memory. `LLM` has no public method for it."""
    llm.llm_engine.engine_core.shutdown()


def reports_sampling_masks() -> bool:
    """Whether vLLM can say which tokens it could sample. Only its runner with Triton's kernels does."""
    from vllm.triton_utils import HAS_TRITON

    return bool(HAS_TRITON)


def cpu_memory() -> tuple[int, int]:
    """Bytes of the CPU's memory, available and all, as vLLM counts them by memory node and cgroup."""
    from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node

    node = get_memory_node_info(get_visible_memory_node()[0])
    return int(node.available_memory), int(node.total_memory)


def adapter_refusal(adapter_config: Mapping[str, Any], max_rank: int) -> str:
    """Why vLLM does not take an adapter with this `adapter_config.json`; empty if it does."""
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    try:
        PEFTHelper.from_dict(dict(adapter_config)).validate_legal(LoRAConfig(max_lora_rank=max_rank))
    except ValueError as error:
        return " ".join(str(error).split())
    return ""
