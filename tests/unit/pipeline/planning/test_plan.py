"""Each rule by which a stage runs, resumes, is skipped or is blocked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.identity import differences
from configs.schema import STAGES, Reward
from pipeline.planning.plan import plan_stage, plan_stages, sealed_checkpoint, stages_between
from tests.support.pipeline_runs import request, toy, write_stage


def test_nothing_there_runs(tmp_path: Path) -> None:
    plan = plan_stage(request(tmp_path), "sft")
    assert (plan.action, plan.set_aside, plan.inputs) == ("run", None, {})
    assert list(tmp_path.iterdir()) == [], "planning writes nothing"


def test_finished_and_unchanged_is_skipped(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    write_stage(tmp_path, "rm")
    assert plan_stage(request(tmp_path), "sft").action == "skip"
    assert plan_stage(request(tmp_path), "rm").action == "skip"


def test_force_runs_a_finished_stage_again_and_keeps_the_old_folder(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    (tmp_path / "sft.old-1").mkdir()
    plan = plan_stage(request(tmp_path, force=True), "sft")
    assert (plan.action, plan.set_aside) == ("run", tmp_path / "sft.old-2")


def test_finished_with_a_changed_setting_runs_again_and_names_it(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    plan = plan_stage(request(tmp_path, toy(sft__learning_rate=3e-4)), "sft")
    assert (plan.action, plan.set_aside) == ("run", tmp_path / "sft.old-1")
    assert "sft.learning_rate: 0.0002 -> 0.0003" in plan.why


def test_settings_of_speed_change_nothing(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    assert plan_stage(request(tmp_path, toy(sft__micro_batch_size=1)), "sft").action == "skip"


def test_another_deepspeed_config_and_number_of_ranks_resume(tmp_path: Path) -> None:
    manifest = write_stage(tmp_path, "sft", "interrupted", checkpoint=50)
    manifest.model_copy(update={"world_size": 2}).write(tmp_path / "sft" / "manifest.json")
    other = toy(deepspeed__config="configs/deepspeed/zero3.json")
    assert plan_stage(request(tmp_path, other), "sft").action == "resume"


def test_killed_before_its_first_manifest_runs_in_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / ".manifest.json.abc.partial").touch()
    plan = plan_stage(request(tmp_path), "sft")
    assert (plan.action, plan.set_aside) == ("run", None)


def test_finished_on_another_input_runs_again(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft", weights="first")
    write_stage(tmp_path, "rm")
    (tmp_path / "sft").rename(tmp_path / "sft.old-1")
    write_stage(tmp_path, "sft", weights="second")
    plan = plan_stage(request(tmp_path), "rm")
    assert (plan.action, plan.set_aside) == ("run", tmp_path / "rm.old-1")
    assert "another sft adapter" in plan.why


@pytest.mark.parametrize("key", ["data__sft__path", "data__chat_template"])
def test_edited_file_is_noticed_and_a_missing_one_is_left_to_the_stage(key: str, tmp_path: Path) -> None:
    file = tmp_path / "source"
    file.write_text("before")
    config = toy(**{key: str(file)})
    write_stage(tmp_path, "sft", config=config)
    assert plan_stage(request(tmp_path, config), "sft").action == "skip"
    file.write_text("after")
    plan = plan_stage(request(tmp_path, config), "sft")
    assert (plan.action, plan.set_aside) == ("run", tmp_path / "sft.old-1")
    assert f"{key.replace('__', '.')}: the file's content" in plan.why
    file.unlink()
    assert plan_stage(request(tmp_path, config), "sft").action == "skip"


def test_a_folder_of_data_is_noticed_when_a_file_comes_goes_or_changes(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_text("a")
    config = toy(data__sft__path=str(folder))
    write_stage(tmp_path, "sft", config=config)
    assert plan_stage(request(tmp_path, config), "sft").action == "skip"

    def check_changed() -> None:
        plan = plan_stage(request(tmp_path, config), "sft")
        assert plan.action == "run" and "data.sft.path: the file's content" in plan.why

    (folder / "b.jsonl").touch()
    check_changed()
    (folder / "a.jsonl").unlink()
    check_changed()
    (folder / "b.jsonl").rename(folder / "a.jsonl")
    check_changed()
    (folder / "a.jsonl").write_text("a")
    assert plan_stage(request(tmp_path, config), "sft").action == "skip"


@pytest.mark.parametrize(
    ("options", "edited"),
    [
        ({}, "rm"),  # the split depends on it
        ({"data__keep_apart": False, "ppo__ptx_coef": 0.1}, "sft"),
    ],
)
def test_ppo_does_not_resume_on_other_rows_of_earlier_stages(
    options: dict[str, Any], edited: str, tmp_path: Path
) -> None:
    file = tmp_path / f"{edited}.jsonl"
    file.write_text("before")
    config = toy(**{f"data__{edited}__path": str(file)}, **options)
    for stage in STAGES[:2]:
        write_stage(tmp_path, stage, config=config)
    write_stage(tmp_path, "ppo", "interrupted", config=config, checkpoint=5)
    assert plan_stage(request(tmp_path, config), "ppo").action == "resume"
    file.write_text("after")
    plan = plan_stage(request(tmp_path, config), "ppo")
    assert plan.action == "blocked" and f"data.{edited}.path: the file's content" in plan.why


def test_an_edited_file_of_an_earlier_stage_is_told(tmp_path: Path) -> None:
    file = tmp_path / "rm.jsonl"
    file.write_text("before")
    config = toy(data__rm__path=str(file), data__keep_apart=False)
    write_stage(tmp_path, "sft", config=config)
    write_stage(tmp_path, "rm", config=config)
    assert plan_stage(request(tmp_path, config), "ppo").notes == ()
    file.write_text("after")
    plan = plan_stage(request(tmp_path, config), "ppo")
    assert plan.action == "run"
    assert plan.notes == (
        "stage rm was trained on other files: data.rm.path: the file's content is not what it was",
    )


def test_interrupted_run_whose_data_was_edited_is_blocked(tmp_path: Path) -> None:
    file = tmp_path / "sft.jsonl"
    file.write_text("before")
    config = toy(data__sft__path=str(file))
    write_stage(tmp_path, "sft", "interrupted", config=config, checkpoint=50)
    assert plan_stage(request(tmp_path, config), "sft").action == "resume"
    file.write_text("after")
    plan = plan_stage(request(tmp_path, config), "sft")
    assert plan.action == "blocked"
    assert "data.sft.path" in plan.why
    assert plan_stage(request(tmp_path, config, fresh=True), "sft").action == "run"


def test_own_damaged_adapter_is_named_and_not_trained_again_unasked(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    (tmp_path / "sft/adapter/adapter_model.safetensors").write_text("rot")
    plan = plan_stage(request(tmp_path), "sft")
    assert plan.action == "blocked" and "--stage sft" in plan.remedy and "--force" in plan.remedy
    assert "adapter_model.safetensors" in plan.why
    forced = plan_stage(request(tmp_path, force=True), "sft")
    assert (forced.action, forced.set_aside) == ("run", tmp_path / "sft.old-1")


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_unfinished_resumes_from_its_checkpoint(tmp_path: Path, status) -> None:
    write_stage(tmp_path, "sft", status, checkpoint=50)
    plan = plan_stage(request(tmp_path), "sft")
    assert (plan.action, plan.set_aside) == ("resume", None)
    assert "step-000050" in plan.why


def test_unfinished_without_checkpoint_keeps_its_folder(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft", "interrupted")
    plan = plan_stage(request(tmp_path), "sft")
    assert (plan.action, plan.set_aside) == ("resume", None)


def test_fresh_starts_over_and_keeps_the_old_folder(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft", "interrupted", checkpoint=50)
    plan = plan_stage(request(tmp_path, fresh=True), "sft")
    assert (plan.action, plan.set_aside) == ("run", tmp_path / "sft.old-1")


def test_fresh_leaves_a_finished_stage_alone(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    assert plan_stage(request(tmp_path, fresh=True), "sft").action == "skip"


def test_interrupted_with_a_changed_setting_is_blocked(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft", "interrupted", checkpoint=50)
    plan = plan_stage(request(tmp_path, toy(seed=7)), "sft")
    assert plan.action == "blocked"
    assert "seed: 0 -> 7" in plan.why
    assert "--stage sft --run-dir RUN --fresh" in plan.remedy


def test_a_failure_before_any_checkpoint_blocks_nothing(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft", "failed")
    plan = plan_stage(request(tmp_path, toy(seed=7)), "sft")
    assert (plan.action, plan.set_aside) == ("run", tmp_path / "sft.old-1")


def test_interrupted_whose_input_changed_is_blocked(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft", weights="first")
    write_stage(tmp_path, "rm", "interrupted", checkpoint=2)
    (tmp_path / "sft").rename(tmp_path / "sft.old-1")
    write_stage(tmp_path, "sft", weights="second")
    plan = plan_stage(request(tmp_path), "rm")
    assert plan.action == "blocked"
    assert "another sft adapter" in plan.why


def test_locked_is_blocked(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft", "running")
    plan = plan_stage(request(tmp_path), "sft", locked=True)
    assert plan.action == "blocked"
    assert "is being run" in plan.why


def test_folder_without_manifest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "notes.txt").write_text("mine")
    plan = plan_stage(request(tmp_path), "sft")
    assert (plan.action, plan.set_aside) == ("run", tmp_path / "sft.old-1")


@pytest.mark.parametrize(("stage", "missing"), [("rm", "sft"), ("ppo", "sft")])
def test_missing_upstream_blocks_with_the_command_to_run(tmp_path: Path, stage, missing) -> None:
    plan = plan_stage(request(tmp_path), stage)
    assert plan.action == "blocked"
    assert f"needs stage {missing}" in plan.why
    assert f"deepspeed launch/run_stage.py --stage {missing} --run-dir RUN" in plan.remedy


def test_ppo_needs_the_reward_model_too(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    plan = plan_stage(request(tmp_path), "ppo")
    assert plan.action == "blocked"
    assert "needs stage rm" in plan.why


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_unfinished_upstream_blocks(tmp_path: Path, status) -> None:
    write_stage(tmp_path, "sft", status, checkpoint=50)
    plan = plan_stage(request(tmp_path), "rm")
    assert plan.action == "blocked"
    assert "did not finish" in plan.why


def test_damaged_upstream_blocks_and_names_the_file(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    path = tmp_path / "sft/adapter/adapter_model.safetensors"
    path.write_text("rot")
    plan = plan_stage(request(tmp_path), "rm")
    assert plan.action == "blocked"
    assert str(path) in plan.why
    assert "--stage sft --run-dir RUN --force" in plan.remedy


def test_ppo_is_blocked_by_a_reward_model_of_another_sft(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft", weights="first")
    write_stage(tmp_path, "rm")
    (tmp_path / "sft").rename(tmp_path / "sft.old-1")
    write_stage(tmp_path, "sft", weights="second")
    plan = plan_stage(request(tmp_path), "ppo")
    assert plan.action == "blocked"
    assert "needs stage rm, which was trained on another sft adapter" in plan.why
    assert "--stage rm" in plan.remedy


@pytest.mark.parametrize(
    "change", [{"base__model": "other"}, {"base__revision": "v2"}, {"base__quantization": "int8"}]
)
def test_another_base_than_upstream_blocks(tmp_path: Path, change) -> None:
    write_stage(tmp_path, "sft")
    plan = plan_stage(request(tmp_path, toy(**change)), "rm")
    assert plan.action == "blocked"
    assert "base is" in plan.why


def test_another_adapter_shape_than_upstream_blocks(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    plan = plan_stage(request(tmp_path, toy(adapter__r=4)), "rm")
    assert plan.action == "blocked"
    assert "adapter.r: 16 -> 4" in plan.why


def test_other_settings_of_upstream_are_noted_only(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    plan = plan_stage(request(tmp_path, toy(sft__learning_rate=3e-4)), "rm")
    assert plan.action == "run"
    assert any("sft.learning_rate" in note for note in plan.notes)


def test_a_sequence_counts_on_stages_before(tmp_path: Path) -> None:
    assert [plan.action for plan in plan_stages(request(tmp_path), ["sft", "rm", "ppo"])] == ["run"] * 3
    assert plan_stages(request(tmp_path), ["rm", "ppo"])[0].action == "blocked"


def test_a_change_upstream_runs_everything_after_it(tmp_path: Path) -> None:
    for stage in stages_between("sft", "ppo"):
        write_stage(tmp_path, stage)
    plans = plan_stages(request(tmp_path, toy(rm__learning_rate=3e-4)), ["sft", "rm", "ppo"])
    assert [plan.action for plan in plans] == ["skip", "run", "run"]


def test_broken_manifest_names_the_file(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    path = tmp_path / "sft/manifest.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match=r"manifest\.json"):
        plan_stage(request(tmp_path), "rm")


def test_unsealed_checkpoints_do_not_count(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft", "interrupted", checkpoint=50)
    (tmp_path / "sft/checkpoints/step-000100").mkdir()
    newest = sealed_checkpoint(tmp_path / "sft")
    assert newest is not None and newest.name == "step-000050"


def test_a_configuration_of_another_version_still_plans() -> None:
    assert differences({"unheard": "of"}, toy(), "sft")


def test_stages_between() -> None:
    assert stages_between("rm", "ppo") == ["rm", "ppo"]
    assert stages_between("ppo", "sft") == []


def test_ppo_may_do_without_a_reward_model(tmp_path: Path) -> None:
    function = [Reward(source="my_rewards:score")]
    without = toy(ppo__rewards=function, ppo__critic="shared")
    write_stage(tmp_path, "sft", config=without)
    rm, ppo = plan_stages(request(tmp_path, without), ["rm", "ppo"])
    assert (rm.action, ppo.action) == ("skip", "run") and "not needed" in rm.why
    assert set(ppo.inputs) == {"sft"}
    assert plan_stages(request(tmp_path, without), ["rm"])[0].action == "run", "it was asked for"
    assert plan_stages(request(tmp_path, without), ["rm", "ppo", "best"])[0].action == "run"
    for needs in (toy(ppo__rewards=function), toy(ppo__critic="shared")):
        assert plan_stages(request(tmp_path, needs), ["rm", "ppo"])[0].action == "run"


@pytest.mark.parametrize("labeller", ["JUDGE", {"agree": ["warmth", "JUDGE"]}])
def test_a_judge_that_asks_something_else_retrains_the_reward_model(labeller: Any, tmp_path: Path) -> None:
    file = tmp_path / "judge.yaml"
    file.write_text("url: http://127.0.0.1:9/v1\nmodel: m\n")
    named = {"agree": ["warmth", str(file)]} if isinstance(labeller, dict) else str(file)
    config, run = toy(rm__rankings={"labeller": named}), tmp_path / "run"
    write_stage(run, "sft", config=config)
    write_stage(run, "rm", config=config)
    assert plan_stage(request(run, config), "rm").action == "skip"
    file.write_text(file.read_text() + "retries: 1\n# and a comment")
    assert plan_stage(request(run, config), "rm").action == "skip"
    file.write_text(file.read_text().replace("model: m", "model: n"))
    plan = plan_stage(request(run, config), "rm")
    assert plan.action == "run"
    key = "rm.rankings.labeller.agree[1]" if isinstance(labeller, dict) else "rm.rankings.labeller"
    assert f"{key}: the file's content is not what it was" in plan.why
