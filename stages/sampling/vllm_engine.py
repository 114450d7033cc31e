"""Sampling by vLLM on a GPU, from its own copy of the base. A role's adapter is written again as it trains.

vLLM runs in this process, one engine per rank on that rank's GPU. It has its own noise: a response is a
function of its seed, but differs from the response of other engines. The batch changes it only by rounding.
"""

from __future__ import annotations

import gc
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from configs.schema import VLLM_LORA_RANKS, Experiment, Rollout, Stage
from stages.distributed.ranks import Ranks
from stages.distributed.zero3 import whole
from stages.internals.transformers import commit_hash
from stages.models.adapter_files import AdapterInfo, save_adapter
from stages.models.base import compute_dtype
from stages.models.roles import Role, Roles
from stages.sampling.decoding import Response

INSTALL = "install it on a machine with a GPU, in its own environment: pip install -e '.[vllm]'"
SHARE = "rollout.vllm.gpu_memory_utilization"
CARD = "The adapter of a role, as vLLM samples with it until the role trains further.\n"


def check_vllm(config: Experiment, stage: Stage) -> None:
    """Check that vLLM can run here if `stage` samples with it. The base need not be loaded.

    Raises:
        UserError: vLLM or its plugin for NF4 is not installed, or no GPU computes in bf16.
    """
    if stage not in config.rollouts or config.rollouts[stage][1].engine != "vllm":
        return
    key = f"{config.rollouts[stage][0]}.engine: vllm"
    for module in ["vllm", "vllm_bnb_plugin"] if config.base.quantization == "nf4" else ["vllm"]:
        if find_spec(module) is None:
            raise UserError(f"{key}: there is no Python module {module} here; {INSTALL}, or choose auto.")
    if not torch.cuda.is_available():
        raise UserError(f"{key}: there is no GPU here. Run on one, or choose auto.")
    if compute_dtype(config.base.compute_dtype, torch.device("cuda")) != torch.bfloat16:
        raise UserError(f"{key}: its LoRA is for bf16, which this GPU does not compute in. Choose auto.")


class VllmEngine:
    """Samples from vLLM's copy of the base, with a role's adapter beside it. A `RolloutEngine`."""

    def __init__(
        self, roles: Roles, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, rollout: Rollout
    ) -> None:
        """Start vLLM on the GPU of this rank.

        Raises:
            UserError: `rollout.vllm` asks for more memory than is free.
        """
        from vllm import LLM  # an optional extra

        _check_memory(rollout.vllm.gpu_memory_utilization, ranks.device)
        self._rollout, self._end = rollout, tokenizer.eos_token_id
        self._adapters = Adapters(roles, tokenizer)
        base = roles.causal
        self._llm = LLM(
            base.name_or_path,
            revision=commit_hash(base),
            dtype=str(roles.dtype).removeprefix("torch."),
            quantization="bitsandbytes" if any(isinstance(m, Linear4bit) for m in base.modules()) else None,
            enable_lora=True,
            max_lora_rank=min(rank for rank in VLLM_LORA_RANKS if rank >= roles.lora_rank),
            max_model_len=-1,  # as long as memory allows
            max_num_seqs=rollout.batch_size,
            gpu_memory_utilization=rollout.vllm.gpu_memory_utilization,
            # The ranks exist already. vLLM joins their process group; each rank has the whole model.
            distributed_executor_backend="external_launcher",
            seed=0,  # required by that backend; requests have their own seeds
            logprobs_mode="processed_logprobs",  # after temperature, top-k and top-p
            return_sampling_mask=rollout.truncates,
        )

    def respond(
        self,
        role: str,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        advance: Callable[[int], None],
    ) -> list[Response]:
        """See `RolloutEngine.respond`. All responses end at once.

        Raises:
            UserError: vLLM's memory does not hold the longest prompt and its response.
        """
        self._check_length(max(map(len, prompts)) + self._rollout.max_new_tokens)
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [self._sampling(seed) for seed in seeds],
            lora_request=self._request(role),
            use_tqdm=False,
        )
        advance(len(outputs))
        return [_response(output.outputs[0]) for output in outputs]

    def close(self) -> None:
        """Stop vLLM, free its memory and delete the adapters' folders.

        The process group stays, because training uses it.
        """
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        self._adapters.close()
        gc.collect()
        torch.cuda.empty_cache()

    def _sampling(self, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=self._rollout.temperature,
            top_k=self._rollout.top_k or 0,  # 0 is all
            top_p=self._rollout.top_p,
            seed=seed,
            max_tokens=self._rollout.max_new_tokens,
            ignore_eos=True,  # the base's generation_config.json may name other end tokens
            stop_token_ids=[self._end],
            logprobs=0,  # of the sampled token only
            detokenize=False,
        )

    def _request(self, role: str) -> Any:
        """The LoRA request for `role`; None for the base, which has no adapter."""
        from vllm.lora.request import LoRARequest

        if role == Role.BASE:
            return None
        number, folder = self._adapters.current(role)
        # vLLM identifies an adapter by number, and cached prompts by name and path.
        return LoRARequest(folder.name, number, str(folder))

    def _check_length(self, longest: int) -> None:
        """Raise UserError if vLLM would silently cut a response short of `max_new_tokens`."""
        share, capacity = self._rollout.vllm.gpu_memory_utilization, self._llm.model_config.max_model_len
        if longest > capacity:
            raise UserError(
                f"{SHARE}: {share:g} of the GPU holds {capacity} tokens of a prompt and its response, and "
                f"{longest} are needed. Raise it, or lower rollout.max_new_tokens or data.max_prompt_length."
            )


