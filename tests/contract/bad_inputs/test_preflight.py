"""What is wrong with a later stage is an error before the first one trains, and nothing is written."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.load import load_experiment
from data import examples
from data.sources import loading
from stages import preflight
from tests.contract.bad_inputs.entry import (
    GOOD,
    SHORT,
    check_message,
    files,
    stage_run,
    trial,
    tristage,
    write_rows,
)
from tests.contract.bad_inputs.model_damage import damaged, edit
from tests.support.pipeline_runs import write_stage

pytestmark = pytest.mark.usefixtures("material_checks")
BAD_ROWS: dict[str, list[dict[str, Any]]] = {
    "ppo": [{"prompt": "", "completion": "a"}],
    "rm": [{"prompt": "p", "completion": "a"}],
    "sft": [{"prompt": "p", "completion": "a", "reward": 3}],
}


@pytest.mark.usefixtures("cold_preflight")
@pytest.mark.parametrize("command", ["plan", "run", "sweep"])
def test_bad_rows_of_the_last_stage(command: str, tmp_path: Path) -> None:
    file = trial(tmp_path)
    write_rows(tmp_path / "ppo.jsonl", BAD_ROWS["ppo"])
    status, _, err = tristage(command, "--config", file, "--run-dir", tmp_path / "run", *SHORT)
    assert status == 2 and not (tmp_path / "run").exists()
    check_message(err, f"error: {tmp_path}/ppo.jsonl: 1 of 1 rows cannot serve as prompts")


@pytest.mark.parametrize(
    "name", ["my models/qwen", "a/b/c", "Qwen/x@main", "tiny-random/", "x" * 300, "models/qwen/7b"]
)
def test_a_base_that_is_no_folder_and_no_id_of_the_hub(name: str, tmp_path: Path) -> None:
    """The checks of rows and functions are made all the same, and do not fail on the name."""
    options: list[str | Path] = ["--config", trial(tmp_path), "--run-dir", tmp_path / "run", *SHORT]
    for command, key in (("plan", "base"), ("run", "base"), ("plan", "rm.base")):
        status, _, err = tristage(command, *options, f"{key}.model={name}")
        assert status == 2 and not (tmp_path / "run").exists()
        check_message(
            err, f"error: {key}.model: {name!r:.200}", "there is no such folder, and no model of the"
        )
        assert err.count("error:") == 1


@pytest.mark.usefixtures("cold_preflight")
def test_a_base_that_has_no_name_of_the_hub_is_one_error_of_the_command(tmp_path: Path) -> None:
    options: list[str | Path] = ["--config", trial(tmp_path), "--run-dir", tmp_path / "run", *SHORT]
    status, _, err = tristage("plan", *options, "base.model=a/b/c")
    assert status == 2
    check_message(
        err, "error: base.model: 'a/b/c': there is no such folder, and no model of the hub can have"
    )


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"architectures": [1]}, "config.json: architectures is [1], not a list of names; restore the file"),
        ({"max_position_embeddings": -5}, "config.json: max_position_embeddings is -5; restore the file"),
    ],
)
def test_a_damaged_value_of_the_base(
    change: dict[str, Any], part: str, tiny_folder: Path, tmp_path: Path
) -> None:
    damaged(tiny_folder, tmp_path / "model", [edit("config.json", **change)])
    options: list[str | Path] = ["--config", trial(tmp_path), "--run-dir", tmp_path / "run", *SHORT]
    status, _, err = tristage("plan", *options, f"base.model={tmp_path}/model")
    assert status == 2
    check_message(err, f"error: base.model: cannot load '{tmp_path}/model' (revision default): {part}")
    assert "Lower it" not in err


def test_plan_tells_how_many_rows_are_kept(tmp_path: Path) -> None:
    status, out, _ = tristage("plan", "--config", trial(tmp_path), "--run-dir", tmp_path / "run", *SHORT)
    assert status == 0
    assert "data.rm: 20 rows read, 0 left out, 0 of other stages; 18 to train on, 2 held out" in out


@pytest.mark.parametrize("stage", BAD_ROWS)
def test_bad_rows_of_each_stage(stage: Any, tmp_path: Path) -> None:
    file = trial(tmp_path)
    write_rows(tmp_path / f"{stage}.jsonl", BAD_ROWS[stage])
    with pytest.raises(UserError, match=rf"{stage}\.jsonl: 1 of 1 rows cannot serve"):
        preflight.check_material(load_experiment(file, SHORT), stage)


def test_a_path_that_no_file_can_have_is_a_fault_of_its_own_key_alone(tmp_path: Path) -> None:
    """Later stages compare their prompts with those of that file."""
    options: list[str | Path] = ["--config", trial(tmp_path), "--run-dir", tmp_path / "run", *SHORT]
    for path in (f"/{'x' * 300}.jsonl", "x" * 300):
        status, _, err = tristage("plan", *options, f"data.sft.path={path}")
        assert status == 2
        check_message(err, "error: data.sft.path: ", "there is no such ")
        assert "data.rm" not in err and "Errno" not in err


def test_demonstrations_of_ppo_ptx_are_read(tmp_path: Path) -> None:
    file = trial(tmp_path)
    write_rows(tmp_path / "sft.jsonl", BAD_ROWS["sft"])
    preflight.check_material(load_experiment(file, SHORT), "ppo")
    with pytest.raises(UserError, match=r"sft\.jsonl: 1 of 1 rows cannot serve"):
        preflight.check_material(load_experiment(file, [*SHORT, "ppo.ptx_coef=1"]), "ppo")


@pytest.mark.parametrize("largest", [loading.MAX_BYTES, 10])
def test_margins_need_scores_in_every_row(
    largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large source is read in part; it is refused, too."""
    monkeypatch.setattr(loading, "MAX_BYTES", largest)
    file, margin = trial(tmp_path), [*SHORT, "rm.loss.margin=scores"]
    scored = [row | {"scores": [2, 1]} for row in GOOD]
    write_rows(tmp_path / "rm.jsonl", scored)
    preflight.check_material(load_experiment(file, margin), "rm")
    write_rows(tmp_path / "rm.jsonl", [*scored[:-1], GOOD[-1]])
    preflight.check_material(load_experiment(file, SHORT), "rm")
    with pytest.raises(UserError) as caught:
        preflight.check_material(load_experiment(file, margin), "rm")
    check_message(
        str(caught.value),
        "rm.loss.margin: scores, but 1 of 20 rankings have no scores. One has the prompt 'What is 19?'. Give",
        "each row `scores`, or set rm.loss.margin to none.",
    )


