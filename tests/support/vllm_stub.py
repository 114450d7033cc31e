"""The part of vLLM's interface that is used, for machines without it. The stub checks and records calls.

Signatures and refusals are those of vLLM 0.32. Tokens depend only on the seed. Adapters are
read at the first request with their number and kept by number, as in vLLM.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
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
    temperature: float
    top_k: int
    top_p: float
    seed: int
    max_tokens: int
    ignore_eos: bool
    stop_token_ids: list[int]
    logprobs: int
    detokenize: bool


@dataclass(frozen=True)
class Logprob:
    logprob: float


@dataclass(frozen=True)
class SamplingMask:
    token_ids: list[list[int]]


@dataclass(frozen=True)
class Completion:
    token_ids: tuple[int, ...]
    logprobs: list[dict[int, Logprob]]
    sampling_mask: SamplingMask | None


@dataclass(frozen=True)
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[Completion]


@dataclass(frozen=True)
class ModelConfig:
    max_model_len: int


@dataclass
class Call:
    """One call of `generate`: its arguments, and the adapter that vLLM would use."""

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
    gpu_memory_utilization: float
    distributed_executor_backend: str
    seed: int
    logprobs_mode: str
    return_sampling_mask: bool


@dataclass
class EngineCore:
    """Owns vLLM's memory."""

    running: bool = True

    def shutdown(self) -> None:
        assert self.running
        self.running = False


@dataclass
class LLMEngine:
    engine_core: EngineCore = field(default_factory=EngineCore)


@dataclass
class LLM:
    """Samples tokens from the seeds of the prompts. One token in six ends the turn."""

    model: str
    options: Options
    calls: list[Call] = field(default_factory=list)
    adapters: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    model_config: ModelConfig = field(default_factory=lambda: ModelConfig(ROOM))
    llm_engine: LLMEngine = field(default_factory=LLMEngine)

    @property
    def running(self) -> bool:
        return self.llm_engine.engine_core.running

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: Sequence[SamplingParams],
        *,
        lora_request: LoRARequest | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        assert self.running
        assert all(prompt.keys() == {"prompt_token_ids"} for prompt in prompts)
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        adapter = None if lora_request is None else self._load(lora_request)
        self.calls.append(Call(ids, list(sampling_params), lora_request, adapter))
        requests = zip(ids, sampling_params, strict=True)
        return [RequestOutput(prompt, [self._complete(params)]) for prompt, params in requests]

    def _load(self, request: LoRARequest) -> dict[str, Tensor]:
        assert request.lora_int_id >= 1
        if request.lora_int_id not in self.adapters:
            folder = Path(request.lora_path)
            assert LoraConfig.from_pretrained(str(folder)).r <= self.options.max_lora_rank
            self.adapters[request.lora_int_id] = load_file(folder / "adapter_model.safetensors")
        return self.adapters[request.lora_int_id]

    def _complete(self, params: SamplingParams) -> Completion:
        assert params.ignore_eos and params.logprobs == 0 and not params.detokenize
        assert params.top_k >= 1 or not self.options.return_sampling_mask
        generator = random.Random(params.seed)
        ids: list[int] = []
        while len(ids) < params.max_tokens and not set(ids) & set(params.stop_token_ids):
            ids.append(END if generator.random() < 1 / 6 else generator.randrange(3, 380))
        masks = [[token, 5, 6] for token in ids]
        return Completion(
            tuple(ids),
            [
                {token: Logprob(logprob_of(params.seed, position, token))}
                for position, token in enumerate(ids)
            ],
            SamplingMask(masks) if self.options.return_sampling_mask else None,
        )


def logprob_of(seed: int, position: int, token: int) -> float:
    """The stub's log-probability of a token. It differs for each seed, position and token."""
    return -random.Random(f"{seed} {position} {token}").random()


def install(patch: pytest.MonkeyPatch) -> list[LLM]:
    """Make `import vllm` import the stub; returns the list of engines, which grows as they start."""
    started: list[LLM] = []

    def start_llm(model: str, **options: Any) -> LLM:
        assert not any(llm.running for llm in started), "two engines would share one GPU"
        llm = LLM(model, Options(**options))
        assert llm.options.max_lora_rank in LORA_RANKS and llm.options.enable_lora
        started.append(llm)
        return llm

    contents: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": start_llm, "SamplingParams": SamplingParams},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        patch.setitem(sys.modules, name, module)
    return started
