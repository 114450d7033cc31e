"""Mistakes with `tristage evaluate rm`: each is told, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.contract.bad_inputs.entry import check_message, tristage, write_rows
from tests.unit.data.sources.test_published import REWARD_BENCH, changed

PAIR = {"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Nine."}


def refused(tmp_path: Path, *arguments: str | Path) -> str:
    """The message with which the command refuses. It writes nothing."""
    out = tmp_path / "out"
    status, _, error = tristage("evaluate", "rm", *arguments, "--out", out)
    assert status == 2 and not out.exists(), error
    return error


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", [PAIR])


@pytest.fixture(scope="module")
def classifiers(tiny_folder: Path, tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifiers with one label, with two, and with a weight that is missing."""
    root = tmp_path_factory.mktemp("classifiers")
    for labels in (1, 2):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            tiny_folder, num_labels=labels, dtype=torch.float32
        )
        model.save_pretrained(root / f"labels-{labels}")
        tiny_tokenizer.save_pretrained(root / f"labels-{labels}")
    headless = root / "headless"
    shutil.copytree(tiny_folder, headless)
    config = json.loads((headless / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    config |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}
    (headless / "config.json").write_text(json.dumps(config))
    return root


def test_without_data(tmp_path: Path, trained_run: Path) -> None:
    check_message(refused(tmp_path, "--run-dir", trained_run), "--data", "name the preferences")


def test_a_file_that_is_not_there(tmp_path: Path, trained_run: Path) -> None:
    error = refused(tmp_path, "--data", "nowhere.jsonl", "--run-dir", trained_run)
    check_message(error, "nowhere.jsonl: there is no such file")


def test_a_split_of_a_file(tmp_path: Path, pairs: Path, trained_run: Path) -> None:
    error = refused(tmp_path, "--data", pairs, "--split", "test", "--run-dir", trained_run)
    check_message(error, "split is of hub datasets", "leave it out")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--columns", "question"], ["--columns: 'question' is not KEY=NAME"]),
        (["--columns", "prompt=question,"], ["--columns: '' is not KEY=NAME"]),
        (["--columns", "promt=question"], ["--columns: 'promt' is no key of the formats", "prompt, "]),
        (["--columns", "prompt=a,prompt=b"], ["--columns: prompt is there twice"]),
        (["--columns", "prompt=a,chosen=a"], ["--columns: 'a' is read as two keys"]),
        (["--columns", "prompt=question"], ["`columns` names `question`, which no row has"]),
        (["--columns", "prompt=a", "--ignore", "a"], ["'a' stands in columns and in ignore_columns"]),
        (["--rank-by", "aspects"], ["`rank_by` is of UltraFeedback, and the row is a preference"]),
        (["--rank-by", "aspects", "--format", "llmbar"], ["rank_by is of UltraFeedback, and format is"]),
        (["--data-dir", "harmless"], ["data_dir is of hub datasets", "leave it out"]),
        (["--revision", "v2"], ["revision is of hub datasets", "leave it out"]),
    ],
)
def test_options_that_a_source_refuses(
    options: list[str], parts: list[str], tmp_path: Path, pairs: Path, trained_run: Path
) -> None:
    check_message(refused(tmp_path, "--data", pairs, *options, "--run-dir", trained_run), *parts)


