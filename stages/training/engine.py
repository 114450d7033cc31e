"""DeepSpeed under the recipes: optimizer, schedule, and state that is free of the number of ranks.

Gradients are accumulated by the caller: any number of `backward` calls, then one `step`. Losses are
normalised by the global batch, so a rank's loss is scaled by the number of ranks before DeepSpeed
averages gradients over them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils import groups
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _set_pg_timeout
from transformers import get_scheduler

from configs.deepspeed_json import read_zero
from configs.errors import UserError
from configs.schema import DeepSpeed, Training
from stages.distributed.ranks import Ranks
from stages.distributed.zero3 import gather_again
from stages.models.role_models import RoleModels, trainable

MOMENTS = ("exp_avg", "exp_avg_sq")
KEPT = "kept/"


class Engine:
    """A DeepSpeed engine over roles, on one base or two.

    The learning rate of a step is a function of the step (transformers' schedules), as is every random
    number, so a checkpoint needs parameters, Adam's moments and the step, and nothing else.
    """

    def __init__(
        self,
        roles: RoleModels,
        learning_rates: Mapping[str, float],
        training: Training,
        total_steps: int,
        config: DeepSpeed,
        ranks: Ranks,
    ) -> None:
        """Wrap `roles` for training.

        Args:
            learning_rates: peak learning rate of each role to train.
            total_steps: optimizer steps of the whole stage, for the schedule.

        Raises:
            UserError: the global batch does not divide by the number of ranks, or the DeepSpeed JSON
                cannot serve (see `deepspeed_options`).
        """
        if training.batch_size % ranks.world:
            raise UserError(
                f"batch_size: {training.batch_size} is not divisible by the number of ranks, {ranks.world}. "
                "Change batch_size or --num_accelerators."
            )
        self.roles, self.ranks = roles, ranks
        self.parameters = trainable(roles, learning_rates)
        self.grad_norm = 0.0
        self.steps = 0
        self.skipped, self.skipped_in_row = 0, 0
        self.begins: dict[str, float] = {}  # Adam's step after which a role moves, if not from the first
        self.kept: dict[str, Tensor] = {}  # what else a recipe wants in its checkpoints, whole and on the CPU
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(trainable(roles, [role]).values()), "lr": rate}
                for role, rate in learning_rates.items()
            ],
            betas=(training.adam_beta1, training.adam_beta2),
            eps=training.adam_epsilon,
            weight_decay=training.weight_decay,
        )
        self._peaks = dict(learning_rates)
        self._factor = _schedule(training, total_steps)
        options = deepspeed_options(config)
        self.zero_stage: int = options.get("zero_optimization", {}).get("stage", 0)
        if self.zero_stage == 0:
            # Without ZeRO, DeepSpeed clips but keeps the norm to itself.
            self.optimizer.register_step_pre_hook(lambda *_: self._clip(training.max_grad_norm))
        roles.train()  # PEFT leaves what it loads in eval mode: no dropout, no gradient checkpointing
        self.deepspeed = deepspeed.initialize(
            model=roles,
            optimizer=self.optimizer,
            config=options
            | {
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "managed_gradient_accumulation": False,
                "gradient_clipping": training.max_grad_norm if self.zero_stage else 0.0,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": None,
            },
        )[0]
        if self.zero_stage == 3:
            gather_again(roles)
        # DeepSpeed's own group has torch's default, whatever was given to it at the start.
        _set_pg_timeout(timedelta(minutes=config.timeout_minutes), groups._get_data_parallel_group())
        self._start_moments()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`Roles.forward` for training."""
        return self.deepspeed(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of this rank's part of the global loss.

        Callers let go of the loss, and of what it was computed from, before the next forward: the nodes of a
        graph lie between its large blocks and keep an allocator from using those again, which cost a CPU
        1.4 GiB of 5 in SFT on a 135M base with two micro-batches.
        """
        self.deepspeed.backward(loss * self.ranks.world, scale_wrt_gas=False)

    def step(self) -> None:
        """Average gradients over ranks, clip by global norm, update, and clear the gradients.

        Where the norm is not finite, parameters and moments stay as they are, and the step is counted in
        `skipped`; the schedule goes on.
        """
        for group, role in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = self.learning_rate(role) * self._adam_correction(role)
        self.deepspeed.step()
        self.steps += 1
        if self.zero_stage:
            # DeepSpeed leaves the step out itself, and gives infinity for a norm that is not finite.
            self.grad_norm = float(self.deepspeed.get_global_grad_norm())
        lost = not math.isfinite(self.grad_norm)
        self.skipped += lost
        self.skipped_in_row = self.skipped_in_row + 1 if lost else 0
        if self.zero_stage == 3:
            # ZeRO-3 overwrites its gradient buffers only in the first backward of a step; a role whose
            # turn comes in a later backward would be added to what the step before left there.
            self.deepspeed.optimizer.grad_partitions_flat_buffer.zero_()

    def learning_rate(self, role: str) -> float:
        """The learning rate of a role at the next step; 0 before it `begins`."""
        return self._peaks[role] * self._factor(self.steps) * (self.adam_steps >= self.begins.get(role, 0))

    def _adam_correction(self, role: str) -> float:
        """What takes the steps before a role `begins`, with gradients of 0, out of Adam's bias correction.

        Kingma and Ba 2015, section 2: after t steps the rate is times sqrt(1 - beta2^t) / (1 - beta1^t).
        """
        beta1, beta2 = self.optimizer.defaults["betas"]

        def correction(steps: int) -> float:
            return math.sqrt(1 - beta2**steps) / (1 - beta1**steps)

        idle, counted = self.begins.get(role, 0), self.adam_steps + 1
        return correction(counted - int(idle)) / correction(counted) if 0 < idle < counted else 1.0

    @property
    def adam_steps(self) -> int:
        """The steps that were not left out."""
        return self.steps - self.skipped

    def _clip(self, max_norm: float) -> None:
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), max_norm or float("inf"))
        self.grad_norm = float(norm)
        if not math.isfinite(self.grad_norm):
            for parameter in self.parameters.values():
                parameter.grad = None  # AdamW passes over it

    @contextlib.contextmanager
    def whole(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Within, `parameters` are whole on every rank, ZeRO-3 or not; for reading only."""
        if self.zero_stage == 3:
            with deepspeed.zero.GatheredParameters(list(parameters)):
                yield
        else:
            yield

    def role_tensors(self, role: str) -> dict[str, Tensor]:
        """Adapter and head of `role` as whole CPU tensors, by parameter name. Every rank must call."""
        parameters = self.roles.role_parameters(role)
        with self.whole(parameters.values()):
            return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """Trained parameters, Adam's moments and `kept` as whole CPU tensors. Every rank must call."""
        with self.whole(self.parameters.values()):
            tensors = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                tensors[f"{moment}/{name}"] = self._moment(parameter, moment).cpu()
        return tensors | {f"{KEPT}{name}": tensor.clone() for name, tensor in self.kept.items()}

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Make `tensors` the values of parameters, when training is over. Every rank must call."""
        parameters = [self.parameters[name] for name in tensors]
        gathered = deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)
        with gathered if self.zero_stage == 3 else contextlib.nullcontext():
            for parameter, tensor in zip(parameters, tensors.values(), strict=True):
                parameter.copy_(tensor)

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self.zero_stage == 0:
            return self.optimizer.state[parameter][moment].clone()
        return deepspeed.utils.safe_get_full_optimizer_state(parameter, moment).clone()

    def load_state(
        self, tensors: Mapping[str, Tensor], steps: int, skipped: int = 0, skipped_in_row: int = 0
    ) -> None:
        """Go on after step `steps` with Adam's moments from `state()`. Every rank must call.

        The parameters themselves are loaded before the engine is built (`load_parameters`).
        """
        self.steps, self.skipped, self.skipped_in_row = steps, skipped, skipped_in_row
        self.kept = {
            name.removeprefix(KEPT): tensor for name, tensor in tensors.items() if name.startswith(KEPT)
        }
        for state in self.optimizer.state.values():
            state["step"].fill_(self.adam_steps)  # Adam's own count, for its bias correction
        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                self._set_moment(parameter, moment, tensors[f"{moment}/{name}"].to(parameter.device))

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        if self.zero_stage == 0:
            self.optimizer.state[parameter][moment].copy_(value)
        elif self.zero_stage == 3:
            # safe_set_full_optimizer_state fails where the ranks do not divide the number of elements.
            size = -(-value.numel() // self.ranks.world)
            padded = nn.functional.pad(value.flatten(), (0, size * self.ranks.world - value.numel()))
            mine = padded[size * self.ranks.rank :][:size]
            deepspeed.utils.safe_set_local_optimizer_state(parameter, mine, moment)
        else:
            deepspeed.utils.safe_set_full_optimizer_state(parameter, value, moment)

    def _start_moments(self) -> None:
        """Give AdamW its moments now rather than at its first step.

        DeepSpeed ties parameters to their slices of ZeRO-2's flat moments once, after the first group has
        stepped; groups that have none by then would stay untied.
        """
        for flat in self._optimized():
            self.optimizer.state[flat] = {"step": torch.tensor(0.0)} | {
                moment: torch.zeros_like(flat) for moment in MOMENTS
            }
        if self.zero_stage in (1, 2):
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def _optimized(self) -> list[Tensor]:
        """The tensors that AdamW itself updates: the parameters, or ZeRO's flat partitions of them."""
        if self.zero_stage == 3:
            return list(self.deepspeed.optimizer.fp32_partitioned_groups_flat)
        return [tensor for group in self.optimizer.param_groups for tensor in group["params"]]


def load_parameters(roles: RoleModels, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Put the trained parameters of a checkpoint into the roles `names`, before an engine is built.

    Raises:
        UserError: the checkpoint is whole, but not one of these roles.
    """
    with torch.no_grad():
        for name, parameter in trainable(roles, names).items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise UserError(
                    f"the newest checkpoint is of another adapter or base: {name} is not in it, or not of "
                    "this shape. Put the stage's own checkpoint back, or start over with --fresh."
                )
            parameter.copy_(tensors[name])


def _schedule(training: Training, total_steps: int) -> Any:
    """Factor on the learning rate as a function of the step, from transformers' schedules."""
    name = "constant_with_warmup" if training.scheduler == "constant" else training.scheduler
    scheduler = get_scheduler(
        name,
        torch.optim.SGD([torch.zeros(1)], lr=1.0),
        num_warmup_steps=round(training.warmup_ratio * total_steps),
        num_training_steps=total_steps,
    )
    return scheduler.lr_lambdas[0]


def deepspeed_options(config: DeepSpeed) -> dict[str, Any]:
    """The DeepSpeed JSON that the experiment names.

    Raises:
        UserError: it cannot serve, for our own reasons (see `read_zero`) or for DeepSpeed's.
    """
    path = Path(config.config)
    options = read_zero(path)
    try:
        DeepSpeedZeroConfig(**options.get("zero_optimization", {}))
    except ValidationError as failure:
        faults = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in failure.errors()]
        lines = [f"{path}: zero_optimization.{fault}; correct it or leave it out" for fault in faults]
        raise UserError("\n".join(lines)) from failure
    return options
