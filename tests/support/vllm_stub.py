"""vLLM's interface as far as it is used, for machines without it: what is asked is checked and remembered.

Signatures and what they refuse are those of vLLM 0.32; `tests/vllm` compares them. Tokens are a function of
the seed alone. Adapters are read when a number is first asked for and kept by number, as vLLM does. The stub
changes its process as vLLM does on a CPU.
"""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

END = 2
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
ROOM = 1024


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    ignore_eos: bool = False
    stop_token_ids: list[int] | None = None
    logprobs: int | None = None
    detokenize: bool = True


@dataclass(frozen=True)
class Logprob:
    logprob: float


@dataclass(frozen=True)
class SamplingMask:
    token_ids: list[list[int]]


@dataclass(frozen=True)
class CompletionOutput:
    token_ids: Sequence[int]
    logprobs: list[dict[int, Logprob]]
    sampling_mask: SamplingMask | None


@dataclass(frozen=True)
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


@dataclass(frozen=True)
class ModelConfig:
    max_model_len: int


@dataclass
class Call:
    """One call of `generate`: what was asked, and the adapter that vLLM would have answered with."""

    prompts: list[list[int]]
    params: list[SamplingParams]
    request: LoRARequest | None
    adapter: dict[str, Tensor] | None


@dataclass(kw_only=True)
class Options:
    revision: str | None
    dtype: Literal["float32", "bfloat16"]
    quantization: Literal["bitsandbytes"] | None
    enable_lora: bool
    max_lora_rank: int
    max_model_len: int
    max_num_seqs: int
    max_logprobs: int
    gpu_memory_utilization: float
    enforce_eager: bool
    enable_sleep_mode: bool
    use_tqdm_on_load: bool
    skip_tokenizer_init: bool
    distributed_executor_backend: str
    seed: int
    logprobs_mode: str
    return_sampling_mask: bool


@dataclass
class EngineCore:
    """What holds vLLM's memory."""

    running: bool = True

    def shutdown(self) -> None:
        assert self.running
        self.running = False
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # the one of the whole process


@dataclass
class LLMEngine:
    engine_core: EngineCore = field(default_factory=EngineCore)


@dataclass
class LLM:
    """Answers with tokens that its prompts' seeds give, one in six of them the end of the turn."""

    model: str
    options: Options
    calls: list[Call] = field(default_factory=list)
    adapters: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    model_config: ModelConfig = field(default_factory=lambda: ModelConfig(ROOM))
    llm_engine: LLMEngine = field(default_factory=LLMEngine)
    asleep: bool = False
    probes: int = 0

    @property
    def running(self) -> bool:
        return self.llm_engine.engine_core.running

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool,
        lora_request: LoRARequest | None,
    ) -> list[RequestOutput]:
        assert self.running and not self.asleep
        assert all(prompt.keys() == {"prompt_token_ids"} for prompt in prompts)
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        torch.randint(0, 2**31, (len(ids),))  # vLLM's sampler draws from torch's generator
        if all(params.seed is None for params in sampling_params):
            self.probes += 1
            return []
        adapter = None if lora_request is None else self._load(lora_request)
        self.calls.append(Call(ids, list(sampling_params), lora_request, adapter))
        answered = zip(ids, sampling_params, strict=True)
        return [RequestOutput(prompt, [self._complete(params)]) for prompt, params in answered]

    def sleep(self, level: int = 1) -> None:
        assert self.options.enable_sleep_mode and not self.asleep
        self.asleep = True

    def wake_up(self) -> None:
        assert self.asleep
        self.asleep = False

    def _load(self, request: LoRARequest) -> dict[str, Tensor]:
        assert request.lora_int_id >= 1
        if request.lora_int_id not in self.adapters:
            folder = Path(request.lora_path)
            assert LoraConfig.from_pretrained(str(folder)).r <= self.options.max_lora_rank
            self.adapters[request.lora_int_id] = load_file(folder / "adapter_model.safetensors")
        return self.adapters[request.lora_int_id]

    def _complete(self, params: SamplingParams) -> CompletionOutput:
        assert params.ignore_eos and not params.detokenize
        assert params.seed is not None and params.max_tokens and params.stop_token_ids
        assert params.top_k >= 1 or not self.options.return_sampling_mask
        assert params.logprobs is not None and params.logprobs <= self.options.max_logprobs
        draw = random.Random(params.seed)
        ids: list[int] = []
        while len(ids) < params.max_tokens and not set(ids) & set(params.stop_token_ids):
            ids.append(END if draw.random() < 1 / 6 else draw.randrange(8, 380))
        masks = [[token, 5, 6] for token in ids]
        # The likeliest tokens come beside the sampled one. Top-k and top-p excluded token 7.
        likeliest = {5: Logprob(-1.0), 6: Logprob(-2.0), 7: Logprob(-math.inf)} if params.logprobs else {}
        return CompletionOutput(
            tuple(ids),
            [
                {token: Logprob(logprob_of(params.seed, at, token))} | likeliest
                for at, token in enumerate(ids)
            ],
            SamplingMask(masks) if self.options.return_sampling_mask else None,
        )


