"""`rm.members`: each member trains as if it were alone, and everything that scores reads all of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apps.export.export import write_export
from apps.export.formats import Export
from apps.trained_run import Adapters, load_policies, open_run, reward_scores, this_process
from configs.errors import UserError
from stages.feedback.reward_ensemble import disagreement, mean_of
from stages.models.queries import ScalarQuery
from stages.models.reward_members import member_folders, member_role, members_of
from stages.models.roles import Role
from tests.support.roles import new_role, tiny_roles
from tests.support.runs import (
    KILLED_STAGE,
    RUN_STAGE,
    assert_same_result,
    copy_upstream,
    files,
    metrics,
    rows,
    run_stage,
    stage_arguments,
    start_warm,
)

MEMBERS = "rm.members=3"
FILES = ("adapter_model.safetensors", "head.safetensors")


@pytest.fixture(scope="module")
def ensemble(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with three reward models in place of one."""
    run_dir = copy_upstream(trained_run, "rm", tmp_path_factory.mktemp("ensemble"))
    run_stage("rm", run_dir, MEMBERS)
    run_stage("ppo", run_dir, MEMBERS, "ppo.ensemble=min")
    return run_dir


def test_the_first_member_is_the_reward_model_without_an_ensemble(ensemble: Path, trained_run: Path) -> None:
    """Bit for bit: no member feels the others, neither in order, clipping, Adam nor normalisation."""
    alone, first = files(trained_run / "rm" / "adapter"), files(ensemble / "rm" / "adapter")
    for name in FILES:
        assert first[name] == alone[name], name
    before, after = (metrics(run / "rm" / "manifest.json") for run in (trained_run, ensemble))
    for name in ("score_mean", "score_std", "examples", "steps"):
        assert after[name] == before[name]
    assert after["accuracy_member_1"] == before["accuracy"]


def test_members_differ_and_all_trained(ensemble: Path) -> None:
    folders = member_folders(ensemble / "rm" / "adapter")
    assert [folder.name for folder in folders] == ["adapter", "member-2", "member-3"]
    adapters = [load_file(folder / FILES[0]) for folder in folders]
    heads = [load_file(folder / FILES[1])["weight"] for folder in folders]
    sft = load_file(ensemble / "sft" / "adapter" / FILES[0])
    for one in range(3):
        assert all(not torch.equal(adapters[one][name], tensor) for name, tensor in sft.items())
        for other in range(one):
            assert not torch.equal(heads[one], heads[other])
            assert any(not torch.equal(adapters[one][name], adapters[other][name]) for name in sft)


def test_the_report_has_each_member_and_the_ensemble(ensemble: Path) -> None:
    found = metrics(ensemble / "rm" / "manifest.json")
    for name in ("accuracy", "accuracy_member_1", "accuracy_member_2", "accuracy_member_3", "disagreement"):
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"] and found[f"{name}_n"] == 8
    assert found["disagreement"] > 0
    report = json.loads((ensemble / "rm" / "evaluation.json").read_text())
    assert report["accuracy"]["value"] == pytest.approx(found["accuracy"])
    evaluated = [row for row in rows(ensemble / "rm" / "metrics.jsonl") if "eval/accuracy" in row]
    assert all("eval/disagreement" in row and "eval/accuracy_member_3" in row for row in evaluated)


def test_ppo_takes_the_lowest_score_and_tells_the_disagreement(ensemble: Path, tmp_path: Path) -> None:
    """The same SFT answers: by the mean they score more than by the minimum."""
    run_dir = copy_upstream(ensemble, "ppo", tmp_path / "mean")
    run_stage("ppo", run_dir, MEMBERS)
    by_min, by_mean = (metrics(run / "ppo" / "manifest.json") for run in (ensemble, run_dir))
    assert by_min["rm_score_sft"] < by_mean["rm_score_sft"]
    assert by_min["disagreement_sft"] == by_mean["disagreement_sft"] > 0
    steps = rows(ensemble / "ppo" / "metrics.jsonl")
    assert all(row["rewards/rm/disagreement"] > 0 for row in steps if "objective/kl" in row)
    assert all(row["eval/disagreement"] > 0 for row in steps if "eval/kl" in row)


def test_a_score_elsewhere_is_the_mean_of_the_members(ensemble: Path) -> None:
    """As in serve, chat, evaluate and best-of-n."""
    run = open_run(ensemble)
    pairs = [("I lost my red hat.", "That is sad."), ("I made a cake.", "No.")]
    folder = run.adapter("rm")
    loaded = load_policies(run, Adapters({}, folder), this_process())
    together = reward_scores(loaded, pairs, run.config.data)
    each = []
    for number in (1, 2, 3):
        alone = load_policies(run, Adapters({}, folder, member=number), this_process())
        assert alone.models.reward_members == ["reward"]
        each.append(reward_scores(alone, pairs, run.config.data))
    assert together == pytest.approx([sum(scores) / 3 for scores in zip(*each, strict=True)], abs=1e-5)
    assert each[0] != pytest.approx(each[1], abs=1e-2)


