"""python -m tests.chaos.damage [--seed N]: damage every file of a run, one at a time, and check the messages.

The script trains the three stages of the tiny experiment once. Then each file of an adapter, manifest,
checkpoint and record is truncated, has a bit flipped, is deleted, and is replaced by that of another run. It
does so for finished and for interrupted stages. Damage counts as detected if a message names the file (or its
sealed folder) and no stage would continue with it.
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
    """One file, damaged in one way, and the fault in how the pipeline handles it, if any."""

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
    """Damage copies, in `scratch`, of a finished `run` of the tiny experiment."""
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
                    del damages["swapped"]  # the file is the same in all runs
                for name, damage in damages.items():
                    victim = scratch / "victim"
                    copy_as(run, victim, stage, state)
                    target = victim / file.relative_to(run)
                    damage(target, other / file.relative_to(run), chance)
                    fault = fault_in_handling(Request(config, RunDirectory(victim)), stage, target, state)
                    yield Case(state, kind_of(file), name, str(file.relative_to(run)), fault)
                    shutil.rmtree(victim)


def files_of(run: Path, stage: Stage, state: State) -> list[Path]:
    """The files that a later stage or a resume reads in a stage of that state; of checkpoints, the newest."""
    folder = run / stage
    newest = max((folder / "checkpoints").glob("step-*"))
    sealed = folder / "adapter" if state == "finished" else newest
    known_records = (
        records(folder) if state == "finished" else json.loads((newest / "state.json").read_text())["records"]
    )
    record_files = [folder / name for name, record in known_records.items() if record["bytes"]]
    return [
        folder / "manifest.json",
        *record_files,
        *sorted(path for path in sealed.iterdir() if path.is_file()),
    ]


def kind_of(file: Path) -> str:
    if file.name == "manifest.json":
        return "manifest"
    if file.suffix == ".jsonl":
        return "record"
    return "adapter" if file.parent.name == "adapter" else "checkpoint"


def copy_as(run: Path, victim: Path, stage: Stage, state: State) -> None:
    """Copy a run. If `state` is interrupted, the copy is as before `stage` wrote its adapter."""
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
    """Copy a run and change it into an intact run as of another seed."""
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
        new_records = {name: Record(**record) for name, record in records(folder).items()}
        changes = {"run_id": OTHER, "output": fingerprint(folder / "adapter"), "records": new_records}
        manifest_of(other, stage).model_copy(update=changes).write(folder / "manifest.json")


def fault_in_handling(request: Request, stage: Stage, file: Path, state: State) -> str | None:
    """The fault in how the pipeline handles the damage to `file`, if any."""
    run = request.run.path
    messages: list[str] = []
    continues = False
    try:
        if state == "finished":
            for later in stages_between(stage, "ppo"):
                plan = plan_stage(request, later)
                messages += [plan.why, *plan.notes]
                continues |= plan.action == "skip" and file.parent.name == "adapter" and later == stage
            manifest = manifest_of(run, stage)
        else:
            plan = plan_stage(request, stage)
            manifest = manifest_of(run, stage)
            checkpoint, faults = newest_checkpoint(run / stage / "checkpoints", manifest.run_id)
            messages += faults
            older = [path for path in (run / stage / "checkpoints").glob("step-*") if path != file.parent]
            if checkpoint is None and older and file.parent.name.startswith("step-"):
                return f"no older checkpoint is taken: {faults}"
            if checkpoint is not None:
                messages += record_faults(run / stage, checkpoint.records)
                continues = checkpoint.folder == file.parent
    except UserError as error:
        messages.append(str(error))
    sealed = str(file.parent) if file.parent.name.startswith("step-") else str(file)
    named = [
        line for line in messages if sealed in line or (file.name == "manifest.json" and "adapter" in line)
    ]
    if continues:
        return "a stage continues with it"
    return None if named else f"no message names it: {messages}"


def manifest_of(run: Path, stage: Stage) -> Manifest:
    manifest = read_manifest(run / stage / "manifest.json")
    if manifest is None:
        raise UserError(f"{run / stage / 'manifest.json'}: is missing")
    return manifest


def table(damaged: list[Case]) -> str:
    """Numbers of damaged and detected files by kind of file and damage."""
    names = list(dict.fromkeys(case.damage for case in damaged))
    lines = [f"| stage | file | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for state, kind in dict.fromkeys((case.state, case.kind) for case in damaged):
        of_state_and_kind = [case for case in damaged if (case.state, case.kind) == (state, kind)]
        cells = []
        for name in names:
            detections = [case.fault is None for case in of_state_and_kind if case.damage == name]
            cells.append(f"{sum(detections)} of {len(detections)}" if detections else "")
        lines.append(f"| {state} | {kind} | {' | '.join(cells)} |")
    detected = sum(case.fault is None for case in damaged)
    return "\n".join([*lines, f"\n{detected} of {len(damaged)} damaged files detected"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.damage", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        run = Path(folder) / "run"
        for stage in STAGES:
            run_stage(stage, run)
        damaged = list(cases(run, Path(folder), seed=arguments.seed))
    undetected = [case for case in damaged if case.fault]
    for case in undetected:
        print(f"{case.file} of a stage that was {case.state}, {case.damage}: {case.fault}")
    print(table(damaged))
    return 1 if undetected else 0


if __name__ == "__main__":
    sys.exit(main())
