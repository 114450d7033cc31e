"""python -m tests.chaos.damage [--seed N]: damage every file of a run, one at a time, and see what is said.

The three stages of the tiny experiment are trained once. Then each file of an adapter, manifest, checkpoint
and record is cut short, has a bit flipped, is deleted, and is put in place of another run's: of stages that
have finished, and of ones that were interrupted. The damage is detected where a message names the file (or
the sealed folder it is in), and no stage would go on with it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import STAGES, Stage
from data.storage.files import sha256
from data.storage.records import record_faults, records
from data.storage.sealed_folder import SEAL
from pipeline.planning.plan import plan_stage, stages_between
from pipeline.planning.request import Request
from pipeline.state.manifest import Manifest, Record, fingerprint, read_manifest
from pipeline.state.run_directory import RunDirectory
from stages.training.checkpoint import newest_checkpoint
from tests.support.runs import TINY, run_stage

State = Literal["finished", "interrupted"]
OTHER = "another run"


@dataclass(frozen=True)
class Case:
    """One file that was damaged in one way, and what is wrong with how that was met."""

    state: State
    kind: str
    damage: str
    file: str
    fault: str | None


def cut(file: Path, _: Path, __: random.Random) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path, _: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def delete(file: Path, _: Path, __: random.Random) -> None:
    file.unlink()


def swap(file: Path, other: Path, _: random.Random) -> None:
    shutil.copy2(other, file)


def swap_folder(file: Path, other: Path, _: random.Random) -> None:
    """Swap all of the sealed folder that `file` is in."""
    shutil.rmtree(file.parent)
    shutil.copytree(other.parent, file.parent)


Damage = Callable[[Path, Path, random.Random], None]
DAMAGES: dict[str, Damage] = {"cut short": cut, "bit flipped": flip, "deleted": delete, "swapped": swap}


def cases(run: Path, scratch: Path, overrides: Sequence[str] = (), seed: int = 0) -> Iterator[Case]:
    """Damage copies, in `scratch`, of a `run` of the tiny experiment whose three stages have finished."""
    config = load_experiment(TINY, overrides)
    chance, other = random.Random(seed), scratch / "other"
    pass_for_another(run, other)
    for state in ("finished", "interrupted"):
        for stage in STAGES:
            for file in files_of(run, stage, state):
                damages = dict(DAMAGES)
                if file.name == SEAL:
                    damages["swapped, its folder too"] = swap_folder
                if file.read_bytes() == (other / file.relative_to(run)).read_bytes():
                    del damages["swapped"]  # it says the same in all runs
                for name, damage in damages.items():
                    victim = scratch / "victim"
                    copy_as(run, victim, stage, state)
                    target = victim / file.relative_to(run)
                    damage(target, other / file.relative_to(run), chance)
                    fault = met(Request(config, RunDirectory(victim)), stage, target, state)
                    yield Case(state, kind_of(file), name, str(file.relative_to(run)), fault)
                    shutil.rmtree(victim)


def files_of(run: Path, stage: Stage, state: State) -> list[Path]:
    """What is of use to somebody in a stage of that state: of checkpoints, the newest."""
    folder = run / stage
    newest = max((folder / "checkpoints").glob("step-*"))
    sealed = folder / "adapter" if state == "finished" else newest
    known = (
        records(folder) if state == "finished" else json.loads((newest / "state.json").read_text())["records"]
    )
    lines = [folder / name for name, record in known.items() if record["bytes"]]
    return [folder / "manifest.json", *lines, *sorted(path for path in sealed.iterdir() if path.is_file())]


def kind_of(file: Path) -> str:
    if file.name == "manifest.json":
        return "manifest"
    if file.suffix == ".jsonl":
        return "record"
    return "adapter" if file.parent.name == "adapter" else "checkpoint"


def copy_as(run: Path, victim: Path, stage: Stage, state: State) -> None:
    """Copy a run; where `state` is interrupted, as it was before `stage` had written its adapter."""
    shutil.copytree(run, victim, ignore=shutil.ignore_patterns("logs", "wandb", "*.lock"))
    if state == "finished":
        return
    shutil.rmtree(victim / stage / "adapter")
    for later in STAGES[STAGES.index(stage) + 1 :]:
        shutil.rmtree(victim / later)
    manifest = manifest_of(victim, stage)
    changes: dict[str, Any] = {"status": "interrupted", "output": None, "records": {}, "metrics": {}}
    manifest.model_copy(update=changes).write(victim / stage / "manifest.json")


def pass_for_another(run: Path, other: Path) -> None:
    """Make of a run one that is whole, and could be that of another seed."""
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("logs", "wandb", "*.lock"))
    for file in other.rglob("*.safetensors"):
        save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file)
    for file in other.rglob("*.jsonl"):
        file.write_text(file.read_text().replace("1", "2"))
    for file in other.rglob("state.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"run": OTHER}))
    for seal in other.rglob(SEAL):
        hashes = {name: sha256(seal.parent / name) for name in json.loads(seal.read_text())}
        seal.write_text(json.dumps(hashes, indent=1))
    for stage in STAGES:
        folder = other / stage
        written = {name: Record(**each) for name, each in records(folder).items()}
        changes = {"run_id": OTHER, "output": fingerprint(folder / "adapter"), "records": written}
        manifest_of(other, stage).model_copy(update=changes).write(folder / "manifest.json")


def met(request: Request, stage: Stage, file: Path, state: State) -> str | None:
    """What is wrong with how the damage to `file` is met, if anything."""
    run = request.run.path
    said: list[str] = []
    goes_on = False
    try:
        if state == "finished":
            for each in stages_between(stage, "ppo"):
                plan = plan_stage(request, each)
                said += [plan.why, *plan.notes]
                goes_on |= plan.action == "skip" and file.parent.name == "adapter" and each == stage
            manifest = manifest_of(run, stage)
        else:
            plan = plan_stage(request, stage)
            manifest = manifest_of(run, stage)
            found, complaints = newest_checkpoint(run / stage / "checkpoints", manifest.run_id)
            said += complaints
            others = [path for path in (run / stage / "checkpoints").glob("step-*") if path != file.parent]
            if found is None and others and file.parent.name.startswith("step-"):
                return f"no older checkpoint is taken: {complaints}"
            if found is not None:
                said += record_faults(run / stage, found.records)
                goes_on = found.folder == file.parent
    except UserError as error:
        said.append(str(error))
    sealed = str(file.parent) if file.parent.name.startswith("step-") else str(file)
    named = [line for line in said if sealed in line or (file.name == "manifest.json" and "adapter" in line)]
    if goes_on:
        return "a stage goes on with it"
    return None if named else f"nobody names it: {said}"


def manifest_of(run: Path, stage: Stage) -> Manifest:
    manifest = read_manifest(run / stage / "manifest.json")
    if manifest is None:
        raise UserError(f"{run / stage / 'manifest.json'}: is missing")
    return manifest


def table(found: list[Case]) -> str:
    """Damages by what was damaged, and how many of them were detected."""
    names = list(dict.fromkeys(case.damage for case in found))
    lines = [f"| stage | file | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for state, kind in dict.fromkeys((case.state, case.kind) for case in found):
        of_kind = [case for case in found if (case.state, case.kind) == (state, kind)]
        cells = []
        for name in names:
            all_of = [case.fault is None for case in of_kind if case.damage == name]
            cells.append(f"{sum(all_of)} of {len(all_of)}" if all_of else "")
        lines.append(f"| {state} | {kind} | {' | '.join(cells)} |")
    good = sum(case.fault is None for case in found)
    return "\n".join([*lines, f"\n{good} of {len(found)} damaged files detected"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.damage", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        run = Path(folder) / "run"
        for stage in STAGES:
            run_stage(stage, run)
        found = list(cases(run, Path(folder), seed=arguments.seed))
    bad = [case for case in found if case.fault]
    for case in bad:
        print(f"{case.file} of a stage that was {case.state}, {case.damage}: {case.fault}")
    print(table(found))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
