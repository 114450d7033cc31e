"""The stub of vLLM takes and gives what vLLM does; private interfaces of vLLM are what they are taken for."""

from __future__ import annotations

import inspect
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="make test-vllm installs it")

from peft import LoraConfig
from vllm import LLM, SamplingParams
from vllm.config.lora import LoRAConfig, MaxLoRARanks
from vllm.engine.arg_utils import EngineArgs
from vllm.logprobs import Logprob
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput, SamplingMask
from vllm.platforms import current_platform
from vllm.utils.cpu_resource_utils import MemoryNodeInfo
from vllm.v1.engine.core_client import InprocClient

from configs.schema import VLLM_LORA_RANKS
from stages.internals.vllm import adapter_refusal, cpu_memory, reports_sampling_masks
from tests.support import vllm_stub


def names(stub: type) -> list[str]:
    return [field.name for field in fields(stub)]


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def test_options_of_the_engine() -> None:
    named, passed_on = set(parameters(LLM)), set(names(EngineArgs))
    assert set(names(vllm_stub.Options)) <= named | passed_on


@pytest.mark.parametrize(
    "stub", [vllm_stub.SamplingParams, vllm_stub.LoRARequest], ids=lambda stub: stub.__name__
)
def test_what_requests_are_made_of(stub: type) -> None:
    real = parameters({"SamplingParams": SamplingParams, "LoRARequest": LoRARequest}[stub.__name__])
    for name, parameter in parameters(stub).items():
        if parameter.default is not inspect.Parameter.empty:
            assert parameter.default == real[name].default, name
    assert list(real)[:3] == names(stub) or stub is vllm_stub.SamplingParams, "given by position"


@pytest.mark.parametrize("method", ["generate", "sleep", "wake_up"])
def test_methods_of_the_engine(method: str) -> None:
    real, stub = parameters(getattr(LLM, method)), parameters(getattr(vllm_stub.LLM, method))
    assert stub.keys() <= real.keys()
    by_position = [name for name, p in stub.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert by_position == list(real)[: len(by_position)]


@pytest.mark.parametrize(
    ("stub", "real"),
    [
        (vllm_stub.Logprob, Logprob),
        (vllm_stub.SamplingMask, SamplingMask),
        (vllm_stub.CompletionOutput, CompletionOutput),
        (vllm_stub.RequestOutput, RequestOutput),
    ],
    ids=lambda value: value.__name__,
)
def test_what_answers_are_made_of(stub: type, real: Any) -> None:
    assert set(names(stub)) <= parameters(real).keys()


def test_platform() -> None:
    stub = vllm_stub.Platform(current_platform.device_type)
    assert stub.is_cpu() == current_platform.is_cpu()
    assert stub.is_sleep_mode_available() == current_platform.is_sleep_mode_available()
    assert set(stub.supported_dtypes) >= set(current_platform.supported_dtypes)
    assert reports_sampling_masks() != current_platform.is_cpu()


def test_memory_of_the_cpu() -> None:
    """Bytes, of the memory node that vLLM sees."""
    assert set(names(vllm_stub.MemoryNodeInfo)) == parameters(MemoryNodeInfo).keys()
    available, total = cpu_memory()
    assert 2**30 < available <= total


def test_ranks_of_adapters() -> None:
    assert typing.get_args(MaxLoRARanks) == VLLM_LORA_RANKS == vllm_stub.LORA_RANKS


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, True),
        ({"use_rslora": True}, True),
        ({"rank_pattern": {"q_proj": 8}}, True),
        ({"use_dora": True}, False),
        ({"bias": "all"}, False),
        ({"lora_bias": True}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"r": 17}, False),
        ({"rank_pattern": {"q_proj": 17}}, False),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_adapters_that_are_taken(options: dict[str, Any], taken: bool, tmp_path: Path) -> None:
    written = LoraConfig(r=4, target_modules=["q_proj"]).to_dict() | {"target_modules": ["q_proj"]} | options
    refusal = adapter_refusal(written, 16)
    assert (refusal == "") == taken
    stub = vllm_stub.PEFTHelper.from_dict(written)
    if taken:
        stub.validate_legal(vllm_stub.LoRAConfig(max_lora_rank=16))
    else:
        with pytest.raises(ValueError, match="support"):
            stub.validate_legal(vllm_stub.LoRAConfig(max_lora_rank=16))


def test_private_shutdown() -> None:
    """It takes nothing, and destroys torch's process group: `process_kept` prevents that."""
    assert all(
        p.default is not inspect.Parameter.empty
        for n, p in parameters(InprocClient.shutdown).items()
        if n != "self"
    )
    cleanup = inspect.getsource(__import__("vllm.distributed.parallel_state", fromlist=["x"]))
    assert "torch.distributed.destroy_process_group()" in cleanup


def test_helper_is_asked_as_vllm_asks_it() -> None:
    assert list(parameters(PEFTHelper.from_dict)) == ["config_dict"]
    assert list(parameters(PEFTHelper.validate_legal)) == ["self", "lora_config"]
    assert LoRAConfig(max_lora_rank=512).max_lora_rank == 512
