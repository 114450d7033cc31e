"""Read a DeepSpeed JSON. It holds ZeRO and its buffers; the experiment sets everything else."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.regular_file import read_regular_file
from configs.unique_keys import unique_keys

RESERVED = {
    "train_batch_size": "<stage>.batch_size",
    "train_micro_batch_size_per_gpu": "<stage>.micro_batch_size",
    "gradient_accumulation_steps": "<stage>.micro_batch_size",
    "gradient_clipping": "<stage>.max_grad_norm",
    "optimizer": "<stage>.learning_rate",
    "scheduler": "<stage>.scheduler",
    "fp16": "base.compute_dtype",
    "bf16": "base.compute_dtype",
    "amp": "base.compute_dtype",
    "torch_autocast": "base.compute_dtype",
    "steps_per_print": "<stage>.logging_steps",
}
BOOLEAN = ("zero_allow_untested_optimizer", "wall_clock_breakdown", "memory_breakdown")
DTYPES = ("fp32", "bf16", "fp16")  # of communication_data_type
MAX_BYTES, MOST_FAULTS = 2**20, 5
ZERO_SECTION = "zero_optimization"
SUPPORTED = (ZERO_SECTION, "communication_data_type", *BOOLEAN)  # DeepSpeed ignores what it does not know
EXAMPLE = f"{Path(__file__).parent}/deepspeed/zero2.json shows the form"


def read_deepspeed_json(path: Path) -> dict[str, Any]:
    """Return the options of a DeepSpeed JSON. The experiment sets batch, optimizer and precision keys.

    Raises:
        UserError: the file is missing, is not a JSON object, sets a key of RESERVED, or sets options that are
            not supported here.
    """
    options = _parsed(path)
    if not isinstance(options, dict):
        raise UserError(f"{path}: must hold a JSON object, not {reprlib.repr(options):.40}; {EXAMPLE}")
    faults = [*_key_faults(options), *_zero_faults(options)]
    if faults:
        shown = faults[:MOST_FAULTS] + (
            [f"and {len(faults) - MOST_FAULTS} more"] if faults[MOST_FAULTS:] else []
        )
        raise UserError("\n".join(f"{path}: {fault}" for fault in shown))
    return options


def zero_stage(options: Mapping[str, Any]) -> int:
    """The ZeRO stage that the options of a DeepSpeed JSON ask for; 0 shards nothing."""
    stage: int = options.get(ZERO_SECTION, {}).get("stage", 0)
    return stage


def _parsed(path: Path) -> Any:
    try:
        text = read_regular_file(path, MAX_BYTES).decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=unique_keys, parse_constant=_reject_constant)
    except OSError as error:
        reason = f"{error.strerror}; name a DeepSpeed JSON, or leave the key out"
        raise UserError(f"deepspeed.config: cannot read {path}: {reason}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error!s:.200}; {EXAMPLE}") from error
    except RecursionError:
        raise UserError(f"{path}: not JSON: nested too deeply; {EXAMPLE}") from None


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _key_faults(options: dict[str, Any]) -> Iterator[str]:
    """Errors of the keys beside the ZeRO section, and of their values."""
    for key, value in options.items():
        if key in RESERVED:
            yield f"{key}: set {RESERVED[key]} in the experiment instead"
        elif key not in SUPPORTED:
            similar = difflib.get_close_matches(key[:60], SUPPORTED, n=1)
            hint = (
                f"did you mean {similar[0]}?" if similar else f"leave it out; keys are {', '.join(SUPPORTED)}"
            )
            yield f"{key:.60}: unknown or unsupported key; {hint}"
        elif key in BOOLEAN and not isinstance(value, bool):
            yield f"{key}: {reprlib.repr(value):.40} is not allowed; write true or false"
        elif key == "communication_data_type" and value not in DTYPES:
            yield f"{key}: {reprlib.repr(value):.40} is not allowed; write one of {', '.join(DTYPES)}"


def _zero_faults(options: dict[str, Any]) -> Iterator[str]:
    """Errors of the ZeRO section."""
    zero = options.get(ZERO_SECTION, {})
    if not isinstance(zero, dict):
        yield f'{ZERO_SECTION}: must be an object such as {{"stage": 2}}, not {reprlib.repr(zero):.40}'
        return
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        yield f"{ZERO_SECTION}.stage: {reprlib.repr(stage):.40} is not a ZeRO stage; write 0, 1, 2 or 3"
        return
    if stage == 1 and zero.get("overlap_comm"):
        yield f"{ZERO_SECTION}.overlap_comm: DeepSpeed overlaps in stages 2 and 3 only; leave it out"
    yield from _offload_faults(zero, stage)


def _offload_faults(zero: dict[str, Any], stage: int) -> Iterator[str]:
    for key, min_stage in {"offload_optimizer": 1, "offload_param": 3}.items():
        section = zero.get(key)
        if section is None:
            continue
        device = section.get("device", "none") if isinstance(section, dict) else section
        if device not in ("none", "cpu"):
            yield (
                f"{ZERO_SECTION}.{key}: {reprlib.repr(device):.40} is not supported; write "
                '{"device": "cpu"}, or leave it out'
            )
        elif device == "cpu" and stage < min_stage:
            yield f"{ZERO_SECTION}.{key}: ZeRO stage {stage} does not offload; set stage {min_stage} or above"
