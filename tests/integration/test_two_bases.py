"""A reward model on its own base: with the policy's tokenizer, and with another one."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import STAGES, Base, Experiment, Stage
from data.batches.tokenize import Ranking
from pipeline.reporting.report import write_report
from pipeline.state.manifest import Manifest
from stages import setup
from stages.context import Context, Outcome
from stages.distributed.ranks import Ranks
from stages.feedback.reward_training import RewardModelTrainer
from stages.maths.statistics import Means
from stages.models.base import load_tokenizer
from stages.training.engine import Engine
from tests.integration.test_ppo_start import RECOMPUTED, Recorder
from tests.support.bases import END, foreign_base, wider_base
from tests.support.runs import (
    ROOT,
    RUN_STAGE,
    TINY,
    checkpoint_tensors,
    copy_upstream,
    rows,
    run_stage,
    stage_arguments,
    start_warm,
    untimed,
)

SHORT = ("ppo.iterations=3", "ppo.keep_checkpoints=9", "ppo.eval_steps=null", "data.ppo.held_out=4")
LONG = ("data.max_length=500", "data.max_prompt_length=250")


@dataclass
class RecipeRun:
    """A finished recipe: its outcome, the metrics of each step, and the trained parameters."""

    folder: Path
    outcome: Outcome
    rows: list[Mapping[str, float]]
    trained: set[str]

    def tensors(self, step: int) -> dict[str, torch.Tensor]:
        return checkpoint_tensors(self.folder, step)


class Bases:
    """The two other bases, and recipes that run with a reward model on one of them."""

    def __init__(self, folder: Path, tiny: Path, sft: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.wider = wider_base(tiny, folder / "wider")
        self.foreign = foreign_base(folder / "foreign")
        self.inputs = {"sft": sft}
        self.rm: dict[Path, RecipeRun] = {}

    def run(self, stage: Stage, base: Path, folder: Path, *overrides: str, resume: bool = False) -> RecipeRun:
        inputs = self.inputs if stage == "rm" else self.inputs | {"rm": self.reward_model(base)}
        config = self.config(base, *overrides)
        recorder, engines, initialize = Recorder(), [], Engine.__init__
        folder.mkdir(parents=True, exist_ok=True)

        def initialize_and_record(engine: Engine, *args: Any, **kwargs: Any) -> None:
            initialize(engine, *args, **kwargs)
            engines.append(engine)

        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
                patch.setenv(name, value)
            patch.setattr(Engine, "__init__", initialize_and_record)
            recipe = importlib.import_module(f"stages.{stage}").run
            outcome = recipe(Context(config, stage, folder, inputs, recorder, resume, self.ranks))
        trained = {name for engine in engines for name in engine.parameters}
        steps = [row for row in recorder.metrics if "learning_rate" in row]
        return RecipeRun(folder, outcome, steps, trained)

    def overrides_of(self, base: Path) -> tuple[str, ...]:
        return *SHORT, f"rm.base={{model: {base}, compute_dtype: float32}}"

    def config(self, base: Path, *overrides: str) -> Experiment:
        return load_experiment(TINY, [*self.overrides_of(base), *overrides])

    def reward_model(self, base: Path) -> Path:
        """The adapter of a reward model on `base`, trained once."""
        if base not in self.rm:
            self.rm[base] = self.run("rm", base, self.folder / f"rm-{base.name}")
        return self.rm[base].folder / "adapter"


@pytest.fixture(scope="module")
def bases(
    adapters: dict[str, Path], tiny_folder: Path, ranks: Ranks, tmp_path_factory: pytest.TempPathFactory
) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"), tiny_folder, adapters["sft"], ranks)


@pytest.mark.parametrize("name", ["wider", "foreign"])
def test_reward_model_is_an_adapter_of_its_own_base(bases: Bases, name: str) -> None:
    base = getattr(bases, name)
    folder = bases.reward_model(base)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert load_file(folder / "head.safetensors")["weight"].shape == (1, 128)
    saved = load_file(folder / "adapter_model.safetensors")
    assert len(saved) == 14 and all(tensor.any() for tensor in saved.values())
    run = bases.rm[base]
    assert all(".reward." in name for name in run.trained) and len(run.trained) == 14 + 1
    assert run.outcome.metrics["score_std"] > 0


def test_collected_rankings_are_read_in_the_reward_models_tokens(
    bases: Bases, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: list[Ranking] = []
    accumulate = RewardModelTrainer.accumulate

    def record_rankings(trainer: RewardModelTrainer, batch: Sequence[Ranking]) -> Means:
        trained_on.extend(batch)
        return accumulate(trainer, batch)

    monkeypatch.setattr(RewardModelTrainer, "accumulate", record_rankings)
    options = ("rm.rankings={labeller: warmth, rollout: {max_new_tokens: 40}}", "data.rm.limit=80", *LONG)
    bases.run("rm", bases.foreign, tmp_path, *options)
    sampled = {str(row["prompt"]): row["completion_ids"] for row in rows(tmp_path / "rankings.jsonl")}
    foreign, ends = load_tokenizer(Base(model=str(bases.foreign))), set()
    for ranking in trained_on:
        for reward_model_ids, policy_ids in zip(
            ranking.completion_ids, sampled[str(ranking.prompt)], strict=True
        ):
            ended = policy_ids[-1] == tiny_tokenizer.eos_token_id
            text = tiny_tokenizer.decode(policy_ids, skip_special_tokens=True).strip()
            assert foreign.decode(reward_model_ids) == text + (END if ended else "")
            ends.add(ended)
    assert ends == {True, False}


def test_policy_and_critic_train_on_two_bases(bases: Bases, tmp_path: Path) -> None:
    run = bases.run("ppo", bases.wider, tmp_path / "whole", RECOMPUTED)
    assert {name.split(".")[-2] if "lora" in name else name.split(".")[1] for name in run.trained} == {
        "policy",
        "critic",
    }
    critic = {
        name: tensor for name, tensor in run.tensors(1).items() if ".critic." in name and name in run.trained
    }
    assert len(critic) == 14 + 2 and critic["heads.critic.weight"].shape == (1, 128)
    later = run.tensors(3)
    assert all(not torch.equal(later[name], tensor) for name, tensor in critic.items())
    assert run.rows[0]["objective/kl"] == 0.0 and run.rows[0]["val/ratio"] != 1.0
    assert "score_ppo" in (run.folder / "evaluation.jsonl").read_text()

    cut = tmp_path / "cut"
    shutil.copytree(run.folder / "checkpoints" / "step-000001", cut / "checkpoints" / "step-000001")
    resumed = bases.run("ppo", bases.wider, cut, RECOMPUTED, resume=True)
    assert list(map(untimed, resumed.rows)) == list(map(untimed, run.rows[1:]))
    assert all(torch.equal(tensor, later[name]) for name, tensor in resumed.tensors(3).items())


def test_foreign_critic_is_refused_before_anything_is_loaded(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases.reward_model(bases.foreign)
    monkeypatch.setattr(setup, "load_base", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"ppo\.critic: .*Set ppo\.critic to shared"):
        bases.run("ppo", bases.foreign, tmp_path)


@pytest.mark.parametrize("name", ["wider", "foreign"])
def test_critic_on_the_policy_starts_from_a_new_head(bases: Bases, name: str, tmp_path: Path) -> None:
    run = bases.run("ppo", getattr(bases, name), tmp_path, "ppo.critic=shared")
    assert run.tensors(1)["heads.critic.weight"].shape == (1, 64)
    assert all(".policy." in name or name.startswith("heads.critic.") for name in run.trained)
    assert len({row["rewards/rm/mean"] for row in run.rows}) == 3
    assert run.outcome.metrics["rm_score_ppo"] != run.outcome.metrics["rm_score_sft"]


def test_best_of_n_by_a_foreign_reward_model(bases: Bases, tmp_path: Path) -> None:
    run = bases.run("best", bases.foreign, tmp_path, "best.n=4", "best.rollout={max_new_tokens: 8}")
    assert run.outcome.metrics["rm_score_best"] > run.outcome.metrics["rm_score_sft"]


@pytest.fixture(scope="module")
def wider_run(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three stages from their entry point, on one rank, the reward model on the wider base."""
    run_dir = tmp_path_factory.mktemp("whole")
    for stage in STAGES:
        run_stage(stage, run_dir, *bases.overrides_of(bases.wider))
    return run_dir


