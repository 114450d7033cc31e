"""Checks what vLLM can do on this machine, with this base and adapter, before a stage trains."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from configs.errors import UserError
from configs.schema import VLLM_LORA_RANKS, Experiment, Rollout, Stage
from data.storage.adapter_names import CONFIG_FILE
from stages.internals.vllm import adapter_refusal, cpu_memory, reports_sampling_masks
from stages.models.adapter_files import loading_adapter
from stages.models.base import compute_dtype

INSTALL = "install it in its own environment, see docs/reference/vllm.md"
SHARE = "rollout.vllm.gpu_memory_utilization"
# Each of these says whether vLLM sends statistics of its use. By default it does.
TELEMETRY = ("VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "DO_NOT_TRACK")


def set_defaults() -> None:
    """Turn off vLLM's telemetry and informative log, unless the user's environment says otherwise.

    vLLM reads these variables when it is imported.
    """
    if not any(name in os.environ for name in TELEMETRY):
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def check_vllm(config: Experiment, stage: Stage, device: torch.device) -> None:
    """Check that vLLM can run on `device` if `stage` samples with it. The base need not be loaded.

    Raises:
        UserError: vLLM or its plugin for NF4 is not installed, or does not support the device or the dtype.
    """
    if not (section := _section(config, stage)):
        return
    key = f"{section[0]}.engine: vllm"
    for module in ["vllm", "vllm_bnb_plugin"] if config.base.quantization == "nf4" else ["vllm"]:
        if find_spec(module) is None:
            raise UserError(f"{key}: there is no Python module {module} here; {INSTALL}, or choose auto.")
    dtype = compute_dtype(config.base.compute_dtype, device)
    if fault := _platform_fault(dtype, device) or _rollout_fault(section[1], dtype, config.base.quantization):
        raise UserError(f"{key}: {fault}, or choose auto.")


def _section(config: Experiment, stage: Stage) -> tuple[str, Rollout] | None:
    """Key and section of the rollout of `stage`; None if it does not sample with vLLM."""
    section = config.rollouts.get(stage)
    return section if section and section[1].engine == "vllm" else None


def _platform_fault(dtype: torch.dtype, device: torch.device) -> str:
    """Why vLLM does not compute in `dtype` on this machine, and the remedy; empty if it does."""
    set_defaults()
    from vllm.platforms import current_platform

    platform, name = current_platform.device_type, str(dtype).removeprefix("torch.")
    if platform != device.type:
        runs_on = f"is for {platform}" if platform else "finds no device that it supports"
        return f"the vLLM that is installed {runs_on}, and the stage computes on {device.type}; {INSTALL}"
    if dtype not in current_platform.supported_dtypes:
        return f"it does not compute in {name} here; set base.compute_dtype"
    if dtype == torch.float32 and not current_platform.is_cpu():
        return "its LoRA on a GPU is for bf16; run on a GPU that computes in bf16, base.compute_dtype auto"
    return ""


def _rollout_fault(rollout: Rollout, dtype: torch.dtype, quantization: str) -> str:
    """Why vLLM does not sample as `rollout` says from such a base, and the remedy; empty if it does."""
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float32 and quantization == "nf4":
        return "it computes in bf16 on an NF4 base; set base.compute_dtype to bfloat16"
    if rollout.truncates and dtype != torch.float32 and not reports_sampling_masks():
        return (
            f"it does not report here which tokens it could sample, and in {name} likely tokens are often "
            "equal; set base.compute_dtype to float32, or leave out top_k and top_p"
        )
    return ""


def check_vllm_adapter(config: Experiment, stage: Stage, base: PreTrainedModel, folder: Path | None) -> None:
    """Check that vLLM takes the adapters it will sample with: those of `config`, and the one in `folder`.

    Raises:
        UserError: an adapter is on the embeddings or the LM head, or has options that vLLM does not support.
    """
    engines = {key: rollout.engine for key, rollout in config.rollouts.values()}
    if "vllm" not in engines.values():
        return
    key = next(key for key, engine in engines.items() if engine == "vllm")
    if name := _embedding(base, config.adapter.target_modules):
        reason = f"vllm takes no adapter on {name}; leave it out of adapter.target_modules"
        raise UserError(f"{key}.engine: {reason}, or choose auto.")
    section = _section(config, stage)
    if folder is None or section is None:
        return
    with loading_adapter(folder, [name for name, _ in base.named_modules()]):
        written = json.loads((folder / CONFIG_FILE).read_text())
        name = _embedding(base, written["target_modules"])
        refusal = f"it is on {name}" if name else adapter_refusal(written, VLLM_LORA_RANKS[-1])
    if refusal:
        raise UserError(
            f"{folder}: vllm does not take this adapter: {refusal.rstrip('.')}. "
            f"Train it without that, or set {section[0]}.engine to auto."
        )


def _embedding(base: PreTrainedModel, targets: str | list[str]) -> str:
    """The input embeddings or LM head of `base`, if PEFT's `targets` name them; else empty."""
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    names = [name for name, module in base.named_modules() if any(module is end for end in ends)]
    if isinstance(targets, str):  # a regular expression; all-linear leaves out the LM head
        return next((name for name in names if re.fullmatch(targets, name)), "")
    return next((n for n in names if any(n == t or n.endswith(f".{t}") for t in targets)), "")


def check_memory(share: float, device: torch.device) -> None:
    """Raise UserError unless vLLM can start beside the training model with `share` of the device's memory.

    On a CPU, vLLM counts what the process holds already as a part of its share.
    """
    free, total, held = _gpu_memory(device) if device.type == "cuda" else _cpu_memory()
    owner = "GPU" if device.type == "cuda" else "CPU"
    asked = f"{SHARE}: {share:g} of the {owner}'s memory is {share * total:.1f} GiB"
    if share * total > free:
        raise UserError(
            f"{asked}, and {free:.1f} GiB of {total:.1f} are free. "
            "Lower it, or choose another rollout.engine."
        )
    if share * total <= held:
        raise UserError(f"{asked}, and this process already holds {held:.1f} GiB of it. Raise it.")


def _gpu_memory(device: torch.device) -> tuple[float, float, float]:
    """GiB that are free, all of them, and those that count as vLLM's already."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return free / 2**30, total / 2**30, 0.0


def _cpu_memory() -> tuple[float, float, float]:
    """As `_gpu_memory`."""
    (free, total), held = cpu_memory(), psutil.Process().memory_info().rss
    return free / 2**30, total / 2**30, held / 2**30
