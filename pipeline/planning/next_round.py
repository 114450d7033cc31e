"""The next round of a finished run: a new run directory with its policy and the rankings of all rounds.

A round of PPO samples answers of the newest policy and has them ranked. It trains the reward model on the
rankings of all rounds, and trains the policy on with PPO (Ouyang et al. 2022, section 3.1; Bai et al. 2022,
section 4.5). A round of SFT trains the last adapter on, with other demonstrations.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from configs.errors import UserError
from configs.load import dump_experiment, load_experiment
from configs.schema import MAX_NAME, Experiment, Stage
from data.storage.files import PARTIAL, sync
from pipeline.state.manifest import BaseModelId, damage, read_manifest, source_hashes
from pipeline.state.run_directory import RunDirectory
from pipeline.state.stage_state import PREDICATES, base_fault, state_of

START = "start"  # folder of the new run: what it takes from the earlier one
RANKINGS = "rankings.jsonl"
MARK = "-round-"  # between the first run's name and the number of a round
Kind = Literal["sft", "ppo"]
Tree = dict[str, Any]


def make_round(
    previous: RunDirectory, kind: Kind, overrides: Sequence[str], target: Path | None
) -> tuple[RunDirectory, Experiment]:
    """Write the run directory of the round after `previous`, whole or not at all.

    Args:
        kind: the stage whose policy the round starts from.
        overrides: `key=value` for the new experiment.
        target: the new run directory; None for `NAME-round-N` beside `previous`.

    Raises:
        UserError: `previous` is unfinished or damaged, or its base has changed; `target` exists; or the new
            experiment is wrong.
    """
    old = experiment_of(previous)
    _check_finished(previous, old, kind)
    name = _name(old)
    folder = target or previous.path.with_name(name)
    if os.path.lexists(folder):
        raise UserError(f"{folder}: exists already. Give another directory with --to.")
    tree = _next_tree(old, previous, kind, folder, name)
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed attempt
    try:
        config = _validated(tree, overrides, partial)
        _check_same(old, config)
        _check_trains(old, config, kind)
        _copy_start(previous, old, kind, partial / START)
        RunDirectory(partial).write_config(dump_experiment(config))
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}. Give another --to.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(folder.parent)
    return RunDirectory(folder), config


def rankings_left_out(old: Experiment, new: Experiment) -> str | None:
    """What to tell of the earlier rankings if they stand in data.rm, not in the run; None if they do not."""
    if old.rm.rankings.labeller != "file" or new.rm.rankings.labeller == "file":
        return None
    paths = ", ".join(source.path for source in old.data.sources("rm"))
    return (
        f"the reward model will not learn the rankings in {paths} again: this round ranks new "
        "answers to its prompts, and only rankings that a run collected join those"
    )


def experiment_of(run: RunDirectory) -> Experiment:
    """The experiment of a run; raises UserError if there is no run."""
    run.check("--from")
    return load_experiment(run.config_file)


def _check_finished(run: RunDirectory, config: Experiment, kind: Kind) -> None:
    """Raise UserError unless the stages that the round builds on are finished, whole, and on this base."""
    stages: list[Stage] = ["sft"] if kind == "sft" else [*config.upstream("ppo"), "ppo"]
    if config.sft.no_role:
        raise UserError(
            f"{run.path}: sft.method is {config.sft.method}, and no round starts from it: "
            f"{config.sft.no_role}. Start from a run with sft.method lora or adalora."
        )
    for stage in stages:
        manifest = read_manifest(run.manifest(stage))
        if manifest is None or manifest.status != "finished" or manifest.output is None:
            state = PREDICATES[state_of(manifest, run.is_locked)] if manifest else "has not run"
            raise UserError(
                f"{run.path}: stage {stage} {state}, and a round starts from finished ones. Finish it first: "
                f"tristage run --config {run.config_file} --run-dir {run.path}"
            )
        if problems := damage(run.output(stage), manifest.output.files):
            raise UserError(f"{problems[0]}. Restore it, or train stage {stage} again.")
        if fault := base_fault(config, manifest, source_hashes(config, stage)):
            raise UserError(f"{run.config_file}: {fault}. Restore the base: its adapters belong to it.")


def _name(old: Experiment) -> str:
    number = old.lineage.round + 1
    first = old.name.removesuffix(f"{MARK}{old.lineage.round}")
    end = f"{MARK}{number}"
    return first[: MAX_NAME - len(end)].rstrip("-.") + end


def _next_tree(
    old: Experiment, previous: RunDirectory, kind: Kind, folder: Path, name: str
) -> dict[str, Any]:
    """The old experiment with what a round changes. Paths are those that the finished folder will have."""
    tree = old.model_dump(mode="json")
    tree["name"] = name
    tree["lineage"] = {"parents": [*old.lineage.parents, str(previous.path)], "start": kind}
    tree["sft"] |= {"from": str(folder / START / "policy"), "method": "lora", "virtual_tokens": 20}
    if kind == "ppo":
        tree["sft"] |= {"max_steps": 0, "use_best": False}
        tree["ppo"] |= {"from": None, "reference": "sft"}  # which is the policy that the round starts from
    tree["rm"]["from"] = None
    tree["rm"]["rankings"]["earlier"] = [str(folder / START / file) for file in _earlier(previous, old, kind)]
    return tree


def _earlier(previous: RunDirectory, old: Experiment, kind: Kind) -> dict[str, Path]:
    """The rankings of all rounds so far: their names in the new run, and where they are now."""
    files = [Path(path) for path in old.rm.rankings.earlier]
    own = previous.stage("rm") / RANKINGS
    if kind == "ppo" and old.rm.rankings.labeller != "file" and "rm" in old.upstream("ppo"):
        files.append(own)
    return {f"rankings-{number}.jsonl": path for number, path in enumerate(files, 1)}


def _copy_start(previous: RunDirectory, old: Experiment, kind: Kind, folder: Path) -> None:
    """Copy the policy and the rankings, so that the new run does not depend on the old one's folder."""
    shutil.copytree(previous.adapter(kind), folder / "policy")
    for name, path in _earlier(previous, old, kind).items():
        if not path.is_file():
            raise UserError(f"{path} is missing: the rankings of an earlier round. Restore the file.")
        shutil.copyfile(path, folder / name)