def test_margins_need_scores_in_the_rankings_of_earlier_rounds(tmp_path: Path) -> None:
    """They are told before the stage samples answers, and has them ranked."""
    row = {"split": "train", "prompt": "What?", "completions": ["a", "b"], "ranks": [0, 1]}
    earlier = write_rows(tmp_path / "earlier.jsonl", [row | {"scores": [2, 1]}, row])
    labeller = [*SHORT, "rm.rankings.labeller=warmth", f"rm.rankings.earlier=[{earlier}]"]
    preflight.check_material(load_experiment(trial(tmp_path), labeller), "rm")
    with pytest.raises(UserError, match=r"rm\.loss\.margin: scores, but 1 of 2 rankings have no scores"):
        preflight.check_material(load_experiment(trial(tmp_path), [*labeller, "rm.loss.margin=scores"]), "rm")


@pytest.mark.parametrize("stage", ["rm", "ppo", "best"])
def test_engines_that_are_not_here(stage: Any, tiny_folder: Path, tmp_path: Path) -> None:
    file = trial(tmp_path)
    key = "rm.rankings.rollout" if stage == "rm" else "ppo.rollout"
    vllm = [*SHORT, "base.quantization=none", f"{key}.engine=vllm"]
    if find_spec("vllm") is None:
        with pytest.raises(UserError, match=rf"{key}\.engine: vllm: there is no Python module vllm here"):
            preflight.check_material(load_experiment(file, vllm), stage)
    damaged(tiny_folder, tmp_path / "model", [edit("config.json", sliding_window=8)])
    continuous = [*SHORT, f"base.model={tmp_path}/model", f"{key}.engine=continuous"]
    with pytest.raises(UserError, match=rf"{key}\.engine: continuous, but .* sliding windows"):
        preflight.check_material(load_experiment(file, continuous), stage)


