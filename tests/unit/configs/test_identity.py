"""The keys that influence the result of a stage, and with it the hash."""

import json
from pathlib import Path

import pytest

from configs.identity import _identity, changed_keys, differences, stage_hash
from configs.load import load_experiment
from configs.schema import Experiment


def trial(minimal: Path, *overrides: str) -> Experiment:
    return load_experiment(minimal, overrides)


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("seed=7", {"sft", "rm", "ppo"}),
        ("base.quantization=int8", {"sft", "rm", "ppo"}),
        ("adapter.r=4", {"sft", "rm", "ppo"}),
        ("adapter.dora=true", {"sft", "rm", "ppo"}),
        ("adapter.init=loftq", {"sft", "rm", "ppo"}),
        ("sft.method=adalora", {"sft"}),
        ("lineage.start=sft", set()),
        ("data.max_length=2048", {"sft", "rm", "ppo"}),
        ("data.train_on=last", {"sft", "rm", "ppo"}),
        ("data.rm.limit=10", {"rm"}),
        ("data.rm.ignore_columns=[a]", {"rm"}),
        ("data.rm.columns.prompt=question", {"rm"}),
        ("data.rm.format=ranking", {"rm"}),
        ("data.rm.rank_by=aspects", {"rm"}),
        ("sft.epochs=2", {"sft"}),
        ("sft.from=/a", {"sft"}),
        ("rm.from=/a", {"rm"}),
        ("ppo.from=/a", {"ppo"}),
        ("sft.max_steps=0", {"sft"}),
        ("ppo.kl_coef=0.3", {"ppo"}),
        ("rm.rankings.completions=3", {"rm"}),
        ("rm.loss.kind=plackett_luce", {"rm"}),
        ("rm.loss.ties=half", {"rm"}),
        ("rm.loss.margin=scores", {"rm"}),
        ("rm.loss.center=0.01", {"rm"}),
        ("rm.loss.label_smoothing=0.1", {"rm"}),
        ("rm.members=3", {"rm"}),
        ("rm.pooling=mean", {"rm"}),
        ("rm.rankings.labeller=warmth", {"rm"}),
        ("rm.rankings.labeller=judge.yaml", {"rm"}),
        ("ppo.rollout.max_new_tokens=3", {"ppo"}),
        ("ppo.rollout.batch_size=3", set()),
        ("ppo.rollout.engine=hf", set()),
        ("ppo.old_logprobs=recomputed", set()),
        ("rm.rankings.rollout.engine=merged", set()),
        ("ppo.rollout.engine=vllm", {"ppo"}),
        ("ppo.rollout.vllm.gpu_memory_utilization=0.5", set()),
        ("ppo.rollout.vllm.enforce_eager=true", set()),
        ("ppo.rollout.engine=continuous", set()),
        ("base.gradient_checkpointing=true", set()),
        ("sft.micro_batch_size=1", set()),
        ("ppo.save_steps=1", set()),
        ("name=other", set()),
        ("tracking.wandb=disabled", set()),
        ("deepspeed.config=/z.json", set()),
    ],
)
def test_a_stage_hash_changes_with_what_influences_that_stage_alone(minimal, override, stages):
    before, after = trial(minimal), trial(minimal, override)
    key = override.partition("=")[0]
    for stage in ("sft", "rm", "ppo"):
        assert (stage_hash(before, stage) != stage_hash(after, stage)) == (stage in stages)
        assert changed_keys(before, after, stage) == ([key] if stage in stages else [])


def test_the_demonstrations_count_in_ppo_if_it_learns_them_too(minimal):
    before, after = (trial(minimal, "ppo.ptx_coef=0.1", f"data.sft.limit={limit}") for limit in (8, 9))
    assert changed_keys(before, after, "ppo") == ["data.sft.limit"]
    assert changed_keys(before, after, "rm") == []


def test_the_reference_counts_if_the_policy_starts_elsewhere(minimal):
    to_sft, to_start = (trial(minimal, "ppo.from=/a", f"ppo.reference={name}") for name in ("sft", "from"))
    assert changed_keys(to_sft, to_start, "ppo") == ["ppo.reference"]
    assert changed_keys(trial(minimal), to_sft, "ppo") == ["ppo.from"]


