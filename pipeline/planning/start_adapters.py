"""The adapters that stages start from, named by the user in `STAGE.from`: what their files say without torch.

Here a folder is refused before any stage runs. `stages.models.start_adapters` loads it and checks its
tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.regular_file import read_regular_file
from configs.schema import Experiment, Stage
from data.storage.adapter_names import ADAPTER_FILE, CONFIG_FILE, HEAD_FILE
from pipeline.planning.faults import Fault

WHOLE_MODEL: dict[Stage, str] = {
    "sft": "Name it in base.model, and leave this key out",
    "rm": "Name a LoRA adapter with a head, such as RUN/rm/adapter. Or write a function or an endpoint that "
    "scores with this model, and name that in ppo.rewards",
    "ppo": "Name the LoRA adapter that it was merged from",
}


def start_faults(config: Experiment, stages: Sequence[Stage]) -> Iterator[Fault]:
    """A line for each adapter that one of `stages` cannot start from."""
    for stage, folder in config.starts.items():
        if stage in stages and (fault := adapter_fault(config, stage, Path(folder))):
            yield Fault((stage, "from"), f"{stage}.from: {folder}: {fault}")


def adapter_fault(config: Experiment, stage: Stage, folder: Path) -> str | None:
    """Why `stage` cannot start from the adapter in `folder`; None if it can, as far as is seen."""
    if not folder.is_dir():
        return "there is no such folder. Correct the path, or leave the key out."
    if (folder / "config.json").is_file() and not (folder / CONFIG_FILE).is_file():
        return f"it is a whole model, and a role is a LoRA adapter on the base. {WHOLE_MODEL[stage]}."
    found = _read(folder)
    if isinstance(found, str):
        return found
    return (
        _kind_fault(stage, folder, found) or _shape_fault(config, found) or _base_fault(config, stage, found)
    )


def policy_fault(config: Experiment, folder: Path) -> str | None:
    """Why the adapter in `folder` is no policy on the base; None if it is one, as far as is seen."""
    found = _read(folder)
    if isinstance(found, str):
        return found
    return _kind_fault("ppo", folder, found) or _base_fault(config, "sft", found)


def _read(folder: Path) -> Mapping[str, Any] | str:
    """The content of `adapter_config.json`, or why the folder has no adapter."""
    missing = [name for name in (CONFIG_FILE, ADAPTER_FILE) if not (folder / name).is_file()]
    if missing:
        return f"it has no {missing[0]}. Name the folder of a PEFT LoRA adapter in safetensors."
    try:
        found = json.loads(read_regular_file(folder / CONFIG_FILE))
    except (OSError, ValueError, RecursionError) as error:
        return f"{CONFIG_FILE} cannot be read: {error!s:.100}. Restore it."
    return found if isinstance(found, dict) else f"{CONFIG_FILE} holds no JSON object. Restore it."


def _kind_fault(stage: Stage, folder: Path, found: Mapping[str, Any]) -> str | None:
    """Refuse a policy as a reward model, and a reward model as a policy."""
    has_head = (folder / HEAD_FILE).is_file()
    if stage == "rm" and not has_head and found.get("task_type") != "SEQ_CLS":
        return (
            f"it is no reward model: it has no {HEAD_FILE}, and the task_type of {CONFIG_FILE} is not "
            "SEQ_CLS. Name RUN/rm/adapter of another run, or an adapter of a sequence classifier with one "
            "label."
        )
    if stage != "rm" and (has_head or found.get("task_type") == "SEQ_CLS"):
        sign = HEAD_FILE if has_head else f"task_type SEQ_CLS in {CONFIG_FILE}"
        return f"it is a reward model ({sign}), not a policy. Stage rm starts from it with rm.from."
    return None


def _shape_fault(config: Experiment, found: Mapping[str, Any]) -> str | None:
    """Rank, alpha and dropout are those of all stages."""
    adapter = config.adapter
    wanted = {  # with what PEFT takes a missing one for
        "r": ("r", adapter.r, 8),
        "lora_alpha": ("alpha", adapter.alpha, 8),
        "lora_dropout": ("dropout", adapter.dropout, 0.0),
    }
    for name, (key, value, default) in wanted.items():
        own = found.get(name, default)
        if own != value:
            return (
                f"its {name} is {own!r:.40}, but adapter.{key} is {value:g}, and all stages share one "
                f"adapter section. Set adapter.{key} to {own!r:.40}."
            )
    for key, value in {"rslora": adapter.rslora, "dora": adapter.dora}.items():
        if bool(found.get(f"use_{key}")) != value:
            own = str(not value).lower()
            return (
                f"its use_{key} is {own}, and all stages share one adapter section. Set adapter.{key} to "
                f"{own}."
            )
    return None


def _base_fault(config: Experiment, stage: Stage, found: Mapping[str, Any]) -> str | None:
    """Compare the names of two bases of the hub, without their owners: many models have mirrors.

    A path tells nothing about a base. Its shapes are checked when the adapter is loaded.
    """
    base, named = config.base_of(stage), found.get("base_model_name_or_path")
    if not isinstance(named, str) or not named or os.path.isabs(named) or os.path.isabs(base.model):
        return None
    own, other = (name.rsplit("/", 1)[-1].lower() for name in (base.model, named))
    if own == other or ("/" in named) != ("/" in base.model):  # an embedded model has no owner
        return None
    return (
        f"{CONFIG_FILE}: base_model_name_or_path is {named:.100}, but {base.key}.model is {base.model}. Set "
        f"{base.key}.model to the base of the adapter. If both are one model, correct {CONFIG_FILE}."
    )
