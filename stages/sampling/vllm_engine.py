"""Sampling by vLLM, from its own copy of the base. A role's adapter is written again as it trains.

vLLM runs in this process, one engine per rank on that rank's device. It has its own noise: a response is a
function of its seed, but differs from the response of other engines. The batch changes it only by rounding.
"""

from __future__ import annotations

import gc
import itertools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from configs.schema import Rollout, vllm_lora_rank
from stages.distributed.ranks import Ranks
from stages.distributed.zero3 import whole
from stages.internals.transformers import commit_hash
from stages.internals.vllm import process_kept, reports_sampling_masks, shut_down
from stages.models.adapter_files import AdapterInfo, save_adapter
from stages.models.roles import Role, Roles
from stages.sampling.decoding import Response
from stages.sampling.vllm_checks import SHARE, check_memory, set_defaults

CARD = "The adapter of a role, as vLLM samples with it until the role trains further.\n"


class VllmEngine:
    """Samples from vLLM's copy of the base, with a role's adapter beside it. A `RolloutEngine`."""

    def __init__(
        self, roles: Roles, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, rollout: Rollout
    ) -> None:
        """Start vLLM on the device of this rank. It sleeps, if it can, until it samples.

        Raises:
            UserError: `rollout.vllm` asks for more memory than is free, or vLLM does not support the base.
        """
        set_defaults()
        from vllm.platforms import current_platform  # an optional extra

        check_memory(rollout.vllm.gpu_memory_utilization, ranks.device)
        self._rollout, self._end, self._device = rollout, tokenizer.eos_token_id, ranks.device
        self._sleeps: bool = current_platform.is_sleep_mode_available()
        # Without masks, the likeliest tokens are reported. The others of them have probability 0.
        self._masks = rollout.truncates and reports_sampling_masks()
        self._candidates = 0 if self._masks or rollout.top_k is None else min(rollout.top_k, roles.vocabulary)
        with process_kept(ranks.device), _refusals(), ExitStack() as undo:
            self._llm = self._start(roles)
            # Else vLLM stops when it is collected, and destroys the process group then.
            undo.callback(shut_down, self._llm)
            self._probe()
            self._sleep()
            undo.pop_all()
        self._adapters = Adapters(roles, tokenizer)

    def _start(self, roles: Roles) -> Any:
        """vLLM with the base of `roles`."""
        from vllm import LLM

        base, rollout = roles.causal, self._rollout
        quantized = any(isinstance(module, Linear4bit) for module in base.modules())
        return LLM(
            base.name_or_path,
            revision=commit_hash(base),
            dtype=str(roles.dtype).removeprefix("torch."),
            quantization="bitsandbytes" if quantized else None,
            enable_lora=True,
            max_lora_rank=vllm_lora_rank(roles.lora_rank),
            max_model_len=-1,  # as long as memory allows
            max_num_seqs=rollout.batch_size,
            max_logprobs=self._candidates,
            gpu_memory_utilization=rollout.vllm.gpu_memory_utilization,
            enforce_eager=rollout.vllm.enforce_eager,
            enable_sleep_mode=self._sleeps,
            use_tqdm_on_load=False,
            skip_tokenizer_init=True,  # prompts and responses are token ids
            # The ranks exist already. vLLM joins their process group; each rank has the whole model.
            distributed_executor_backend="external_launcher",
            seed=0,  # required by that backend; requests have their own seeds
            logprobs_mode="processed_logprobs",  # after temperature, top-k and top-p
            return_sampling_mask=self._masks,
        )

    def _probe(self) -> None:
        """Sample one token. Some kernels refuse a base only when they run."""
        from vllm import SamplingParams

        one = SamplingParams(max_tokens=1, top_k=1, detokenize=False)
        self._llm.generate([{"prompt_token_ids": [self._end]}], [one], lora_request=None, use_tqdm=False)

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
        with process_kept(self._device), self._awake():
            outputs = self._llm.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts],
                [self._sampling(seed) for seed in seeds],
                lora_request=self._request(role),
                use_tqdm=False,
            )
        advance(len(outputs))
        return [self._response(output.outputs[0]) for output in outputs]

    def close(self) -> None:
        """Stop vLLM, free its memory and delete the adapters' folders.

        The process group stays, because training uses it.
        """
        with process_kept(self._device):
            shut_down(self._llm)
        del self._llm
        self._adapters.close()
        gc.collect()
        torch.cuda.empty_cache()

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Take back the memory that vLLM left to training, and leave it again."""
        if self._sleeps:
            torch.cuda.empty_cache()
            self._llm.wake_up()
        yield
        self._sleep()

    def _sleep(self) -> None:
        """Move vLLM's weights to the CPU's memory and free its cache, on platforms that support it."""
        if self._sleeps:
            self._llm.sleep(level=1)

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
            logprobs=self._candidates,  # beside that of the sampled token
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

    def _response(self, completion: Any) -> Response:
        ids = list(completion.token_ids)
        pairs = list(zip(ids, completion.logprobs, strict=True))
        logprobs = [candidates[token].logprob for token, candidates in pairs]
        if not self._rollout.truncates:
            return Response(ids, logprobs)
        supports = completion.sampling_mask.token_ids if self._masks else [_possible(c) for _, c in pairs]
        return Response(ids, logprobs, [np.array(allowed, dtype=np.int32) for allowed in supports])

    def _check_length(self, longest: int) -> None:
        """Raise UserError if vLLM would silently cut a response short of `max_new_tokens`."""
        share, capacity = self._rollout.vllm.gpu_memory_utilization, self._llm.model_config.max_model_len
        if longest > capacity:
            raise UserError(
                f"{SHARE}: {share:g} of memory holds {capacity} tokens of a prompt and its response, and "
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


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what vLLM says of a base that it does not support into a UserError."""
    try:
        yield
    except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"rollout.engine: vllm does not start with this base: {reason:.400}. "
            "Choose engine auto, or change what it names."
        ) from error


def _possible(candidates: Mapping[int, Any]) -> list[int]:
    """The tokens that top-k and top-p left, of those whose log-probabilities vLLM reports."""
    return [token for token, candidate in candidates.items() if candidate.logprob > -math.inf]
