"""The DeepSpeed JSON that an experiment names: ZeRO stage, offloading, communication."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from configs.errors import UserError

RESERVED = {
    "train_batch_size": "<stage>.batch_size",
    "train_micro_batch_size_per_gpu": "<stage>.micro_batch_size",
    "gradient_accumulation_steps": "<stage>.micro_batch_size",
    "gradient_clipping": "<stage>.max_grad_norm",
    "optimizer": "<stage>.learning_rate",
    "scheduler": "<stage>.scheduler",
    "fp16": "base.compute_dtype",
    "bf16": "base.compute_dtype",
}


def read_zero(path: Path) -> dict[str, Any]:
    """The DeepSpeed JSON, whose batch, optimizer and precision keys the experiment sets itself.

    Raises:
        UserError: the file is missing, is no JSON object, or sets a reserved key.
    """
    try:
        options = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"deepspeed.config: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(options, dict):
        raise UserError(f"{path}: must hold a JSON object, as configs/deepspeed/zero2.json does")
    taken = [
        f"{path}: {key}: set {RESERVED[key]} in the experiment instead" for key in options if key in RESERVED
    ]
    if taken:
        raise UserError("\n".join(taken))
    return options