def test_an_older_run_has_the_default_loss(minimal):
    """Its manifest does not name `rm.loss`, and its hash is that of the keys that it names."""
    config = trial(minimal)
    older = config.model_dump(mode="json")
    del older["rm"]["loss"]
    assert differences(older, config, "rm") == []
    assert not any(key.startswith("rm.loss") for key in _identity(config, "rm"))
    scaled = trial(minimal, "rm.loss={margin: scores, margin_scale: 2}")
    assert differences(older, scaled, "rm") == [
        "rm.loss.margin: none -> scores",
        "rm.loss.margin_scale: 1.0 -> 2.0",
    ]


def test_an_older_run_has_one_reward_model_read_at_the_last_token(minimal):
    config = trial(minimal)
    older = config.model_dump(mode="json")
    del older["rm"]["members"], older["rm"]["pooling"]
    del older["ppo"]["ensemble"], older["ppo"]["ensemble_coef"]
    for stage in ("rm", "ppo"):
        assert differences(older, config, stage) == []
        assert not any("ensemble" in key or "members" in key for key in _identity(config, stage))
    cautious = trial(minimal, "rm.members=3", "ppo.ensemble=min")
    assert differences(older, cautious, "ppo") == ["ppo.ensemble: mean -> min"]


def test_folders_to_start_from_are_paths(minimal, tmp_path):
    minimal.write_text(minimal.read_text() + "rm: {from: ./judge}\nppo: {from: ./round-1}\n")
    starts = {"rm": str(tmp_path / "judge"), "ppo": str(tmp_path / "round-1")}
    assert trial(minimal).starts == starts
    assert Experiment.model_validate(trial(minimal).model_dump(mode="json")).starts == starts


def test_the_answers_of_best_count_their_judge(minimal):
    before, after = trial(minimal, "ppo.judge=warmth"), trial(minimal, "ppo.judge=mine:score")
    assert changed_keys(before, after, "best") == ["ppo.judge"]


def test_a_separate_base_of_the_reward_model_counts_from_that_stage_on(minimal):
    plain, separate = trial(minimal), trial(minimal, "rm.base.model=other")
    int8 = trial(minimal, "rm.base={model: other, quantization: int8}")
    for stage in ("sft", "rm", "ppo", "best"):
        later = stage != "sft"
        assert ("rm.base.model" in changed_keys(plain, separate, stage)) == later
        assert changed_keys(separate, int8, stage) == (["rm.base.quantization"] if later else [])
        assert separate.bases(stage) == ([separate.base, separate.rm.base] if later else [separate.base])
        assert separate.base_of(stage) == (separate.rm.base if stage == "rm" else separate.base)
        assert plain.bases(stage) == [plain.base_of(stage)] == [plain.base]
    slower = trial(minimal, "rm.base={model: other, gradient_checkpointing: true}")
    assert stage_hash(separate, "rm") == stage_hash(slower, "rm")


def test_the_reward_models_base_may_be_left_out_or_be_a_relative_path(minimal, tmp_path):
    assert trial(minimal, "rm.base=null").rm.base is None
    minimal.write_text(minimal.read_text() + "rm: {base: {model: ./small}}\n")
    assert trial(minimal).base_of("rm").model == str(tmp_path / "small")


def test_a_stage_that_shares_its_source_changes_when_another_leaves_it(minimal):
    shared = [f"data.{stage}.path=hub/set" for stage in ("sft", "rm", "ppo")]
    before = trial(minimal, *shared)
    assert stage_hash(before, "ppo") == stage_hash(trial(minimal, *shared, "data.rm.limit=5"), "ppo")
    assert stage_hash(before, "ppo") != stage_hash(trial(minimal, *shared[1:]), "ppo")


def test_a_folder_within_a_data_set_is_another_source(minimal):
    before = trial(minimal, "data.sft.path=hub/set", "data.rm.path=hub/set")
    after = trial(minimal, "data.sft.path=hub/set", "data.rm={path: hub/set, data_dir: deep}")
    assert before.data.readers(before.data.sources("rm")[0]) == ["sft", "rm"]
    assert after.data.readers(after.data.sources("rm")[0]) == ["rm"]
    assert changed_keys(before, after, "sft") and changed_keys(before, after, "rm")


def test_keys_of_a_source_that_older_runs_lack_are_no_part_of_the_identity(minimal, monkeypatch):
    """Else each stage of a run that was made without these keys would retrain."""
    hashed: list[str] = []
    dumps = json.dumps

    def record(tree, **options):
        hashed.extend(tree)
        return dumps(tree, **options)

    monkeypatch.setattr("configs.identity.json.dumps", record)
    stage_hash(trial(minimal), "rm")
    assert "data.rm.path" in hashed
    assert not [key for key in hashed if any(new in key for new in ("columns.", "format", "rank_by"))]