def test_one_forward_for_all_members_gives_the_scores_of_each() -> None:
    roles = tiny_roles()
    for number in (1, 2, 3):
        new_role(roles, member_role(number), number, head=True)
    roles.requires_grad_(False).eval()
    ids = torch.randint(5, 90, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0  # padding on the left
    names = members_of(roles)
    query = ScalarQuery(Role.REWARD, ids, mask, start=3)
    assert roles.can_mix(names)
    together = roles.scalars_of(names, query)
    apart = [roles(ScalarQuery(name, ids, mask, start=3)) for name in names]
    torch.testing.assert_close(together, torch.stack(apart), atol=1e-4, rtol=1e-4)
    assert torch.equal(roles(query), apart[0]), "the next forward uses one adapter again"


def test_killed_and_resumed_is_as_if_never_killed(ensemble: Path, tmp_path: Path) -> None:
    run_dir = copy_upstream(ensemble, "rm", tmp_path)
    killed = start_warm([KILLED_STAGE, "3", *stage_arguments("rm", run_dir, MEMBERS)])
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert "resumes from step-000002" in run_stage("rm", run_dir, MEMBERS).stdout
    assert_same_result(run_dir / "rm", ensemble / "rm")


@pytest.mark.distributed
def test_two_ranks_train_the_same_ensemble(ensemble: Path, tmp_path: Path) -> None:
    run_dir = copy_upstream(ensemble, "rm", tmp_path)
    result = start_warm([RUN_STAGE, *stage_arguments("rm", run_dir, MEMBERS)], ranks=2)
    assert result.returncode == 0, result.stdout
    pairs = [member_folders(run / "rm" / "adapter") for run in (run_dir, ensemble)]
    for ours, theirs in zip(*pairs, strict=True):
        for name, tensor in load_file(theirs / FILES[0]).items():
            torch.testing.assert_close(load_file(ours / FILES[0])[name], tensor, atol=1e-4, rtol=1e-3)
    one, two = (metrics(run / "rm" / "manifest.json") for run in (ensemble, run_dir))
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=1e-6)
    assert two["disagreement"] == pytest.approx(one["disagreement"], abs=1e-3)


def test_a_classifier_is_one_member(ensemble: Path, tmp_path: Path) -> None:
    run = open_run(ensemble)
    with pytest.raises(UserError, match=r"an ensemble of 3.* --member 1 to --member 3"):
        write_export(Export(run, "rm", say=lambda line: None), "reward", tmp_path / "all", overwrite=False)
    with pytest.raises(UserError, match="--member 4: the reward model has 3"):
        order = Export(run, "rm", say=lambda line: None, member=4)
        write_export(order, "reward", tmp_path / "none", overwrite=False)
    for number in (1, 2):
        order = Export(run, "rm", say=lambda line: None, member=number)
        folder = write_export(order, "reward", tmp_path / f"member-{number}", overwrite=False)
        assert json.loads((folder / "export.json").read_text())["figures"]["largest"] < 1e-4
    assert not list(tmp_path.glob("all*")) and not list(tmp_path.glob("none*"))


def test_a_reward_model_starts_from_all_members(ensemble: Path, trained_run: Path, tmp_path: Path) -> None:
    start = f"rm.from={ensemble / 'rm' / 'adapter'}"
    run_dir = copy_upstream(trained_run, "rm", tmp_path / "run")
    run_stage("rm", run_dir, start, MEMBERS, "rm.max_steps=0")
    there, here = (metrics(path / "rm" / "manifest.json") for path in (ensemble, run_dir))
    for number in (1, 2, 3):
        assert here[f"accuracy_member_{number}"] == there[f"accuracy_member_{number}"]
    refused = run_stage("rm", copy_upstream(trained_run, "rm", tmp_path / "other"), start, status=2)
    assert "has 3 reward models, and rm.members is 1. Set rm.members to 3." in refused.stdout


def test_a_member_that_is_lost_is_named(ensemble: Path, tmp_path: Path) -> None:
    run_dir = copy_upstream(ensemble, "ppo", tmp_path)
    (run_dir / "rm" / "adapter" / "member-2" / "head.safetensors").unlink()
    refused = run_stage("ppo", run_dir, MEMBERS, status=2)
    assert "member-2/head.safetensors is missing" in refused.stdout


def test_best_of_n_and_evaluation_read_the_ensemble(ensemble: Path) -> None:
    run_stage("best", ensemble, MEMBERS, "best.n=2")
    assert metrics(ensemble / "best" / "manifest.json")["rm_score_best"] > 0


def test_means_and_disagreement_of_members():
    members = [[[1.0, 2.0], [3.0]], [[3.0, 2.0], [1.0]]]
    assert mean_of(members) == [[2.0, 2.0], [2.0]]
    assert mean_of(members[:1]) == members[0]
    louder = [members[0], [[10 * score for score in row] for row in members[1]]]
    assert mean_of(louder) == [pytest.approx([11.0, 11.0]), pytest.approx([11.0])]  # neither leads
    # Standardised: -1.22, 0, 1.22 and 1.22, 0, -1.22. So they are 1.22 apart from their mean, and 0.
    assert disagreement(members) == pytest.approx([1.5**0.5 / 2, 1.5**0.5])