def test_manifests_say_which_base_each_adapter_is_for(bases: Bases, wider_run: Path) -> None:
    manifests = {stage: json.loads((wider_run / stage / "manifest.json").read_text()) for stage in STAGES}
    models = [manifests[stage]["base"]["model"] for stage in STAGES]
    assert models == ["tiny-random", str(bases.wider), "tiny-random"]
    digests = [manifests[stage]["base_digest"] for stage in STAGES]
    assert digests[0] == digests[2] != digests[1]
    assert manifests["rm"]["sources"]["rm.base.model"] == manifests["ppo"]["sources"]["rm.base.model"]
    assert "rm.base.model" not in manifests["sft"]["sources"]
    assert (
        "finished with this configuration"
        in run_stage("ppo", wider_run, *bases.overrides_of(bases.wider)).stdout
    )
    page = (write_report(wider_run).parent / "report.md").read_text()
    assert f"reward model on {bases.wider} (nf4)" in page.replace("\\", "")


def test_another_base_than_the_reward_models_is_refused(
    bases: Bases, wider_run: Path, tmp_path: Path
) -> None:
    run_dir = copy_upstream(wider_run, "ppo", tmp_path / "run")
    mismatch = run_stage("ppo", run_dir, status=2)
    assert f"base is tiny-random (nf4), but stage rm was trained on {bases.wider} (nf4)" in mismatch.stdout
    changed = shutil.copytree(bases.wider, tmp_path / "changed")
    manifest = run_dir / "rm" / "manifest.json"
    changed_manifest = manifest.read_text().replace(str(bases.wider), str(changed))
    Manifest.model_validate_json(changed_manifest).write(manifest)
    weights = load_file(changed / "model.safetensors")
    save_file(
        {name: tensor * 1.01 for name, tensor in weights.items()},
        changed / "model.safetensors",
        {"format": "pt"},
    )
    refused = run_stage("ppo", run_dir, *bases.overrides_of(changed), status=2)
    assert f"the files of {changed} are not those that stage rm was trained on" in refused.stdout
    assert not (run_dir / "ppo").exists()