def test_rows_that_are_no_preferences(tmp_path: Path, trained_run: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Hi.", "completion": "Hello."}])
    error = refused(tmp_path, "--data", file, "--run-dir", trained_run)
    check_message(error, "rows.jsonl", "cannot serve as rankings")


def test_a_subset_key_that_no_row_has(tmp_path: Path, pairs: Path, trained_run: Path) -> None:
    error = refused(tmp_path, "--data", pairs, "--by", "section", "--run-dir", trained_run)
    check_message(error, "--by section", "no row", "Name another")


def test_nothing_but_training_prompts(tmp_path: Path, trained_run: Path) -> None:
    rows = [json.loads(line) for line in Path("data/samples/tiny.jsonl").read_text().splitlines()]
    held_out = {
        json.loads(line)["prompt"] for line in (trained_run / "rm/evaluation.jsonl").read_text().splitlines()
    }
    from apps.evaluate.reward_models.rows import _trained_prompts
    from apps.trained_run import open_run

    trained = _trained_prompts(open_run(trained_run))
    assert trained and not trained & held_out
    file = write_rows(tmp_path / "rows.jsonl", [row for row in rows if row["prompt"] in trained])
    check_message(refused(tmp_path, "--data", file, "--run-dir", trained_run), "was trained on all")


def test_rows_that_are_too_long(tmp_path: Path, pairs: Path, trained_run: Path) -> None:
    error = refused(tmp_path, "--data", pairs, "--run-dir", trained_run, "--max-length", "4")
    check_message(error, "none of the 1 rankings fits", "Raise --max-length")


def test_a_run_whose_reward_model_has_not_finished(tmp_path: Path, pairs: Path, trained_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("rm"))
    error = refused(tmp_path, "--data", pairs, "--rm", run)
    check_message(error, "stage rm has not finished")


@pytest.mark.parametrize(
    ("folder", "parts"),
    [
        ("labels-2", ["its head has 2 labels, and a reward model has 1", "num_labels=1"]),
        ("headless", ["weights of its config.json are missing: score.weight"]),
        ("absent", ["there is no such folder"]),
        (".", ["neither a run", "nor an adapter", "nor a model"]),
    ],
)
def test_no_reward_model(
    folder: str, parts: list[str], tmp_path: Path, pairs: Path, classifiers: Path
) -> None:
    error = refused(tmp_path, "--data", pairs, "--rm", classifiers / folder)
    check_message(error, "--rm", *parts)


def test_a_language_model_is_no_reward_model(tmp_path: Path, pairs: Path, tiny_folder: Path) -> None:
    error = refused(tmp_path, "--data", pairs, "--rm", tiny_folder)
    check_message(error, str(tiny_folder), "LlamaForCausalLM", "a sequence classifier with one label")


def test_an_adapter_of_a_policy_is_no_reward_model(tmp_path: Path, pairs: Path, trained_run: Path) -> None:
    copy = tmp_path / "sft"
    shutil.copytree(trained_run / "sft" / "adapter", copy)
    error = refused(tmp_path, "--data", pairs, "--rm", copy)
    check_message(error, str(copy), "has no head.safetensors, so it is no reward model")


def test_the_quantization_of_a_run(tmp_path: Path, pairs: Path, trained_run: Path) -> None:
    error = refused(tmp_path, "--data", pairs, "--run-dir", trained_run, "--quantization", "none")
    check_message(error, "--quantization", "Leave the option out")


def test_weights_that_are_a_pickle(tmp_path: Path, pairs: Path, classifiers: Path) -> None:
    copy = tmp_path / "pickle"
    shutil.copytree(classifiers / "labels-1", copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    check_message(refused(tmp_path, "--data", pairs, "--rm", copy), "--rm", "a pickle")


def test_a_damaged_weight(tmp_path: Path, pairs: Path, classifiers: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "damaged"
    shutil.copytree(classifiers / "labels-1", copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["score.weight"][0, 0] = float("nan")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    check_message(refused(tmp_path, "--data", pairs, "--rm", copy), "--rm", "score.weight", "NaN")


def test_a_row_that_is_wrong(tmp_path: Path, trained_run: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [changed(REWARD_BENCH, chosen=7)])
    check_message(refused(tmp_path, "--data", file, "--run-dir", trained_run), "rows.jsonl", "chosen")


def test_two_reward_models(tmp_path: Path, pairs: Path, trained_run: Path, classifiers: Path) -> None:
    error = refused(tmp_path, "--data", pairs, "--rm", classifiers / "labels-1", "--run-dir", trained_run)
    check_message(error, "--rm: it names the reward model", "Leave the YAML, --run-dir")


def test_a_word_that_changes_nothing(tmp_path: Path, pairs: Path, trained_run: Path) -> None:
    error = refused(tmp_path, "--data", pairs, "--run-dir", trained_run, "data.max_length=127")
    check_message(error, "data.max_length=127", "was trained with 128", "tristage evaluate rm")
