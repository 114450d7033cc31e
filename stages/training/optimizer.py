"""The optimizer, its schedule, and the DeepSpeed options of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError
from torch import nn
from transformers import get_scheduler

from configs.deepspeed_json import read_deepspeed_json
from configs.errors import UserError
from configs.schema import DeepSpeed, Training
from stages.models.role_models import RoleModels, trainable


def adamw(models: RoleModels, learning_rates: Mapping[str, float], training: Training) -> torch.optim.AdamW:
    """AdamW with two parameter groups for each role: LoRA's B, and all else, which is A and the head.

    A group has two more keys: its `role`, and the `factor` on the role's rate, which for B is LoRA+'s ratio
    (Hayou et al. 2024, section 4). If the ratio is 1, a role has one group.
    """
    groups = [
        {"params": parameters, "lr": factor * rate, "role": str(role), "factor": factor}
        for role, rate in learning_rates.items()
        for factor, parameters in _by_factor(trainable(models, [role]), training.lora_plus_ratio).items()
    ]
    return torch.optim.AdamW(
        groups,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
    )


def _by_factor(named: Mapping[str, nn.Parameter], ratio: float) -> dict[float, list[nn.Parameter]]:
    """Parameters by the factor on their learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        groups.setdefault(ratio if "lora_B" in name else 1.0, []).append(parameter)
    return groups


def schedule(training: Training, total_steps: int) -> Callable[[int], float]:
    """Factor on the learning rate as a function of the step, from transformers' schedules."""
    name = "constant_with_warmup" if training.scheduler == "constant" else training.scheduler
    scheduler = get_scheduler(
        name,
        torch.optim.SGD([torch.zeros(1)], lr=1.0),
        num_warmup_steps=round(training.warmup_ratio * total_steps),
        num_training_steps=total_steps,
    )
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor


def deepspeed_options(config: DeepSpeed) -> dict[str, Any]:
    """The DeepSpeed JSON that the experiment names.

    Raises:
        UserError: the file is not usable, by the rules of `read_deepspeed_json` or by DeepSpeed's.
    """
    path = Path(config.config)
    options = read_deepspeed_json(path)
    try:
        DeepSpeedZeroConfig(**options.get("zero_optimization", {}))
    except ValidationError as failure:
        faults = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in failure.errors()]
        lines = [f"{path}: zero_optimization.{fault}; correct it or leave it out" for fault in faults]
        raise UserError("\n".join(lines)) from failure
    return options