def _validated(tree: Tree, overrides: Sequence[str], folder: Path) -> Experiment:
    """The experiment of a tree with overrides, checked as any YAML."""
    folder.mkdir(parents=True)
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    try:
        return load_experiment(file, overrides)
    except UserError as error:
        raise UserError(str(error).replace(str(file), "the round's experiment")) from error
    finally:
        file.unlink()


def _check_same(old: Experiment, new: Experiment) -> None:
    """Raise UserError if an override changes what the adapters of all rounds share."""
    for key, before, after in (
        ("base", BaseModelId.of(old.base), BaseModelId.of(new.base)),
        ("adapter", old.adapter, new.adapter),
    ):
        if before != after:
            raise UserError(
                f"{key}: a round goes on with the adapters of the earlier ones, which belong to {key} as it "
                "was. Leave that override out, or start another experiment."
            )
    if old.seed != new.seed:
        raise UserError(
            "seed: it decides which prompts are held out, and must be that of the earlier rounds. Set "
            "sft.seed, rm.seed or ppo.seed."
        )


def _check_trains(old: Experiment, new: Experiment, kind: Kind) -> None:
    """Raise UserError if the round would learn nothing that the earlier one did not."""
    if kind == "sft" and new.sft.max_steps == 0:
        raise UserError("sft.max_steps: 0 trains nothing, in a round of SFT. Add sft.max_steps=null.")
    if kind == "ppo" and "rm" in new.upstream("ppo"):
        if new.rm.max_steps == 0:
            raise UserError(
                "rm.max_steps: 0 leaves the reward model as it was; a round trains it on new rankings. Add "
                "rm.max_steps=null."
            )
        if new.rm.rankings.labeller == "file" and new.data.sources("rm") == old.data.sources("rm"):
            raise UserError(
                "rm.rankings.labeller: file: nobody ranks answers of the newest policy. Name a labeller, for "
                "example rm.rankings.labeller=people; or rank them elsewhere, and name the file of all "
                "rankings with data.rm.path=FILE."
            )
