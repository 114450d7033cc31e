"""Checks that the files which stages will read exist, before anything is set aside or loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from configs.deepspeed_json import read_deepspeed_json, zero_stage
from configs.error_messages import undotted
from configs.errors import UserError
from configs.schema import Experiment, Part, Stage, ending_of
from data.sources.folders import check_number, files_of_pattern
from data.sources.tasks import check_trainable
from data.storage.source_digest import is_pattern
from pipeline.planning.faults import Fault
from pipeline.planning.plan import StagePlan
from pipeline.planning.start_adapters import start_faults

NOWHERE = "there is no such {}, and no {} of the hub can have this name. Correct it."


def check_files(config: Experiment, plans: Sequence[StagePlan]) -> None:
    """Check the files of the stages that will run or resume.

    Raises:
        UserError: one line per file that is missing or not usable.
    """
    if faults := file_faults(config, plans):
        raise UserError("\n".join(dict.fromkeys(fault.text for fault in faults)))


def file_faults(config: Experiment, plans: Sequence[StagePlan]) -> list[Fault]:
    """What is wrong with the files of the stages that will run or resume, one line for each file."""
    stages = [plan.stage for plan in plans if plan.starts]
    return [*_faults(config, stages), *_set_aside(config, plans)] if stages else []


def _set_aside(config: Experiment, plans: Sequence[StagePlan]) -> Iterator[Fault]:
    """Data or an adapter in the folder of a stage that gets another name before it runs, such as its own."""
    renamed = {plan.set_aside.parent / plan.stage: plan.set_aside for plan in plans if plan.set_aside}
    starting = [plan.stage for plan in plans if plan.starts]
    read = {f"{part.key}.path": part.source.path for part in _parts(config, starting)}
    read |= {f"{stage}.from": folder for stage, folder in config.starts.items() if stage in starting}
    for key, name in read.items():
        path = Path(os.path.realpath(name))  # which a loop of links does not stop
        for folder, new in renamed.items():
            if path.is_relative_to(os.path.realpath(folder)):
                what = "adapter" if key.endswith(".from") else "data"
                yield _of_key(
                    key,
                    f"{path} lies in the folder of stage {folder.name}, which runs again. Before "
                    f"that, it gets the name {new.name}. Copy the {what} to a folder outside of the run "
                    "directory, and name the copy.",
                )


def _may_be_on_the_hub(name: str) -> bool:
    """Whether a repository of the hub can have this name. It need not exist."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _parts(config: Experiment, stages: Sequence[Stage]) -> list[Part]:
    """The sources of the stages, each once: best-of-n reads those of PPO."""
    parts = {part.key: part for stage in stages for part in config.data.parts(stage)}
    return list(parts.values())


def _faults(config: Experiment, stages: Sequence[Stage]) -> Iterator[Fault]:
    sources = {f"{part.key}.path": part.source.path for part in _parts(config, stages)}
    files = {key: path for key, path in sources.items() if ending_of(path) and not is_pattern(path)}
    for key, path in sources.items():
        if not (ending_of(path) or os.path.exists(path) or is_pattern(path) or _may_be_on_the_hub(path)):
            yield _of_key(key, f"{path!r:.200}: {NOWHERE.format('file', 'data set')}")
    files |= config.judge_files(stages)
    if config.data.chat_template is not None:
        files["data.chat_template"] = config.data.chat_template
    if "rm" in stages:
        files |= {f"rm.rankings.earlier[{i}]": path for i, path in enumerate(config.rm.rankings.earlier)}
    for part in _parts(config, stages):
        try:
            check_trainable(part.source, part.key)
        except UserError as error:
            yield Fault(undotted(f"{part.key}.task"), str(error))
    for key, path in sources.items():
        try:
            if os.path.isdir(path):
                check_number(Path(path))
            elif is_pattern(path):
                files_of_pattern(path)
        except UserError as error:
            yield _of_key(key, str(error))
    for key, path in files.items():
        if not os.path.isfile(path):
            yield _of_key(key, f"{path}: there is no such file. Correct the path.")
        elif not os.access(path, os.R_OK):
            yield _of_key(key, f"{path}: this account may not read it. Change its permissions, or copy it.")
    yield from start_faults(config, stages)
    models = {f"{base.key}.model": base.model for stage in stages for base in config.bases(stage)}
    for key, model in models.items():
        if os.path.isabs(model) and not os.path.isdir(model):
            yield _of_key(key, f"{model}: there is no such folder. Correct the path.")
        elif not os.path.exists(model) and not _may_be_on_the_hub(model):
            yield _of_key(key, f"{model!r:.200}: {NOWHERE.format('folder', 'model')}")
    try:
        zero = zero_stage(read_deepspeed_json(Path(config.deepspeed.config)))
    except UserError as error:
        yield Fault(("deepspeed", "config"), str(error))
    else:
        yield from _zero_faults(config, stages, zero)


def _zero_faults(config: Experiment, stages: Sequence[Stage], zero: int) -> Iterator[Fault]:
    """Refuse a ZeRO stage under which a rank would need weights whole that it has a shard of."""
    if config.adapter.dora and zero == 3:
        yield _of_key(
            "adapter.dora",
            "does not train under ZeRO 3, because each forward reads the base's weights. Set "
            "deepspeed.config to a JSON of stage 2, or adapter.dora to false.",
        )
    most = 0 if config.sft.method == "adalora" else 2
    if "sft" in stages and config.sft.method != "lora" and zero > most:
        yield _of_key(
            "sft.method",
            f"{config.sft.method} does not train under ZeRO {zero}. Set deepspeed.config to a "
            f"JSON of stage {most}.",
        )


def _of_key(key: str, reason: str) -> Fault:
    return Fault(undotted(key), f"{key}: {reason}")