def test_resuming_on_a_changed_base_is_refused(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id may point to another model while no local file changes."""
    bases.run("rm", bases.wider, tmp_path, "rm.max_steps=2")
    digest = setup.base_digest
    monkeypatch.setattr(
        setup,
        "base_digest",
        lambda base, model: "0" * 64 if base.key == "rm.base" else digest(base, model),
    )
    with pytest.raises(UserError, match=r"rm\.base\.model: .*wider is not .* stage rm .*\+000000000000 now"):
        bases.run("rm", bases.wider, tmp_path, "rm.max_steps=2", resume=True)


@pytest.mark.distributed
def test_two_sharded_ranks_give_the_same_figures(bases: Bases, wider_run: Path, tmp_path: Path) -> None:
    options = json.loads((ROOT / "configs" / "deepspeed" / "zero3.json").read_text())
    options["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "zero.json").write_text(json.dumps(options))
    overrides = (*bases.overrides_of(bases.wider), f"deepspeed.config={tmp_path / 'zero.json'}")
    for stage in ("rm", "ppo"):
        run_dir = copy_upstream(wider_run, stage, tmp_path / stage)
        result = start_warm([RUN_STAGE, *stage_arguments(stage, run_dir, *overrides)], ranks=2)
        assert result.returncode == 0, result.stdout
        actual, expected = (
            rows(run_dir / stage / "metrics.jsonl"),
            rows(wider_run / stage / "metrics.jsonl"),
        )
        for row, expected_row in zip(actual, expected, strict=True):
            assert row == pytest.approx(expected_row, rel=1e-4, abs=1e-5), f"{stage}, step {row['step']}"