@dataclass
class Platform:
    """What vLLM says of the machine."""

    device_type: str = "cpu"
    supported_dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16, torch.float32)

    def is_cpu(self) -> bool:
        return self.device_type == "cpu"

    def is_sleep_mode_available(self) -> bool:
        return self.device_type == "cuda"


@dataclass
class MemoryNodeInfo:
    """Memory of a CPU in bytes: 6 GiB of 10 are free."""

    available_memory: int = 6 * 2**30
    total_memory: int = 10 * 2**30


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    max_lora_rank: int


@dataclass(frozen=True)
class PEFTHelper:
    """Refuses some of what vLLM refuses."""

    config_dict: dict[str, Any]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> PEFTHelper:
        return cls(config_dict)

    def validate_legal(self, lora_config: LoRAConfig) -> None:
        options = {"bias": "none", "modules_to_save": None, "use_dora": False, "lora_bias": False}
        ranks = [self.config_dict["r"], *(self.config_dict.get("rank_pattern") or {}).values()]
        refused = [name for name, usual in options.items() if self.config_dict.get(name, usual) != usual]
        if refused or max(ranks) > lora_config.max_lora_rank:
            raise ValueError(f"vLLM does not support {refused or 'this rank'}.")


def logprob_of(seed: int, position: int, token: int) -> float:
    """What the stub says of a token; no two are alike."""
    return -random.Random(f"{seed} {position} {token}").random()


def install(patch: pytest.MonkeyPatch, platform: Platform | None = None, triton: bool = False) -> list[LLM]:
    """Make `import vllm` find the stub; returns the engines that will be started.

    Args:
        platform: the machine; without it, a CPU.
        triton: whether vLLM has kernels that report which tokens could be sampled.
    """
    started: list[LLM] = []

    def start(model: str, **options: Any) -> LLM:
        assert not any(llm.running for llm in started), "two engines would share one device"
        llm = LLM(model, Options(**options))
        assert llm.options.max_lora_rank in LORA_RANKS and llm.options.enable_lora
        assert llm.options.dtype == "bfloat16" or not llm.options.quantization
        assert triton or not llm.options.return_sampling_mask
        change_process(llm.options.seed)
        started.append(llm)
        return llm

    contents: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": start, "SamplingParams": SamplingParams},
        "vllm.config": {},
        "vllm.config.lora": {"LoRAConfig": LoRAConfig},
        "vllm.lora": {},
        "vllm.lora.peft_helper": {"PEFTHelper": PEFTHelper},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.platforms": {"current_platform": platform or Platform()},
        "vllm.triton_utils": {"HAS_TRITON": triton},
        "vllm.utils": {},
        "vllm.utils.cpu_resource_utils": {
            "get_visible_memory_node": lambda: [0],
            "get_memory_node_info": lambda node_id: MemoryNodeInfo(),
        },
    }
    for name, content in contents.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        patch.setitem(sys.modules, name, module)
    return started


def change_process(seed: int) -> None:
    """What the start of vLLM changes."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    vars(torch)["set_num_threads"] = lambda threads: None
    os.environ.update(LD_PRELOAD="libgomp.so", LOCAL_WORLD_SIZE="1")
