"""`tristage evaluate rm`: scores as their owners compute them, and figures of public data as it comes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from apps.evaluate.reward_models.opening import HowRead, open_scorer, run_of
from apps.export.export import write_export
from apps.export.formats import Export
from apps.trained_run import open_run
from data.storage.files import read_json_lines
from tests.contract.bad_inputs.entry import tristage, write_rows
from tests.support.docs_pages import blocks
from tests.support.starts import train_with_trl
from tests.support.turns import assistant, user
from tests.unit.data.sources.test_published import (
    LLMBAR,
    MT_BENCH,
    PANDALM,
    REWARD_BENCH,
    REWARD_BENCH_2,
    ULTRAFEEDBACK,
    changed,
)

COMPLETIONS = ["I am so sorry about your hat", "Hats are lost all the time", "No."]


@pytest.fixture(scope="module")
def classifier(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    order = Export(open_run(trained_run), "rm", say=lambda line: None)
    return write_export(order, "reward", tmp_path_factory.mktemp("exports") / "rm", overwrite=False)


@pytest.fixture(scope="module")
def by_trl(tiny_folder: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_with_trl(tiny_folder, tiny_tokenizer, tmp_path_factory.mktemp("trl"))


def row(prompt: Any, completions: list[Any] | None = None) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "completions": completions or COMPLETIONS,
        "ranks": [0, 1, 2],
        "where": f"the row {prompt!r:.20}",
    }


def evaluated(tmp_path: Path, rows: list[dict[str, Any]], *options: str | Path) -> tuple[dict[str, Any], str]:
    """The figures of `evaluation.json`, and what was printed."""
    file, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    status, printed, error = tristage("evaluate", "rm", "--data", file, "--out", out, *options)
    assert status == 0, error
    assert (out / "index.html").is_file() and (out / "reward-model.png").is_file()
    figures: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return figures, printed


@pytest.mark.parametrize("chat", [True, False])
def test_a_classifier_scores_as_the_pipeline_of_transformers_does(classifier: Path, chat: bool) -> None:
    """Texts of different lengths, which are padded and scored in another order."""
    (scored,) = open_scorer(str(classifier), None, HowRead(chat=chat)).score([row("I lost my red hat.")])
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    if chat:
        texts = [
            tokenizer.apply_chat_template([user("I lost my red hat."), assistant(answer)], tokenize=False)
            for answer in COMPLETIONS
        ]
    else:
        texts = [f"I lost my red hat.{answer}{tokenizer.eos_token}" for answer in COMPLETIONS]
    model = AutoModelForSequenceClassification.from_pretrained(classifier, dtype=torch.float32)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    expected = [
        output["score"] for output in classify(texts, function_to_apply="none", add_special_tokens=not chat)
    ]
    assert scored.rewards == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3 and scored.nats == []


def test_a_bert_reads_a_pair_of_texts_as_the_pipeline_does(bert: Path) -> None:
    (scored,) = open_scorer(str(bert), None, HowRead()).score(
        [row("is the cat here", ["yes", "no cat here", "the"])]
    )
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(bert))
    pairs = [{"text": "is the cat here", "text_pair": answer} for answer in ["yes", "no cat here", "the"]]
    expected = [classify(pair, function_to_apply="none")["score"] for pair in pairs]
    assert scored.rewards == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with one label, whose weights are random."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "the", "cat", "here", "yes", "no"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(words), num_labels=1, max_position_embeddings=64, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_run_scores_as_its_stage_did(trained_run: Path) -> None:
    """Its report holds the raw scores of the held-out rankings; the result is normalised."""
    held_out = read_json_lines(trained_run / "rm" / "evaluation.jsonl")
    metrics = json.loads((trained_run / "rm" / "manifest.json").read_text())["metrics"]
    rows = [row(one["prompt"], one["answers"]) | {"ranks": one["ranks"]} for one in held_out]
    scored = open_scorer(None, run_of(None, trained_run), HowRead()).score(rows)
    for one, expected in zip(scored, held_out, strict=True):
        raw = [reward * metrics["score_std"] + metrics["score_mean"] for reward in one.rewards]
        assert raw == pytest.approx(expected["rewards"], abs=1e-4)
        assert one.nats == pytest.approx(expected["nats"], abs=1e-4)
        assert one.lengths == expected["lengths"]


def test_trl_s_adapter_scores_as_its_classifier(by_trl: Path, tiny_folder: Path, tiny_tokenizer: Any) -> None:
    (scored,) = open_scorer(str(by_trl), None, HowRead()).score([row("Hi there.")])
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1, dtype=torch.float32)
    base.config.pad_token_id = tiny_tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base, str(by_trl)).eval()
    expected = []
    for answer in COMPLETIONS:
        turns = [user("Hi there."), assistant(answer)]
        ids = tiny_tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            expected.append(float(model(input_ids=ids).logits))
    assert scored.rewards == pytest.approx(expected, abs=1e-5)
    assert all(nats < 0 for nats in scored.nats), "the base is a language model"


def test_our_adapter_anywhere_is_the_run_s(trained_run: Path, tmp_path: Path) -> None:
    copy = write_export(
        Export(open_run(trained_run), "rm", say=lambda line: None),
        "adapter",
        tmp_path / "rm",
        overwrite=False,
    )
    rows = [row("I lost my red hat.")]
    of_run = open_scorer(None, run_of(str(trained_run / "rm" / "adapter"), None), HowRead()).score(rows)
    of_copy = open_scorer(str(copy), run_of(str(copy), None), HowRead(chat=True, max_length=128)).score(rows)
    assert of_run == of_copy


def test_reward_bench_has_its_sections(trained_run: Path, classifier: Path, tmp_path: Path) -> None:
    subsets = ["alpacaeval-easy", "math-prm", "hep-python", "hep-rust"]
    rows = [
        changed(REWARD_BENCH, prompt=f"Is {number} + 2 {subset}?", subset=subset)
        for subset in subsets
        for number in range(6)
    ]
    figures, printed = evaluated(tmp_path, rows, "--rm", classifier)
    of, sections = figures["subsets"], figures["sections"]
    assert of.keys() == {*subsets, "all"} and of["all"]["accuracy"]["n"] == 24
    assert sections.keys() == {"Chat", "Reasoning", "all sections"}
    value = {name: one["accuracy"]["value"] for name, one in of.items()}
    code = (value["hep-python"] + value["hep-rust"]) / 2
    assert sections["Reasoning"]["value"] == pytest.approx((value["math-prm"] + code) / 2)
    assert "likelier" not in figures["baselines"] and "bag of words" in figures["baselines"]
    assert "Better than simple rules?" in printed and "all sections" in printed


def test_reward_bench_2_has_the_best_of_n(classifier: Path, tmp_path: Path) -> None:
    rows = [
        changed(
            REWARD_BENCH_2,
            prompt=f"Name colour {number}.",
            chosen=["Red."],
            num_correct=1,
            total_completions=4,
            subset="Focus",
        )
        for number in range(6)
    ]
    ties = [
        changed(
            REWARD_BENCH_2, prompt=f"Name a colour: {kind} {number}.", subset="Ties", id=f"{kind}:{number}"
        )
        for number, kinds in enumerate([["ref", "tied"], ["ref", "tied"], ["tied"]])
        for kind in kinds
    ]
    figures, printed = evaluated(tmp_path, rows + ties, "--rm", classifier)
    ranked = read_json_lines(tmp_path / "out" / "evaluation.jsonl")
    best = [max(range(4), key=lambda place: one["rewards"][place]) == 0 for one in ranked[:6]]
    assert figures["subsets"]["Focus"]["best_of_n"]["value"] == sum(best) / 6
    sections = figures["sections"]
    assert {name: one["n"] for name, one in sections.items()} == {"Focus": 6, "Ties": 2, "all subsets": 8}
    assert sections["all subsets"]["value"] == pytest.approx((sum(best) / 6 + sections["Ties"]["value"]) / 2)
    assert "Ties: 1 of 5 rows have no partner" in printed


def test_ties_of_pandalm_are_left_out_and_told(classifier: Path, tmp_path: Path) -> None:
    tie = changed(PANDALM, annotator1=1, annotator2=2, annotator3=0)
    figures, printed = evaluated(
        tmp_path, [PANDALM, tie, changed(PANDALM, instruction="Again.")], "--rm", classifier
    )
    assert figures["rows"] | {"rows_read": 3, "rows_left_out": 1, "rows_scored": 2} == figures["rows"]
    assert "left out 1 of 3 rows" in printed and "all completions tie" in printed
    assert any("all completions tie" in note for note in figures["notes"])


def test_judgements_of_one_prompt_are_one_prompt(classifier: Path, tmp_path: Path) -> None:
    """MT-Bench has dozens of judgements of each question; their interval is over questions."""
    rows = [changed(MT_BENCH, judge=f"expert_{number}") for number in range(5)]
    figures, _ = evaluated(tmp_path, rows, "--rm", classifier)
    assert figures["accuracy"]["n"] == figures["rows"]["prompts"] == 1
    assert figures["pairs"] == figures["rows"]["rows_scored"] == 5


def test_the_agreement_of_pandalm_s_annotators_bounds_the_accuracy(classifier: Path, tmp_path: Path) -> None:
    """Of each second row, two of three votes agree in one pair of three; of the others, in all."""
    rows = [
        changed(PANDALM, instruction=f"Correct {number}.", annotator3=1 + number % 2) for number in range(12)
    ]
    figures, printed = evaluated(tmp_path, rows, "--rm", classifier)
    agreement, ceiling = figures["votes"]["agreement"], figures["votes"]["ceiling"]
    assert agreement["value"] == pytest.approx((1 / 3 + 1) / 2) and agreement["n"] == 12
    assert agreement["low"] < agreement["value"] < ceiling["value"] < 1
    assert "two annotators agree on 0.667" in printed and "The labels are their majorities." in printed
    assert figures["agreement"] is None, "the labels are not those of one person"


def test_the_agreement_of_mt_bench_s_judges_bounds_the_accuracy(classifier: Path, tmp_path: Path) -> None:
    """Two judges agree about each second question."""
    rows = []
    for number in range(12):
        question = user(f"Name river {number}.")
        of_question = changed(
            MT_BENCH,
            conversation_a=[question, assistant("A river.")],
            conversation_b=[question, assistant("The Rhine.")],
        )
        other = "model_a" if number % 2 else "model_b"
        rows += [of_question, changed(of_question, judge="expert_1", winner=other)]
    figures, printed = evaluated(tmp_path, rows, "--rm", classifier)
    assert figures["agreement"]["value"] == 0.5 and figures["agreement"]["n"] == 12
    assert figures["ceiling"]["high"] > figures["ceiling"]["value"] == 0.5
    assert figures["between"] == "two people" and "As good as people agree?" in printed
    few, _ = evaluated(tmp_path, rows[:6], "--rm", classifier)
    assert few["agreement"] is None, "three prompts tell nothing"


def test_the_files_of_llmbar_are_subsets(classifier: Path, tmp_path: Path) -> None:
    for name in ("Natural", "Adversarial/Manual"):
        folder = tmp_path / "LLMBar" / name
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps([LLMBAR, changed(LLMBAR, input="Name another.")]))
    pattern = tmp_path / "LLMBar" / "**" / "dataset.json"
    status, _, error = tristage(
        "evaluate", "rm", "--data", pattern, "--rm", classifier, "--out", tmp_path / "out"
    )
    assert status == 0, error
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert figures["subsets"].keys() == {"Natural", "Adversarial/Manual", "all"}


def test_what_the_run_was_trained_on_is_left_out(trained_run: Path, tmp_path: Path) -> None:
    """All prompts of the file, of which stage rm holds out 8 and trains on others."""
    rows = read_json_lines(Path("data/samples/tiny.jsonl"))
    metrics = json.loads((trained_run / "rm" / "manifest.json").read_text())["metrics"]
    figures, printed = evaluated(tmp_path, rows, "--run-dir", trained_run)
    assert figures["rows"]["rows_scored"] == len(rows) - metrics["examples"]
    assert (
        f"left out {metrics['examples']:.0f} rows: the reward model was trained on their prompts" in printed
    )


def test_the_page_s_command_renames_columns(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose names are no keys of the formats are ranked as the same rows with those keys are."""
    (command,) = (
        block.text for block in blocks("sh", "guides/evaluate-reward-models.md") if "--columns" in block.text
    )
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "answers.csv"
    file.write_text("question,good,bad\nName a prime.,Seven.,Nine.\nName a river.,The Rhine.,Rome.\n")
    words = shlex.split(command)
    status, _, error = tristage(*words[1:], "--rm", classifier)
    assert status == 0, error
    renamed = read_json_lines(Path("evaluation-rm/evaluation.jsonl"))
    rows = [
        {"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Nine."},
        {"prompt": "Name a river.", "chosen": "The Rhine.", "rejected": "Rome."},
    ]
    evaluated(tmp_path, rows, "--rm", classifier)
    assert renamed == read_json_lines(tmp_path / "out/evaluation.jsonl")


def test_ultrafeedback_is_ranked_by_what_the_option_says(classifier: Path, tmp_path: Path) -> None:
    """By the aspects, “Paris, on the Seine.” leads; by the overall score, “Paris.” (see `test_published`)."""
    first = []
    for options in ([], ["--rank-by", "aspects"]):
        evaluated(tmp_path, [ULTRAFEEDBACK], "--rm", classifier, *options)
        first.append(read_json_lines(tmp_path / "out/evaluation.jsonl")[0]["answers"][0])
    assert first == ["Paris.", "Paris, on the Seine."]


def test_a_folder_and_a_revision_reach_the_hub(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def load(path: str, name: str | None, **options: Any) -> datasets.Dataset:
        asked.update(options, path=path)
        return datasets.Dataset.from_list([REWARD_BENCH])

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = ("--data", "a/pairs", "--data-dir", "harmless", "--revision", "v2")
    status, _, error = tristage("evaluate", "rm", *hub, "--out", tmp_path / "out", "--rm", classifier)
    assert status == 0, error
    assert asked["path"] == "a/pairs" and (asked["data_dir"], asked["revision"]) == ("harmless", "v2")
