"""The prompts of a comparison: each once, as in PPO's own evaluation, and as many as are asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from apps.evaluate.prompts import read_prompts
from apps.trained_run import TrainedRun, open_run
from configs.errors import UserError
from data.batches import tokenize
from data.examples import StageData, once_each, read_examples
from data.storage.files import write_json_lines

LONG = "long " * 200  # more tokens than data.max_prompt_length


@pytest.fixture
def run(run_dir: Path, tmp_path: Path) -> TrainedRun:
    """A run with two sources of prompts, which have each prompt twice; every third is over-long."""
    copy = shutil.copytree(run_dir, tmp_path / "run")
    for name in "ab":
        prompts = [f"{name}{i} {LONG if i % 3 == 0 else ''}" for i in range(30)]
        write_json_lines(tmp_path / f"{name}.jsonl", [{"prompt": prompt} for prompt in prompts * 2])
    sources = [{"path": str(tmp_path / f"{name}.jsonl"), "held_out": 9} for name in "ab"]
    words = [f"data.ppo={json.dumps(sources)}", "data.shares=null", "data.keep_apart=false"]
    return open_run(copy, words)


def test_held_out_prompts_are_those_of_ppo_each_once(run: TrainedRun, tiny_tokenizer) -> None:
    read = read_examples(StageData(run.config, "ppo", print), "prompts", tokenize.prompts, tiny_tokenizer)
    of_ppo = once_each(read.held_out, print)
    assert len(read.held_out) == 2 * len(of_ppo) > 0
    asked = read_prompts(run, tiny_tokenizer, None, None)
    assert asked.prompts == of_ppo
    assert asked.notes == [
        f"{len(of_ppo)} of {len(read.held_out)} prompts repeat others; each is answered once"
    ]


def test_some_held_out_prompts_are_as_many_as_asked_for_and_of_all_sources(
    run: TrainedRun, tiny_tokenizer
) -> None:
    asked = read_prompts(run, tiny_tokenizer, None, 6)
    assert [prompt.source for prompt in asked.prompts] == ["a", "b"] * 3
    assert len({prompt.text for prompt in asked.prompts}) == 6


def test_prompts_of_a_file_are_asked_once(run: TrainedRun, tiny_tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": prompt, "category": prompt[0]} for prompt in ("x1", " x1\n", "y1", "y2", "z1", LONG)]
    write_json_lines(file, rows)
    asked = read_prompts(run, tiny_tokenizer, file, 3)
    assert [prompt.text for prompt in asked.prompts] == ["x1", "y1", "y2"] and asked.categories == [*"xyy"]
    assert asked.notes == ["1 of 6 prompts repeat others; each is answered once"]
    with pytest.raises(UserError, match=r"1 prompts are longer than data.max_prompt_length"):
        read_prompts(run, tiny_tokenizer, file, None)