TARGETS = {
    "[q_proj, nope]": "adapter.target_modules: nope: no linear layer of tiny-random has this name. Its",
    "[nope]": "adapter.target_modules: Target modules",
    "[self_attn]": "adapter.target_modules: Target module LlamaAttention",
}


@pytest.mark.parametrize("names", TARGETS)
def test_layers_that_the_base_does_not_have(names: str, tmp_path: Path) -> None:
    config = load_experiment(trial(tmp_path), [*SHORT, f"adapter.target_modules={names}"])
    with pytest.raises(UserError) as caught:
        preflight.check_material(config, "sft")
    check_message(str(caught.value), TARGETS[names])


def test_layers_that_the_base_has(tmp_path: Path) -> None:
    names = "adapter.target_modules=[q_proj, mlp.down_proj, model.layers.0.self_attn.k_proj]"
    preflight.check_material(load_experiment(trial(tmp_path), [*SHORT, names]), "sft")


OPTIONS = {
    "context window": (["data.max_length=2000"], "data.max_length: 2000 tokens are more than the 512"),
    "long prompts": ([*SHORT, "data.max_prompt_length=1"], "data.ppo: none of the 18 examples fits"),
    "held out": ([*SHORT, "data.ppo.held_out=20"], "held_out takes 20, which leaves none to train on"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_do_not_fit(case: str, tmp_path: Path) -> None:
    options, part = OPTIONS[case]
    with pytest.raises(UserError) as caught:
        preflight.check_material(load_experiment(trial(tmp_path), options), "ppo")
    check_message(str(caught.value), part)


@pytest.mark.parametrize(
    ("stage", "override", "part"),
    [
        ("sft", "sft.batch_size=1000000", "sft.batch_size: 1,000,000, but data.sft has only 18 examples"),
        ("rm", "rm.batch_size=1801", "rm.batch_size: 1,801, but data.rm has only 18 examples"),
        (
            "rm",
            "rm.normalization_prompts=201",
            "rm.normalization_prompts: 201, but data.rm has only 2 examples",
        ),
        ("ppo", "ppo.batch_size=1000000", "ppo.batch_size: 1,000,000, but data.ppo has only 18 examples"),
    ],
)
def test_sizes_far_above_the_number_of_examples(stage: Any, override: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        preflight.check_material(load_experiment(trial(tmp_path), [*SHORT, override]), stage)
    check_message(str(caught.value), part, "Lower it to")


def test_a_chat_template_that_drops_the_question(tmp_path: Path) -> None:
    (tmp_path / "constant.jinja").write_text("Hello{% if add_generation_prompt %}\nAnswer: {% endif %}")
    options = [*SHORT, "data.chat=true", f"data.chat_template={tmp_path}/constant.jinja"]
    with pytest.raises(UserError, match="leaves out or changes what the user says"):
        preflight.check_material(load_experiment(trial(tmp_path), options), "sft")


def test_a_large_source_is_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = trial(tmp_path)
    monkeypatch.setattr(loading, "MAX_BYTES", 100)
    monkeypatch.setattr(examples, "SOME_ROWS", 10)
    rows = [json.dumps(row) for row in GOOD]
    (tmp_path / "ppo.jsonl").write_text("\n".join([*rows, "{damaged"]) + "\n")
    config = load_experiment(file, [*SHORT, "data.ppo.held_out=999"])  # the rest is not here to hold it out
    preflight.check_material(config, "ppo")
    (tmp_path / "ppo.jsonl").write_text("\n".join([*rows[:5], "{damaged", *rows[5:]]) + "\n")
    with pytest.raises(UserError, match=r"1 of 10 rows cannot serve as prompts.\n  line 6: invalid JSON"):
        preflight.check_material(config, "ppo")


def test_a_stage_by_itself_keeps_its_finished_result(tmp_path: Path) -> None:
    file = trial(tmp_path)
    write_stage(tmp_path / "run", "sft", config=load_experiment(file, SHORT))
    before = files(tmp_path / "run")
    write_rows(tmp_path / "sft.jsonl", BAD_ROWS["sft"])
    status, output = stage_run(file, tmp_path / "run", "sft", *SHORT)
    assert status == 2 and files(tmp_path / "run") == before
    check_message(output, "error: ", "the key `reward` has no place in a demonstration")
