"""What the card of an export says: the base that its commands load, whose text it is, and no path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from apps.export import usage
from apps.export.card import card
from apps.export.export import write_export
from apps.export.formats import Export, Format, _as_trained
from apps.trained_run import TrainedRun, open_run
from configs.schema import Stage
from pipeline.state.manifest import read_manifest
from pipeline.state.run_directory import RunDirectory
from tests.support.pipeline_runs import toy, write_stage
from tests.support.random_run import finished_run
from tests.unit.apps.test_stage_data import change


def export(run: TrainedRun, stage: Stage, form: Format, out: Path) -> str:
    """The card of an export."""
    order = Export(run, stage, say=lambda line: None)
    return (write_export(order, form, out, overwrite=False) / "README.md").read_text()


def toy_run(folder: Path, **changes) -> TrainedRun:
    """A run of which only SFT has finished."""
    config = toy(**changes)
    return TrainedRun(RunDirectory(folder), config, {"sft": write_stage(folder, "sft", config=config)})


def test_commands_load_the_embedded_base_and_not_the_model_that_it_was_made_of(tmp_path) -> None:
    run = toy_run(tmp_path, base__model="smollm2-135m-instruct")
    use = usage.adapter(run, "sft")
    assert "HuggingFaceTB" not in use
    assert "python -m stages.models.demo_models smollm2-135m-instruct" in use
    assert '"BASE_FOLDER", quantization_config' in use and "vllm serve BASE_FOLDER" in use
    text = card(run, "sft", use, "peft", [])
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in text  # its lineage
    assert "over `smollm2-135m-instruct`" in text


def test_commands_have_the_revision_and_the_dtype_of_the_training(tmp_path) -> None:
    run = toy_run(tmp_path, base__model="owner/base", base__revision="v2", base__compute_dtype="auto")
    change(tmp_path, "sft", compute_dtype="float32")
    manifest = read_manifest(RunDirectory(tmp_path).manifest("sft"))
    assert manifest is not None
    use = usage.adapter(TrainedRun(run.run, run.config, {"sft": manifest}), "sft")
    assert '"owner/base", revision="v2"' in use and 'dtype="float32"' in use
    assert "vllm serve owner/base --revision v2 --quantization" in use


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"base__quantization": "int8"}, "an int8 base"),
        ({"base__trust_remote_code": True}, "a base with its own code"),
        ({"adapter__target_modules": ["q_proj", "embed_tokens"]}, "an adapter on embeddings"),
        ({"adapter__dora": True}, "DoRA"),
        ({"adapter__r": 513}, "an adapter of rank 513"),
    ],
)
def test_what_vllm_would_run_as_another_model_is_no_command(tmp_path, changes, fault) -> None:
    """Of an int8 base, it would make one of 4 bits."""
    use = usage.adapter(toy_run(tmp_path, **changes), "sft")
    assert f"vLLM does not take {fault}. For vLLM, export with `--format merged`." in use
    assert "vllm serve" not in use


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (16, 16), (257, 320), (512, 512)])
def test_vllm_reserves_one_of_its_ranks(tmp_path, rank, room) -> None:
    assert f"--max-lora-rank {room} " in usage.adapter(toy_run(tmp_path, adapter__r=rank), "sft")


def test_vllm_needs_its_plugin_for_nf4(tmp_path) -> None:
    plain = usage.adapter(toy_run(tmp_path / "none", base__quantization="none"), "sft")
    assert "bitsandbytes" not in plain[plain.index("With vLLM:") :]
    assert "With vLLM and `vllm-bnb-plugin`" in usage.adapter(toy_run(tmp_path / "nf4"), "sft")


def test_an_export_computes_in_the_dtype_of_the_training(run_dir, tmp_path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    change(copy, "ppo", compute_dtype="bfloat16")
    assert _as_trained(open_run(copy), "ppo").config.base.compute_dtype == "bfloat16"
    assert _as_trained(open_run(copy), "sft").config.base.compute_dtype == "float32"


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_an_export_holds_no_path_of_this_machine(tiny_tokenizer, tiny_folder, tmp_path, stage) -> None:
    base = shutil.copytree(tiny_folder, tmp_path / "mine")
    run = open_run(finished_run(tmp_path / "run", tiny_tokenizer, f"base.model={base}"))
    export(run, stage, "adapter", tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "mine"
    assert json.loads((tmp_path / "out/export.json").read_text())["base"]["model"] == "mine"
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes(), file


def test_a_data_set_of_the_hub_keeps_its_owner(tmp_path) -> None:
    source = {"path": "owner/set", "split": "train"}
    text = card(toy_run(tmp_path, data__sft=source, data__chat=True), "sft", "", None, [])
    assert "- sft: `owner/set`" in text
    assert "library_name" not in text


def test_the_adapter_of_a_reward_model_is_described_as_one(run_dir, tmp_path) -> None:
    text = export(open_run(run_dir), "rm", "adapter", tmp_path / "rm-adapter")
    assert "library_name: peft" in text and "pipeline_tag: text-classification" in text
    assert "score = weight · h + bias" in text
    assert "tristage evaluate rm --rm rm-adapter --data" in text
    assert "--enable-lora" not in text and "temperature" not in text


def test_the_adapter_of_an_ensemble_names_its_members(run_dir) -> None:
    text = usage.reward_adapter(open_run(run_dir), "mean", 3)
    assert "`member-2` to `member-3`" in text and "mean over these tokens" in text


@pytest.mark.parametrize(
    ("chat", "command"),
    [(True, "llama-cli -m a.gguf --jinja`"), (False, 'llama-completion -m a.gguf -no-cnv -p "..."`')],
)
def test_llama_cpp_continues_a_text_without_a_conversation(tmp_path, chat, command) -> None:
    assert command in usage.gguf(toy_run(tmp_path, data__chat=chat), "a.gguf", None)
