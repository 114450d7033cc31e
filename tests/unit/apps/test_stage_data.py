"""What a run was trained on tells how it is used: the form of its prompts, its data, its chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from apps.stage_data import prompts_are_chats
from apps.trained_run import Adapters, held_out_prompts, load_policies, open_run, this_process
from configs.load import dump_experiment, load_experiment
from configs.schema import Stage
from pipeline.state.manifest import read_manifest, source_hashes
from pipeline.state.run_directory import RunDirectory
from tests.support.pipeline_runs import toy

TURN = [{"role": "user", "content": "Hi."}]
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}{% if "
TEMPLATE += "add_generation_prompt %}[assistant] {% endif %}"


def change(run: Path, stage: Stage, **fields: Any) -> None:
    path = RunDirectory(run).manifest(stage)
    manifest = read_manifest(path)
    assert manifest is not None
    manifest.model_copy(update=fields).write(path)


def rows(file: Path, prompt: Any) -> str:
    completions = ["a", "b"]
    file.write_text(json.dumps({"prompt": prompt, "completions": completions, "ranks": [0, 1]}) + "\n")
    return str(file)


@pytest.mark.parametrize("chat", [True, False])
def test_the_stages_say_whether_prompts_are_chats(text_run_dir, tmp_path, chat) -> None:
    copy = shutil.copytree(text_run_dir, tmp_path / "run")
    change(copy, "sft", chat=not chat)
    assert open_run(copy).chat is not chat
    change(copy, "ppo", chat=chat)
    assert open_run(copy).chat is chat


@pytest.mark.parametrize(("prompt", "chat"), [("Hi.", False), (TURN, True)])
def test_without_that_the_rows_tell(tmp_path, prompt, chat) -> None:
    run = RunDirectory(tmp_path)
    gone = {"path": str(tmp_path / "gone.jsonl")}
    local = toy(data__ppo=gone, data__sft=gone, data__rm={"path": rows(tmp_path / "rm.jsonl", prompt)})
    assert prompts_are_chats(run, local, {}) is chat
    hub = {"path": "owner/name", "split": "train"}
    nowhere = toy(data__ppo=hub, data__sft=hub, data__rm=gone)
    run.stage("rm").mkdir()
    rows(run.stage("rm") / "rankings.jsonl", prompt)
    assert prompts_are_chats(run, nowhere, {}) is chat


def test_what_is_assumed_is_told(tmp_path, capsys) -> None:
    hub = {"path": "owner/name", "split": "train"}
    assert not prompts_are_chats(RunDirectory(tmp_path), toy(data__sft=hub, data__rm=hub, data__ppo=hub), {})
    assert "does not tell whether its prompts are conversations" in capsys.readouterr().err


def test_data_that_has_changed_is_told(run_dir, tmp_path, capsys, tiny_tokenizer) -> None:
    copy, file = shutil.copytree(run_dir, tmp_path / "run"), tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Say {number}."}) + "\n" for number in range(20)))
    config = load_experiment(copy / "config.yaml", [f"data.ppo.path={file}", "data.shares=null"])
    (copy / "config.yaml").write_text(dump_experiment(config))
    change(copy, "ppo", sources=source_hashes(config, "ppo"))
    held_out_prompts(open_run(copy), tiny_tokenizer, print)
    assert "note:" not in capsys.readouterr().err
    file.write_text(file.read_text() + '{"prompt": "Say more."}\n')
    held_out_prompts(open_run(copy), tiny_tokenizer, print)
    assert "note: stage ppo: data.ppo.path: the file's content is not" in capsys.readouterr().err


def test_a_template_is_that_of_the_training(run_dir, tmp_path) -> None:
    copy, file = shutil.copytree(run_dir, tmp_path / "run"), tmp_path / "template.jinja"
    (copy / "sft/adapter/chat_template.jinja").write_text(TEMPLATE)
    config = load_experiment(copy / "config.yaml").model_dump(mode="json")
    (copy / "config.yaml").write_text(
        json.dumps(config | {"data": config["data"] | {"chat_template": str(file)}})
    )
    for content in (TEMPLATE.replace("[assistant]", "[bot]"), None):
        file.write_text(content) if content else file.unlink()
        loaded = load_policies(open_run(copy), Adapters({"base": None}), this_process())
        assert loaded.tokenizer.chat_template == TEMPLATE
