"""DeepSpeed under the recipes: optimizer, schedule, and state that is free of the number of ranks.

Gradients are accumulated by the caller: any number of `backward` calls, then one `step`. Losses are
normalised by the global batch, so a rank's loss is scaled by the number of ranks before DeepSpeed
averages gradients over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from configs.deepspeed_json import zero_stage
from configs.errors import UserError
from configs.schema import DeepSpeed, Training
from stages.distributed.ranks import Ranks
from stages.distributed.zero3 import gather_again_in_backward, whole, whole_for_writing
from stages.internals.deepspeed import (
    clear_gradient_shards,
    data_parallel_group,
    flat_parameters,
    link_moments,
)
from stages.internals.torch import set_timeout
from stages.models.queries import ScalarQuery, TokenQuery
from stages.models.role_models import RoleModels, trainable
from stages.training.checkpoint import State
from stages.training.optimizer import adamw, deepspeed_options, schedule

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Counters:
    """What the engine remembers beside tensors.

    Attributes:
        steps: optimizer steps done, skipped ones included.
        skipped: steps that changed nothing, because the norm of the gradient was not finite.
        skipped_in_row: skipped steps since the last one that was not.
        held: roles whose learning rate is 0 for now.
        released_at: for each released role, the count of applied steps at its release.
    """

    steps: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    held: list[str] = field(default_factory=list)
    released_at: dict[str, int] = field(default_factory=dict)

    @property
    def applied(self) -> int:
        """Steps that were not skipped; Adam's own count."""
        return self.steps - self.skipped


