"""A finished run of the tiny model, without training: adapters with random weights, and their manifests."""

from __future__ import annotations

import shutil
from pathlib import Path

from configs.identity import stage_hash
from configs.load import dump_experiment, load_experiment
from configs.schema import STAGES, Experiment, Stage
from pipeline.state.manifest import BaseModelId, Manifest, fingerprint, now
from pipeline.state.run_directory import RunDirectory
from tests.support.roles import new_role, save_role_of, tiny_roles
from tests.support.runs import TINY


def finished_run(folder: Path, tokenizer, *overrides: str) -> Path:
    """A run directory in which sft, rm and ppo have finished, each with its own adapter."""
    config = load_experiment(TINY, ["ppo.rollout.max_new_tokens=12", *overrides])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_experiment(config))
    for seed, stage in enumerate(STAGES, 11):
        _write_stage(folder, stage, seed, config, tokenizer)
    return folder


def without_stage(run: Path, stage: Stage, target: Path) -> Path:
    """A copy of a run in which `stage` has not run."""
    shutil.copytree(run, target)
    shutil.rmtree(target / stage)
    return target


def _write_stage(folder: Path, stage: Stage, seed: int, config: Experiment, tokenizer) -> None:
    run = RunDirectory(folder)
    roles = new_role(tiny_roles(), stage, seed, head=stage == "rm")
    save_role_of(roles, stage, run.adapter(stage), tokenizer)
    Manifest(
        stage=stage,
        status="finished",
        config_hash=stage_hash(config, stage),
        config=config.model_dump(mode="json"),
        base=BaseModelId.of(config.base_of(stage)),
        inputs={},
        output=fingerprint(run.adapter(stage)),
        started=now(),
        attempt_started=now(),
    ).write(run.manifest(stage))
