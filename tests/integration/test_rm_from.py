"""`rm.from`: the reward model starts from one that TRL, PEFT or another run made, or is used as it is."""

from __future__ import annotations

import copy
import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from apps.export.export import write_export
from apps.export.formats import Export
from apps.trained_run import open_run
from configs.load import load_experiment
from data.batches import tokenize
from stages.distributed.ranks import Ranks
from stages.feedback.reward_model import classifier_ending, score_tokens
from stages.feedback.reward_training import RewardModelTrainer
from stages.models.queries import ScalarQuery
from stages.models.roles import Role
from stages.models.start_adapters import add_start
from tests.support.roles import CPU, models_of, tiny_roles
from tests.support.runs import (
    KILLED_STAGE,
    TINY,
    assert_same_result,
    copy_upstream,
    metrics,
    rows,
    run_stage,
    stage_arguments,
    start_warm,
)
from tests.support.starts import train_with_trl

ADAPTER, HEAD = "adapter_model.safetensors", "head.safetensors"
SCORE = "base_model.model.score.weight"
NO_LINE_BREAK = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
AS_IT_IS = "rm.max_steps=0"


@pytest.fixture(scope="module")
def by_trl(tiny_folder: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_with_trl(tiny_folder, tiny_tokenizer, tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="module")
def untrained(by_trl: Path, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose reward model is TRL's, as it is."""
    run_dir = copy_upstream(trained_run, "rm", tmp_path_factory.mktemp("run"))
    run_stage("rm", run_dir, f"rm.from={by_trl}", AS_IT_IS)
    return run_dir


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the adapter, without the head."""
    return {name: tensor for name, tensor in load_file(folder / ADAPTER).items() if name != SCORE}


def test_scores_are_those_of_the_classifier(by_trl: Path, tiny_folder: Path) -> None:
    roles = tiny_roles(quantization="none")
    add_start(roles, Role.REWARD, "rm.from", by_trl, trainable=False)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1, dtype=torch.float32)
    classifier = PeftModel.from_pretrained(base, str(by_trl)).eval()
    ids = torch.arange(10, 90).view(4, 20)
    with torch.no_grad():
        scores = roles.eval()(ScalarQuery(Role.REWARD, ids, torch.ones_like(ids)))
        torch.testing.assert_close(scores[:, -1:], classifier(input_ids=ids).logits)
    head: Any = roles.heads[Role.REWARD]
    assert head.bias.item() == 0


@pytest.mark.parametrize("padded_with_the_end", [False, True])
def test_a_conversation_has_the_score_that_trl_trains(
    by_trl: Path, tiny_folder: Path, tiny_tokenizer: Any, padded_with_the_end: bool
) -> None:
    """RewardTrainer renders a conversation whole; its classifier reads the last token that is not padding.

    The template writes a line break after the end of a turn. Without that, an end that pads is not read.
    """
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if padded_with_the_end:
        tokenizer.pad_token, tokenizer.chat_template = tokenizer.eos_token, NO_LINE_BREAK
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1, dtype=torch.float32)
    base.config.pad_token_id = tokenizer.pad_token_id
    classifier = PeftModel.from_pretrained(base, str(by_trl)).eval()
    answers = ["The cat is here.", "No.", "I like warm tea."]
    expected = []
    for answer in answers:
        turns = [{"role": "user", "content": "Hi there."}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            expected.append(float(classifier(input_ids=ids).logits))

    roles = tiny_roles(quantization="none").eval()
    add_start(roles, Role.REWARD, "rm.from", by_trl, trainable=False)
    roles.head(Role.REWARD).ending = classifier_ending(tokenizer, chat=True)
    models, data = models_of(roles, tokenizer), load_experiment(TINY).data
    rows = [tokenize.answer("Hi there.", answer, True, tokenizer, data) for answer in answers]
    assert score_tokens(models, rows, CPU).tolist() == pytest.approx(expected, abs=1e-5)
    engine: Any = SimpleNamespace(models=models, ranks=Ranks(0, 1, CPU))
    ranking = tokenize.Ranking("Hi there.", rows[0][0], [ids for _, ids in rows], [0, 1, 2])
    for share_prompts in (True, False):
        trainer = RewardModelTrainer(engine, tokenizer.pad_token_id, 4, share_prompts)
        with torch.no_grad():
            (scores,), _ = trainer._scores(models, [[ranking]])
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_without_steps_it_is_evaluated_and_normalised(untrained: Path, by_trl: Path) -> None:
    figures, result = metrics(untrained / "rm/manifest.json"), untrained / "rm/adapter"
    assert figures["steps"] == 0 and figures["accuracy_n"] == 8
    before, after = weights(by_trl), weights(result)
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    head, mean, deviation = load_file(result / HEAD), figures["score_mean"], figures["score_std"]
    torch.testing.assert_close(head["weight"] * deviation, load_file(by_trl / ADAPTER)[SCORE])
    assert head["bias"].item() == pytest.approx(-mean / deviation, rel=1e-5)
    assert [row["step"] for row in rows(untrained / "rm/metrics.jsonl")] == [0], "one evaluation"


def test_what_is_read_stays_with_the_head(untrained: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """In the run's adapter, in a run that starts from it, and in a classifier that is exported."""
    end, line_break = tiny_tokenizer("<|im_end|>\n")["input_ids"]
    expected = {"end": str(end), "read": f"{end} {line_break}"}
    with safe_open(untrained / "rm/adapter" / HEAD, "pt") as head:
        assert head.metadata() == expected
    run_dir = copy_upstream(untrained, "rm", tmp_path / "run")
    run_stage("rm", run_dir, f"rm.from={untrained / 'rm/adapter'}", AS_IT_IS)
    with safe_open(run_dir / "rm/adapter" / HEAD, "pt") as head:
        assert head.metadata() == expected
    assert (
        metrics(run_dir / "rm/manifest.json")["accuracy"]
        == metrics(untrained / "rm/manifest.json")["accuracy"]
    )
    order = Export(open_run(untrained), "rm", say=lambda line: None)
    classifier = write_export(order, "reward", tmp_path / "classifier", overwrite=False)
    assert json.loads((classifier / "export.json").read_text())["figures"]["largest"] < 1e-4
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    text = AutoTokenizer.from_pretrained(classifier).apply_chat_template(turns, tokenize=False)
    assert text.endswith("Hello.<|im_end|>\n")


def test_the_manifest_has_its_digest(untrained: Path) -> None:
    assert len(json.loads((untrained / "rm/manifest.json").read_text())["sources"]["rm.from"]) == 64


def test_ppo_trains_against_it(untrained: Path, by_trl: Path) -> None:
    run_stage("ppo", untrained, f"rm.from={by_trl}", AS_IT_IS, "ppo.iterations=1")
    assert {"rm_score_sft", "rm_score_ppo"} <= metrics(untrained / "ppo/manifest.json").keys()


def test_training_continues_from_it(by_trl: Path, trained_run: Path, tmp_path: Path) -> None:
    run_dir = copy_upstream(trained_run, "rm", tmp_path / "run")
    output = run_stage("rm", run_dir, f"rm.from={by_trl}", "rm.max_steps=2").stdout
    before, after = weights(by_trl), weights(run_dir / "rm/adapter")
    steps = [float((after[name] - before[name]).abs().max()) for name in before]
    assert min(steps) > 0 and max(steps) < 0.01
    assert "adapter.target_modules is not used" in output
    assert "rm.from: the score of an answer is read after '<|im_end|>\\n', as the classifier does" in output


def test_killed_and_resumed_is_as_if_never_killed(by_trl: Path, trained_run: Path, tmp_path: Path) -> None:
    override, runs = f"rm.from={by_trl}", [tmp_path / name for name in ("whole", "killed")]
    for run_dir in runs:
        copy_upstream(trained_run, "rm", run_dir)
    run_stage("rm", runs[0], override)
    killed = start_warm([KILLED_STAGE, "3", *stage_arguments("rm", runs[1], override)])
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert "resumes from step-000002" in run_stage("rm", runs[1], override).stdout
    assert_same_result(runs[1] / "rm", runs[0] / "rm")


def test_a_reward_model_of_another_run_ranks_as_it_did_there(trained_run: Path, tmp_path: Path) -> None:
    """Its scores have mean 0 and deviation 1 already, so normalising them again changes little."""
    run_dir = copy_upstream(trained_run, "rm", tmp_path / "run")
    run_stage("rm", run_dir, f"rm.from={trained_run / 'rm/adapter'}", AS_IT_IS)
    there, here = (metrics(path / "rm/manifest.json") for path in (trained_run, run_dir))
    assert here["accuracy"] == there["accuracy"]
    assert here["margin"] == pytest.approx(there["margin"] / there["score_std"], rel=1e-4)
    assert here["score_mean"] == pytest.approx(0, abs=1e-5)
    assert here["score_std"] == pytest.approx(1, rel=1e-5)
    for name, tensor in load_file(trained_run / "rm/adapter" / HEAD).items():
        torch.testing.assert_close(
            load_file(run_dir / "rm/adapter" / HEAD)[name], tensor, rtol=1e-4, atol=1e-5
        )


def test_a_folder_that_changed_is_noticed(by_trl: Path, trained_run: Path, tmp_path: Path) -> None:
    run_dir, copy = copy_upstream(trained_run, "rm", tmp_path / "run"), tmp_path / "copy"
    shutil.copytree(by_trl, copy)
    run_stage("rm", run_dir, f"rm.from={copy}", AS_IT_IS)
    assert "finished with this" in run_stage("rm", run_dir, f"rm.from={copy}", AS_IT_IS).stdout
    (copy / "README.md").write_text("another")
    output = run_stage("rm", run_dir, f"rm.from={copy}", AS_IT_IS).stdout
    assert "finished, but these changed: rm.from: the file's content is not what it was" in output