class Engine:
    """A DeepSpeed engine over roles, on one base or two.

    The learning rate is a function of the step (transformers' schedules), and so is every random number. A
    checkpoint therefore needs parameters, Adam's moments and `Counters`, and nothing else.
    """

    def __init__(
        self,
        models: RoleModels,
        learning_rates: Mapping[str, float],
        training: Training,
        total_steps: int,
        config: DeepSpeed,
        ranks: Ranks,
    ) -> None:
        """Wrap `models` for training.

        Args:
            learning_rates: peak learning rate of each role to train.
            total_steps: optimizer steps of the whole stage, for the schedule.

        Raises:
            UserError: the DeepSpeed JSON is not usable (see `deepspeed_options`).
        """
        self.models, self.ranks = models, ranks
        self.parameters = trainable(models, learning_rates)
        self.grad_norm = 0.0
        self.counters = Counters()
        self.optimizer = adamw(models, learning_rates, training)
        self._peaks = dict(learning_rates)
        self._clipped = [list(self.parameters.values())]
        self._factor = schedule(training, total_steps)
        options = deepspeed_options(config)
        self.zero_stage = zero_stage(options)
        if self.zero_stage == 0:
            # Without ZeRO, DeepSpeed clips but keeps the norm to itself.
            self.optimizer.register_step_pre_hook(lambda *_: self._clip(training.max_grad_norm))
        models.train()  # PEFT leaves what it loads in eval mode: no dropout, no gradient checkpointing
        self.deepspeed = _initialize(models, self.optimizer, options, training)
        if self.zero_stage == 3:
            gather_again_in_backward(models)
        # DeepSpeed's own group has torch's default timeout, whatever the job's group was given.
        set_timeout(data_parallel_group(), timedelta(minutes=config.timeout_minutes))
        self._start_moments()

    def __call__(self, query: ScalarQuery | TokenQuery) -> Any:
        """`Roles.forward` for training."""
        # By keyword: ZeRO-3's hooks search positional arguments for tensors with gradients, and warn about a
        # class that they cannot search. A query has none.
        return self.deepspeed(query=query)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of this rank's part of the global loss.

        Drop the loss, and what it was computed from, before the next forward. Nodes of a graph lie between
        its large blocks and keep an allocator from reusing those: on a CPU, SFT on a 135M base with two
        micro-batches took 1.4 GiB of 5 more.
        """
        self.deepspeed.backward(loss * self.ranks.world, scale_wrt_gas=False)

    def step(self) -> None:
        """Average gradients over ranks, clip by global norm, update, and clear the gradients.

        If the norm is not finite, parameters and moments stay as they are, and the step counts as skipped.
        The schedule advances all the same.
        """
        for group in self.optimizer.param_groups:
            role, factor = group["role"], group["factor"]
            group["lr"] = factor * self.learning_rate(role) * self._bias_correction(role)
        self.deepspeed.step()
        if self.zero_stage:
            # DeepSpeed skips the step itself, and reports infinity for a norm that is not finite.
            self.grad_norm = float(self.deepspeed.get_global_grad_norm())
        skipped = not math.isfinite(self.grad_norm)
        self.counters.steps += 1
        self.counters.skipped += skipped
        self.counters.skipped_in_row = self.counters.skipped_in_row + 1 if skipped else 0
        if self.zero_stage == 3:
            clear_gradient_shards(self.deepspeed)

    def clip_roles_apart(self) -> None:
        """Clip the gradient of each role by its own norm, as if it trained alone. ZeRO clips by one norm."""
        self._clipped = [list(trainable(self.models, [role]).values()) for role in self._peaks]

    def hold(self, role: str) -> None:
        """Set the learning rate of `role` to 0 until `release`. Its gradients must be 0, too."""
        if role not in self.counters.held:
            self.counters.held.append(role)

    def release(self, role: str) -> None:
        """Train a held `role` again. Adam's bias correction does not count the steps before."""
        if role in self.counters.held:
            self.counters.held.remove(role)
            self.counters.released_at[role] = self.counters.applied

    def is_held(self, role: str) -> bool:
        return role in self.counters.held

    def learning_rate(self, role: str) -> float:
        """The learning rate of a role at the next step; 0 while the role is held."""
        return 0.0 if self.is_held(role) else self._peaks[role] * self._factor(self.counters.steps)

    def _bias_correction(self, role: str) -> float:
        """Factor on the learning rate that takes the steps before `release` out of Adam's bias correction.

        Kingma and Ba 2015, section 2: after t steps the rate is times sqrt(1 - beta2^t) / (1 - beta1^t).
        """
        beta1, beta2 = self.optimizer.defaults["betas"]

        def correction(steps: int) -> float:
            return math.sqrt(1 - beta2**steps) / (1 - beta1**steps)

        idle, steps = self.counters.released_at.get(role, 0), self.counters.applied + 1
        return correction(steps - idle) / correction(steps) if idle else 1.0

    def _clip(self, max_norm: float) -> None:
        norms = [nn.utils.clip_grad_norm_(part, max_norm or float("inf")) for part in self._clipped]
        self.grad_norm = float(norms[0] if len(norms) == 1 else torch.stack(norms).norm())
        if not math.isfinite(self.grad_norm):
            for parameter in self.parameters.values():
                parameter.grad = None  # AdamW passes over it

    def role_tensors(self, role: str) -> dict[str, Tensor]:
        """Adapter and head of `role` as whole CPU tensors, by parameter name. Every rank must call."""
        return self._on_cpu(self.models.role_parameters(role))

    def not_finite(self) -> list[str]:
        """Names of trained parameters with a value that is not finite. Every rank must call."""
        return [name for name, tensor in self._on_cpu(self.parameters).items() if not tensor.isfinite().all()]

    def _on_cpu(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        with whole(*parameters.values()):
            return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def set_parameters(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace parameters by `tensors`; Adam's moments stay. Every rank must call."""
        parameters = [self.parameters[name] for name in tensors]
        with whole_for_writing(*parameters):
            for parameter, tensor in zip(parameters, tensors.values(), strict=True):
                parameter.copy_(tensor)

    def state_dict(self) -> State:
        """Counters, trained parameters and Adam's moments. Every rank must call."""
        tensors = self._on_cpu(self.parameters)
        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                tensors[f"{moment}/{name}"] = self._moment(parameter, moment).cpu()
        return State(asdict(self.counters), tensors)

    def load_state_dict(self, state: State) -> None:
        """Resume with the counters and Adam's moments of `state`. Every rank must call.

        The parameters themselves are loaded before the engine is built (`load_parameters`).
        """
        self.counters = Counters(**state.values)
        for adam in self.optimizer.state.values():
            adam["step"].fill_(self.counters.applied)  # for its bias correction
        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                self._set_moment(parameter, moment, state.tensors[f"{moment}/{name}"].to(parameter.device))

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self.zero_stage == 0:
            return self.optimizer.state[parameter][moment].clone()
        return deepspeed.utils.safe_get_full_optimizer_state(parameter, moment).clone()

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
            link_moments(self.deepspeed)

    def _optimized(self) -> list[Tensor]:
        """The tensors that AdamW itself updates: the parameters, or ZeRO's flat partitions of them."""
        if self.zero_stage == 3:
            return flat_parameters(self.deepspeed)
        return [tensor for group in self.optimizer.param_groups for tensor in group["params"]]


def load_parameters(models: RoleModels, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Load the trained parameters of a checkpoint into the roles `names`, before an engine is built.

    Raises:
        UserError: the checkpoint is whole, but belongs to other roles.
    """
    with torch.no_grad():
        for name, parameter in trainable(models, names).items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise UserError(
                    f"the newest checkpoint is of another adapter or base: {name} is not in it, or not of "
                    "this shape. Restore the stage's own checkpoint, or start over with --fresh."
                )
            parameter.copy_(tensors[name])


def _initialize(
    models: RoleModels, optimizer: torch.optim.Optimizer, options: Mapping[str, Any], training: Training
) -> Any:
    """DeepSpeed's engine; accumulation and batch sizes are the caller's."""
    own = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": training.max_grad_norm if zero_stage(options) else 0.0,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    return deepspeed.initialize(model=models, optimizer=optimizer, config={**options, **own})[0]
