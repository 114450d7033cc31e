"""An estimate of the memory of a rank in each phase of a stage, and of the stage's disk space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from configs.deepspeed_json import read_deepspeed_json, zero_stage
from configs.errors import UserError
from configs.schema import Base, Experiment, Rollout, Stage
from data.storage.adapter_names import ADAPTER_FILE
from pipeline.planning import memory
from pipeline.planning.batches import completions_of, training
from pipeline.planning.memory import FP32, BaseShape, Precision
from pipeline.planning.safetensors_headers import stored_tensors

MIB = 2**20
# Measured: what a process takes before it loads a base (on a GPU, the CUDA context).
LIBRARIES, CUDA_CONTEXT = 610 * MIB, 550 * MIB
# Free memory between tensors, in shares of the activations. Measured on CPUs (docs/reference/memory.md), and
# assumed for GPUs, where torch rounds blocks up.
CPU_WASTE, GPU_WASTE = 0.25, 0.1
# The same on a CPU after a merge, in shares of the merged layers on the heap, and with checkpointing, in
# layers. Fitted to the table of docs/reference/memory.md.
MERGE_WASTE, RECOMPUTED_LAYERS = 0.75, 7
READER = 135_000_000 * FP32  # the model with which the labeller `warm_ending` reads answers, on the CPU
MARGIN = 2  # of `stages.sampling.merged_model`: `auto` samples on a merged copy if this many fit

FILES = "files of the base"  # mapped into RAM; the kernel can drop them

Parts = dict[str, int]


@dataclass(frozen=True)
class Rank:
    """What one rank runs on.

    Attributes:
        gpu: it has one; else its memory is the machine's RAM.
        bf16: the hardware multiplies bf16, which `base.compute_dtype: auto` then chooses.
        ranks: number of ranks of the whole run.
        available: bytes that this rank can have; None if unknown.
    """

    gpu: bool
    bf16: bool
    ranks: int = 1
    available: int | None = None


@dataclass(frozen=True)
class StageMemory:
    """The estimate of one stage.

    Attributes:
        phases: bytes of each part, by phase; a part that lasts is in every phase.
        disk: bytes of its checkpoints and adapters.
        largest_base: key of the base whose activations are the most.
    """

    stage: Stage
    phases: Mapping[str, Parts]
    disk: int
    largest_base: str = "base"

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak(self) -> int:
        """Bytes of the largest phase."""
        return sum(self.phases[self.peak_phase].values())

    @property
    def needed(self) -> StageMemory:
        """The same without mapped files: what must be free."""
        phases = {
            phase: {part: size for part, size in parts.items() if part != FILES}
            for phase, parts in self.phases.items()
        }
        return replace(self, phases=phases)

    def largest_parts(self, count: int) -> list[tuple[str, int]]:
        """The largest parts of the peak, largest first."""
        parts = self.phases[self.peak_phase]
        return sorted(parts.items(), key=lambda part: -part[1])[:count]


def estimate(config: Experiment, stage: Stage, shapes: Mapping[str, BaseShape], rank: Rank) -> StageMemory:
    """The memory of `stage`; `shapes` by the key of their base, `base` and `rm.base`."""
    return _Estimator(config, stage, shapes, rank).estimate()


class _Held(NamedTuple):
    """A base as the stage holds it."""

    base: Base
    shape: BaseShape
    precision: Precision


class _Estimator:
    """The sizes of one stage, from which its phases are added up."""

    def __init__(self, config: Experiment, stage: Stage, shapes: Mapping[str, BaseShape], rank: Rank) -> None:
        self.config, self.stage, self.rank = config, stage, rank
        self.bases = [_Held(base, shapes[base.key], self._precision(base)) for base in config.bases(stage)]
        _, self.policy, self.policy_precision = self.bases[0]
        _, self.scorer, self.scorer_precision = self.bases[-1]  # the reward model's base, and the critic's
        self.zero = self._zero_stage()
        self.sft_adapter = self._given("sft") or self._adapter_parameters(self.policy)
        self.adapter = (self._given("ppo") if stage == "ppo" else None) or self.sft_adapter
        new = self._adapter_parameters(self.scorer) if config.rm.base else self.sft_adapter
        self.scorer_adapter = self._given("rm") or new
        self.members = config.rm.members

    def _precision(self, base: Base) -> Precision:
        narrow = base.compute_dtype == "bfloat16" or (base.compute_dtype == "auto" and self.rank.bf16)
        return Precision(base.quantization, 2 if narrow else 4)

    def _zero_stage(self) -> int:
        with suppress(UserError):  # a check tells it
            return zero_stage(read_deepspeed_json(Path(self.config.deepspeed.config)))
        return 0

    def _given(self, stage: Stage) -> int | None:
        """Parameters of the adapter in `STAGE.from`; None without one, or if a check says why it is none."""
        if stage not in self.config.starts:
            return None
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            tensors = stored_tensors([Path(self.config.starts[stage]) / ADAPTER_FILE])
            return sum(math.prod(shape) for _, (shape, _) in tensors)
        return None

    def _adapter_parameters(self, shape: BaseShape) -> int:
        adapter = self.config.adapter
        named = None if adapter.target_modules == "all-linear" else tuple(adapter.target_modules)
        return memory.adapter_parameters(shape, adapter.r, named, dora=adapter.dora)

    def estimate(self) -> StageMemory:
        resident = self._resident()
        phases = {"loading": self._loading()}
        if self.stage != "best":
            phases["training"] = resident | self._training()
        if self._rollout() is not None:
            phases["sampling"] = resident | self._sampling(resident)
        return StageMemory(self.stage, phases, self._disk(), self._largest().base.key)

    # Parts that last

    def _process(self) -> int:
        return CUDA_CONTEXT if self.rank.gpu else LIBRARIES

    def _base(self) -> int:
        whole = self._whole_bases()
        return whole // self.rank.ranks if self.zero == 3 else whole

    def _whole_bases(self) -> int:
        return sum(memory.base_bytes(one.shape, one.precision) for one in self.bases)

    def _loading(self) -> Parts:
        # A GPU gets one weight after another. On a CPU, the mapped files count as the process's memory.
        files = (
            0 if self.rank.gpu else max(memory.loading_bytes(one.shape, one.precision) for one in self.bases)
        )
        return {"libraries": self._process(), "base": self._whole_bases(), FILES: files}

    def _resident(self) -> Parts:
        trained, frozen = self._roles()
        parts = {
            "libraries": self._process(),
            "base": self._base(),
            "adapters": FP32 * (trained + frozen),
            "gradients and Adam": memory.optimizer_bytes(trained, self.zero, self.rank.ranks),
        }
        if "warm_ending" in self.config.labellers([self.stage]).values() and not self.rank.gpu:
            parts["reader of warm_ending"] = READER
        return parts

    def _roles(self) -> tuple[int, int]:
        """Parameters of the adapters that train, and of those that do not."""
        if self.stage == "sft":
            return self.adapter, 0
        if self.stage == "rm":
            return self.members * self.scorer_adapter, self.adapter
        if self.stage == "best":
            return 0, self.adapter + self.members * self.scorer_adapter
        ppo = self.config.ppo
        reference = self.sft_adapter if ppo.reference == "sft" else self.adapter + self.sft_adapter
        critic = self.scorer_adapter if ppo.critic == "adapter" else 0
        reward = self.members * self.scorer_adapter if ppo.uses_reward_model else 0
        return self.adapter + critic, reference + reward

    # Training

    def _training(self) -> Parts:
        """The largest forward and backward: of the reward model in `rm`, else of the policy or the critic."""
        sequences, length = self._batch()
        activations = self._activations(self._largest())
        parts = {"activations": activations}
        if self.stage != "rm":
            tokens = sequences * (self.config.ppo.rollout.max_new_tokens if self.stage == "ppo" else length)
            tiled = self.stage == "sft" or not self.config.ppo.rollout.truncates
            compute = self.policy_precision.compute
            parts["logits"] = memory.logit_bytes(self.policy, compute, tokens, tiled=tiled, gpu=self.rank.gpu)
        waste = round((GPU_WASTE if self.rank.gpu else CPU_WASTE) * activations)
        if not self.rank.gpu:
            waste = max(waste, RECOMPUTED_LAYERS * max(map(self._recomputed, self._trained())))
        return parts | {"allocator": waste}

    def _trained(self) -> list[_Held]:
        """The bases through which the stage trains."""
        return {"sft": self.bases[:1], "rm": self.bases[-1:]}.get(self.stage, self.bases)

    def _largest(self) -> _Held:
        """The base whose activations are the most."""
        trained = self._trained()
        return max(trained, key=self._activations) if self.stage != "best" else trained[0]

    def _activations(self, one: _Held) -> int:
        rank, checkpointing = self.config.adapter.r, one.base.gradient_checkpointing
        return memory.activation_bytes(one.shape, one.precision.compute, rank, self._batch(), checkpointing)

    def _recomputed(self, one: _Held) -> int:
        """Bytes of the layer that a backward recomputes."""
        if not one.base.gradient_checkpointing:
            return 0
        return memory.layer_bytes(one.shape, one.precision.compute, self.config.adapter.r, self._batch())

    def _batch(self) -> tuple[int, int]:
        """Rows of one forward, and tokens of each at most."""
        config, section = self.config, training(self.config, self.stage)
        share = max(1, section.batch_size // self.rank.ranks)
        if self.stage == "sft":
            return min(share, section.micro_batch_size), config.data.max_length
        if self.stage == "rm":
            completions = completions_of(config)
            rows = min(share, max(1, section.micro_batch_size // completions))
            # A prompt is forwarded once for all of its completions.
            prompt = config.data.max_prompt_length
            return rows, prompt + completions * (self._longest_completion())
        minibatch = max(1, share // config.ppo.minibatches)
        length = config.data.max_prompt_length + config.ppo.rollout.max_new_tokens
        return min(minibatch, section.micro_batch_size), length

    def _longest_completion(self) -> int:
        data, rankings = self.config.data, self.config.rm.rankings
        if rankings.labeller == "file":
            return data.max_length - data.max_prompt_length
        return rankings.rollout.max_new_tokens

    # Sampling

    def _rollout(self) -> Rollout | None:
        return self.config.rollouts[self.stage][1] if self.stage in self.config.rollouts else None

    def _sampling(self, resident: Parts) -> Parts:
        rollout = self._rollout()
        assert rollout is not None
        shape, precision = self.policy, self.policy_precision
        prompt, b = self.config.data.max_prompt_length, precision.compute
        if rollout.engine == "vllm":
            share = round(rollout.vllm.gpu_memory_utilization * (self.rank.available or 0))
            return {"vLLM": share}
        rows = min(rollout.batch_size, self._answers())
        length = prompt + rollout.max_new_tokens
        parts = {
            "KV cache": memory.cache_bytes(shape, b, rows, length),
            "one step": memory.sampling_bytes(shape, b, rows, prompt),
        }
        packs = not self.rank.gpu
        copy = memory.merged_bytes(shape, precision, packs=packs)
        if self._merges(rollout, copy, resident):
            parts["merged copy"] = copy
            parts["merging"] = memory.merging_bytes(shape, b, packs=packs)
            if not self.rank.gpu:
                parts["allocator"] = round(MERGE_WASTE * memory.merged_on_the_heap(shape, b))
        return parts

    def _answers(self) -> int:
        """Sequences that a rank samples at once, if the batch of the rollout has room for all."""
        if self.stage == "ppo":
            return max(1, self.config.ppo.batch_size // self.rank.ranks)
        if self.stage == "rm" and self.config.rm.rankings.labeller == "file":
            return max(1, -(-self.config.rm.normalization_prompts // self.rank.ranks))
        return 2**20

    def _merges(self, rollout: Rollout, copy: int, resident: Parts) -> bool:
        if rollout.engine != "auto":
            return rollout.engine in ("merged", "continuous")
        if self.policy_precision.quantization == "int8":
            return False
        free = None if self.rank.available is None else self.rank.available - sum(resident.values())
        return free is None or MARGIN * copy <= free

    # Disk

    def _disk(self) -> int:
        """Checkpoints, which hold parameters and two moments, and adapters.

        One checkpoint more is there while it is written, and the best one stays if anything is held out.
        """
        if self.stage == "best":
            return 0
        trained, _ = self._roles()
        best = any(source.held_out for source in self.config.data.sources(self.stage))
        copies = training(self.config, self.stage).keep_checkpoints + 1 + best
        average = self.stage == "ppo" and self.config.ppo.ema_decay is not None
        adapter = self.adapter if self.stage != "rm" else self.members * self.scorer_adapter
        return FP32 * (3 * trained * copies + adapter * (2 if average else 1))
