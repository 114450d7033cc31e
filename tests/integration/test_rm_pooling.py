"""`rm.pooling: mean`: a score is the mean over an answer's tokens, in training, in PPO and in a new run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from apps.export.export import write_export
from apps.export.formats import Export
from apps.trained_run import Adapters, load_policies, open_run, this_process
from configs.errors import UserError
from data.batches import tokenize
from stages.distributed.ranks import Ranks
from stages.feedback.reward_model import score_tokens
from stages.feedback.reward_training import RewardModelTrainer
from stages.models.queries import ScalarQuery
from stages.models.roles import Role
from tests.support.roles import CPU, models_of, new_role, tiny_roles
from tests.support.runs import copy_upstream, metrics, run_stage

MEAN = "rm.pooling=mean"
PROMPT, ANSWERS = [5, 6, 7], [[10, 11, 12, 13], [20, 21], []]


@pytest.fixture(scope="module")
def pooled(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = copy_upstream(trained_run, "rm", tmp_path_factory.mktemp("pooled"))
    run_stage("rm", run_dir, MEAN)
    run_stage("ppo", run_dir, MEAN, "ppo.iterations=1")
    return run_dir


def test_a_score_is_the_head_of_the_mean_hidden_state(tiny_tokenizer: Any) -> None:
    """By hand: one answer at a time, its hidden states averaged before the head."""
    roles = new_role(tiny_roles(), "reward", 3, head=True).eval()
    head = roles.head(Role.REWARD)
    expected = []
    for answer in ANSWERS:
        ids = torch.tensor([[*PROMPT, *answer]])
        roles.activate(Role.REWARD)
        with torch.no_grad():
            hidden = roles.causal.get_decoder()(input_ids=ids).last_hidden_state[0]
            of_answer = hidden[len(PROMPT) :] if answer else hidden[-1:]
            expected.append(float(head(of_answer.mean(0)[None, None])[0, 0]))
    head.pooling = "mean"
    models = models_of(roles, tiny_tokenizer)
    rows = [(PROMPT, answer) for answer in ANSWERS]
    assert score_tokens(models, rows, CPU).tolist() == pytest.approx(expected, abs=1e-5)
    engine: Any = SimpleNamespace(models=models, ranks=Ranks(0, 1, CPU))
    ranking = tokenize.Ranking("p", PROMPT, ANSWERS, [0, 1, 2])
    other = tokenize.Ranking("q", [8], [[30], [31, 32, 33]], [0, 1])
    layouts: tuple[tuple[bool, list[list[tokenize.Ranking]]], ...] = (
        (True, [[ranking], [other]]),
        (True, [[ranking, other]]),
        (False, [[ranking], [other]]),
    )
    for share_prompts, rankings in layouts:
        trainer = RewardModelTrainer(engine, 0, 8, share_prompts)
        with torch.no_grad():
            scores, _ = trainer._scores(models, rankings)
        assert scores[0].tolist() == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        ids = torch.tensor([[8, 31, 32, 33]])
        values = roles(ScalarQuery(Role.REWARD, ids, torch.ones_like(ids)))
    assert float(scores[1, 1]) == pytest.approx(float(values[0, 1:].mean()), abs=1e-5)


def test_the_head_says_how_it_is_read(pooled: Path, trained_run: Path) -> None:
    for run_dir, expected in ((pooled, {"pooling": "mean"}), (trained_run, None)):
        with safe_open(run_dir / "rm" / "adapter" / "head.safetensors", "pt") as head:
            assert head.metadata() == expected
    loaded = load_policies(open_run(pooled), Adapters({}, pooled / "rm" / "adapter"), this_process())
    assert loaded.models.reward_base.head(Role.REWARD).pooling == "mean"


def test_it_trains_another_reward_model_and_ppo_scores_with_it(pooled: Path, trained_run: Path) -> None:
    ours, theirs = (metrics(run / "rm" / "manifest.json") for run in (pooled, trained_run))
    assert ours["eval_loss"] != theirs["eval_loss"]
    assert "rm_score_ppo" in metrics(pooled / "ppo" / "manifest.json")


def test_a_classifier_cannot_read_it(pooled: Path, tmp_path: Path) -> None:
    order = Export(open_run(pooled), "rm", say=lambda line: None)
    with pytest.raises(
        UserError, match=r"a sequence classifier reads one token\. Export with --format adapter"
    ):
        write_export(order, "reward", tmp_path / "out", overwrite=False)
    assert not (tmp_path / "out").exists()


def test_a_run_that_starts_from_it_names_the_same(pooled: Path, trained_run: Path, tmp_path: Path) -> None:
    start = f"rm.from={pooled / 'rm' / 'adapter'}"
    refused = run_stage("rm", copy_upstream(trained_run, "rm", tmp_path / "last"), start, status=2)
    assert "rm.pooling is last. Set rm.pooling to mean." in refused.stdout
    run_stage("rm", copy_upstream(trained_run, "rm", tmp_path / "mean"), start, MEAN, "rm.max_steps=0")


def test_metadata_that_nobody_wrote_is_refused(pooled: Path, trained_run: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    shutil.copytree(pooled / "rm" / "adapter", folder)
    save_file(load_file(folder / "head.safetensors"), folder / "head.safetensors", {"pooling": "max"})
    run_dir = copy_upstream(trained_run, "rm", tmp_path / "run")
    refused = run_stage("rm", run_dir, f"rm.from={folder}", status=2)
    assert "pooling is 'max', and must be last or mean" in refused.stdout
