"""The adapter that a stage starts from if the user names its folder in `STAGE.from`.

It is this project's own, or another program's. A reward model made elsewhere is a PEFT adapter of a sequence
classifier with one label: its head lies in the adapter's file, under the classifier's name for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import UserError
from configs.schema import Rm
from configs.unique_keys import unique_keys
from data.storage.adapter_names import CONFIG_FILE
from stages.models.adapter_files import ADAPTER_FILE, HEAD_FILE, check_files, unusable
from stages.models.base_files import number_fault
from stages.models.reward_members import members_in
from stages.models.roles import Role, Roles

CLASSIFIER = "SEQ_CLS"  # PEFT's task_type
HEADS = {"score", "classifier"}  # PEFT saves both names with every classifier, whichever the model has
SCORE = "base_model.model.score."


def add_start(
    roles: Roles, role: Role, key: str, folder: Path, *, trainable: bool = True, name: str | None = None
) -> None:
    """Give `role` the adapter in `folder`; `Role.REWARD` also gets its head.

    Args:
        key: of the configuration, which names the folder.
        name: of the role in `roles`, if it is a further member of a reward model.

    Raises:
        UserError: the folder is no adapter for this base, or, of `Role.REWARD`, has no head with one label.
    """
    try:
        # Only a reward model may be a classifier: the head of another role would be a stray weight.
        own = _own_files(folder, roles.hidden_size) if role == Role.REWARD else nullcontext(folder)
        with own as files:
            roles.add_from(name or role, files, trainable=trainable)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def add_reward_start(roles: Roles, rm: Rm, folder: Path) -> None:
    """Give `roles` every member of the reward model in `rm.from`, trainable.

    Raises:
        UserError: see `add_start`; or it has another number of members, or reads another token, than `rm`.
    """
    try:
        members = members_in(folder)
    except UserError as error:
        raise UserError(f"rm.from: {error}") from error
    if len(members) != rm.members:
        raise UserError(
            f"rm.from: {folder} has {len(members)} reward models, and rm.members is {rm.members}. Set "
            f"rm.members to {len(members)}."
        )
    for role, member in members:
        add_start(roles, Role.REWARD, "rm.from", member, name=role)
        pooling = roles.head(role).pooling
        if pooling != rm.pooling:
            raise UserError(
                f"rm.from: the score of {member} is that of `pooling: {pooling}`, and rm.pooling is "
                f"{rm.pooling}. Set rm.pooling to {pooling}."
            )


def is_classifier(folder: Path) -> bool:
    """Whether the folder is an adapter of a sequence classifier. Its files need not be whole."""
    return _config(folder).get("task_type") == CLASSIFIER


def adapted_layers(roles: Roles, role: Role) -> str:
    """The layers that the adapter of `role` is on, by the last part of their names, or as a pattern."""
    targets = roles.peft_config(role).target_modules or ()
    if isinstance(targets, str):
        return targets
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name in targets}))


@contextmanager
def _own_files(folder: Path, hidden_size: int) -> Iterator[Path]:
    """The folder of a reward model in this project's form: itself, or for a while a converted copy.

    Raises:
        UserError: it has no head of one label over `hidden_size`. An error about the copy names the folder.
    """
    check_files(folder)
    config = _config(folder)
    if config.get("task_type") != CLASSIFIER:
        if config and not (folder / HEAD_FILE).is_file():
            raise unusable(folder, f"it has no {HEAD_FILE}, so it is no reward model")
        yield folder
        return
    tensors = load_file(folder / ADAPTER_FILE)
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith(SCORE)}
    if fault := _head_fault(head, hidden_size):
        raise unusable(folder, f"{ADAPTER_FILE}: {fault}")
    with TemporaryDirectory() as temporary:
        copy = Path(temporary)
        save_file(tensors, copy / ADAPTER_FILE, {"format": "pt"})
        save_file(_as_scalar_head(head), copy / HEAD_FILE)
        (copy / CONFIG_FILE).write_text(
            json.dumps(config | {"task_type": "CAUSAL_LM"} | _saved_modules(config))
        )
        try:
            yield copy
        except UserError as error:
            raise UserError(str(error).replace(temporary, str(folder))) from error


def _config(folder: Path) -> dict[str, Any]:
    """The adapter's config; empty if it is not readable, which `Roles.add_from` refuses."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    except (OSError, ValueError, RecursionError):  # DuplicateKey is a ValueError
        return {}
    return config if isinstance(config, dict) else {}


def _head_fault(head: Mapping[str, Tensor], hidden_size: int) -> str | None:
    """Why the tensors of a classifier's head are no scalar head; None if they are one."""
    weight, bias = f"{SCORE}weight", f"{SCORE}bias"
    if weight not in head:
        return f"it has no {weight}, the head of the classifier; save it with modules_to_save: [score]"
    if others := sorted(head.keys() - {weight, bias}):
        return f"it holds {others[0]}, and a head has only weight and bias; train it without an adapter on it"
    if head[weight].dim() != 2:
        return f"{weight} has the shape {list(head[weight].shape)}, and must have [1, {hidden_size}]"
    labels, width = head[weight].shape
    if labels != 1:
        return f"{weight} has {labels} labels, and a reward model has 1; train it with num_labels=1"
    if width != hidden_size:
        return f"{weight} has a width of {width}, and the hidden states of this base have {hidden_size}"
    if bias in head and head[bias].shape != (1,):
        return f"{bias} has the shape {list(head[bias].shape)}, and must have [1]"
    faults = (f"{name} {fault}" for name, tensor in head.items() if (fault := number_fault(tensor)))
    return next(faults, None)


def _as_scalar_head(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `ScalarHead`, fp32. A classifier of a decoder has no bias, which is a bias of 0."""
    return {
        "weight": head[f"{SCORE}weight"].float(),
        "bias": head.get(f"{SCORE}bias", torch.zeros(1)).float(),
    }


def _saved_modules(config: Mapping[str, Any]) -> dict[str, Any]:
    """`modules_to_save` without the head; what is left is refused by the checks of the config."""
    saved = config.get("modules_to_save")
    others = [name for name in saved if name not in HEADS] if isinstance(saved, list) else saved
    return {"modules_to_save": others or None}
