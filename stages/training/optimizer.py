"""The optimizer, its schedule, and the DeepSpeed options of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError
from transformers import get_scheduler

from configs.deepspeed_json import read_deepspeed_json
from configs.errors import UserError
from configs.schema import DeepSpeed, Training
from stages.models.role_models import RoleModels, trainable


def adamw(models: RoleModels, learning_rates: Mapping[str, float], training: Training) -> torch.optim.AdamW:
    """AdamW with a parameter group per role, in the order of `learning_rates`."""
    return torch.optim.AdamW(
        [
            {"params": list(trainable(models, [role]).values()), "lr": rate}
            for role, rate in learning_rates.items()
        ],
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
    )


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