@dataclass(frozen=True)
class Version:
    """A role's adapter at one time: its number for vLLM, its folder and its tensors."""

    number: int
    folder: Path
    tensors: Mapping[str, Tensor]


class Adapters:
    """Roles' adapters as plain PEFT folders. A changed adapter gets a new number and a new folder."""

    def __init__(self, roles: Roles, tokenizer: PreTrainedTokenizerBase) -> None:
        self._roles, self._tokenizer = roles, tokenizer
        self._root = TemporaryDirectory(prefix="tristage-adapters-")
        self._numbers = itertools.count(1)
        self._versions: dict[str, Version] = {}

    def current(self, role: str) -> tuple[int, Path]:
        """Number and folder of the current adapter of `role`. Under ZeRO-3 every rank must call."""
        parameters = self._roles.role_parameters(role)
        with whole(*parameters.values()):
            tensors = {name: value.detach().to("cpu", copy=True) for name, value in parameters.items()}
        latest = self._versions.get(role)
        if latest is None or any(not torch.equal(latest.tensors[name], tensors[name]) for name in tensors):
            self._versions[role] = self._write(role, tensors)
            if latest is not None:
                shutil.rmtree(latest.folder)
        return self._versions[role].number, self._versions[role].folder

    def close(self) -> None:
        """Delete all folders."""
        self._root.cleanup()

    def _write(self, role: str, tensors: dict[str, Tensor]) -> Version:
        number, config = next(self._numbers), self._roles.peft_config(role)
        folder = Path(self._root.name) / f"{role}-{number}"
        base = self._roles.causal.name_or_path
        save_adapter(folder, tensors, AdapterInfo(role, config, base, self._tokenizer, CARD))
        return Version(number, folder, tensors)


def _response(completion: Any) -> Response:
    ids = list(completion.token_ids)
    logprobs = [candidates[token].logprob for token, candidates in zip(ids, completion.logprobs, strict=True)]
    mask = completion.sampling_mask  # None if every token could be sampled
    support = [np.array(allowed, dtype=np.int32) for allowed in mask.token_ids] if mask else []
    return Response(ids, logprobs, support)


def _check_memory(share: float, device: torch.device) -> None:
    """Raise UserError if `share` of the GPU is more than is free. vLLM starts beside the training model."""
    torch.cuda.empty_cache()
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
    if share * total > free:
        raise UserError(
            f"{SHARE}: {share:g} of the GPU is {share * total:.1f} GiB, and {free:.1f} GiB of {total:.1f} "
            "are free. Lower it, or choose another rollout.engine."
        )
