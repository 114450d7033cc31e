"""`tristage round` makes the next run directory from a finished one, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from configs.errors import UserError
from configs.load import load_experiment
from pipeline.planning.next_round import make_round
from pipeline.state.run_directory import RunDirectory
from tests.support.runs import files


@pytest.fixture
def finished(trained_run: Path, tmp_path: Path) -> RunDirectory:
    """A copy of the tiny run, whose rankings a labeller gave."""
    run = RunDirectory(shutil.copytree(trained_run, tmp_path / "tiny"))
    tree = yaml.safe_load(run.config_file.read_text())
    tree["rm"]["rankings"] |= {"labeller": "warmth", "rollout": {"max_new_tokens": 8}}
    run.config_file.write_text(yaml.safe_dump(tree))
    write_rankings(run.stage("rm") / "rankings.jsonl", "first")
    return run


def write_rankings(file: Path, name: str) -> None:
    row = {"split": "train", "prompt": name, "completions": ["a", "b"], "completion_ids": [[1], [2]]}
    file.write_text(json.dumps(row | {"ranks": [0, 1]}) + "\n")


def refused(run: RunDirectory, *overrides: str, to: Path | None = None) -> str:
    """The error; nothing is left beside the run."""
    before = sorted(run.path.parent.iterdir())
    with pytest.raises(UserError) as caught:
        make_round(run, "ppo", overrides, to)
    assert sorted(run.path.parent.iterdir()) == before
    return str(caught.value)


def test_a_round_starts_from_the_newest_policy_and_knows_all_rankings(finished) -> None:
    before = files(finished.path)
    second, config = make_round(finished, "ppo", ["ppo.kl_coef=0.3"], None)
    assert second.path == finished.path.with_name("tiny-round-2")
    assert load_experiment(second.config_file) == config
    assert config.name == "tiny-round-2" and config.ppo.kl_coef == 0.3
    assert config.sft.start == str(second.path / "start/policy") and config.sft.max_steps == 0
    assert files(second.path / "start/policy") == files(finished.adapter("ppo"))
    assert config.rm.rankings.earlier == (str(second.path / "start/rankings-1.jsonl"),)
    assert config.lineage.parents == (str(finished.path),)
    assert config.lineage.words == f"round 2, from the policy of stage ppo in {finished.path}"
    assert files(finished.path) == before


def test_a_third_round_has_the_rankings_of_both(finished) -> None:
    second, _ = make_round(finished, "ppo", [], None)
    for stage in ("sft", "rm", "ppo"):
        shutil.copytree(finished.stage(stage), second.stage(stage))
    write_rankings(second.stage("rm") / "rankings.jsonl", "second")
    third, config = make_round(second, "ppo", [], None)
    assert third.path.name == config.name == "tiny-round-3"
    prompts = [json.loads(Path(file).read_text())["prompt"] for file in config.rm.rankings.earlier]
    assert prompts == ["first", "second"]
    assert [Path(path).name for path in config.lineage.parents] == ["tiny", "tiny-round-2"]
    assert all(Path(file).parent == third.path / "start" for file in config.rm.rankings.earlier)


def test_a_round_of_sft_goes_on_from_the_last_adapter(finished, tmp_path) -> None:
    second, config = make_round(finished, "sft", ["sft.max_steps=2"], tmp_path / "again")
    assert second.path == tmp_path / "again"
    assert files(second.path / "start/policy") == files(finished.adapter("sft"))
    assert config.sft.max_steps == 2
    assert config.rm.rankings.earlier == (), "its own rankings are of a policy that this round leaves"
    assert config.lineage.start == "sft"


def test_an_unfinished_run_is_refused(finished) -> None:
    shutil.rmtree(finished.stage("ppo"))
    assert "stage ppo has not run, and a round starts from finished ones" in refused(finished)
    assert make_round(finished, "sft", [], None)[1].lineage.start == "sft", "a round of SFT needs only SFT"


def test_a_damaged_run_is_refused(finished) -> None:
    (finished.adapter("ppo") / "README.md").write_text("changed")
    assert "README.md is not the file that the stage wrote" in refused(finished)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("base.model=another", "base: a round goes on with the adapters of the earlier ones"),
        ("base.quantization=int8", "base: a round goes on with the adapters of the earlier ones"),
        ("adapter.r=8", "adapter: a round goes on with the adapters of the earlier ones"),
        ("seed=2", "seed: it decides which prompts are held out"),
        ("rm.max_steps=0", "leaves the head random"),
        ("rm.rankings.labeller=file", "is beside the rankings of a labeller"),
        ("ppo.kl_coeff=1", "command line (ppo.kl_coeff=1)"),
    ],
)
def test_what_a_round_cannot_change_is_refused(finished, override: str, reason: str) -> None:
    assert reason in refused(finished, override)


def test_a_changed_base_is_refused(finished) -> None:
    tree = yaml.safe_load(finished.config_file.read_text())
    tree["base"]["quantization"] = "none"
    finished.config_file.write_text(yaml.safe_dump(tree))
    assert "but stage sft was trained on tiny-random (nf4)" in refused(finished)


def test_an_existing_directory_is_kept(finished, tmp_path) -> None:
    (tmp_path / "there").mkdir()
    assert "there: exists already" in refused(finished, to=tmp_path / "there")


def test_missing_rankings_are_refused(finished) -> None:
    (finished.stage("rm") / "rankings.jsonl").unlink()
    assert "the rankings of an earlier round" in refused(finished)


def test_rankings_of_a_file_need_a_new_file(trained_run, tmp_path) -> None:
    """The tiny run itself reads its rankings from data.rm, and nobody ranks the answers of the new policy."""
    run = RunDirectory(shutil.copytree(trained_run, tmp_path / "tiny"))
    assert "nobody ranks answers of the newest policy" in refused(run)
    other = tmp_path / "others.jsonl"
    other.write_bytes(Path(load_experiment(run.config_file).data.sources("rm")[0].path).read_bytes())
    assert make_round(run, "ppo", [f"data.rm.path={other}"], None)[1].rm.rankings.earlier == ()


def test_what_a_killed_attempt_left_does_no_harm(finished) -> None:
    partial = finished.path.parent / ".tiny-round-2.partial"
    (partial / "start").mkdir(parents=True)
    second, _ = make_round(finished, "ppo", [], None)
    assert (second.path / "config.yaml").is_file() and not partial.exists()
