"""docs/guides/resume.md: its tables say what planning does and what counts as a change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from configs.identity import REQUEST_KEYS, SPEED_ONLY, SPEED_ONLY_NESTED, stage_hash
from configs.schema import STAGES, Experiment, Stage
from pipeline.planning.plan import plan_stage
from tests.support.docs_pages import table
from tests.support.pipeline_runs import request, toy, write_stage

PAGE = "guides/resume.md"
COLUMNS: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {}),
    (2, {"config": toy(sft__learning_rate=0.5)}),
    (3, {"force": True}),
    (4, {"fresh": True}),
)
STATES: dict[str, dict[str, Any] | None] = {
    "has not run": None,
    "finished": {"status": "finished"},
    "stopped, with a checkpoint": {"status": "interrupted", "checkpoint": 4},
    "stopped, without a checkpoint": {"status": "failed"},
}
ANOTHER: dict[str, Any] = {  # value of each key in the table
    "seed": 5,
    "base.model": "org/another",
    "base.quantization": "int8",
    "base.compute_dtype": "float32",
    "adapter.r": 5,
    "data.max_length": 700,
    "data.chat_template": "/another.jinja",
    "data.sft.path": "another.jsonl",
    "data.rm.path": "another.jsonl",
    "data.ppo.path": "another.jsonl",
    "sft.learning_rate": 0.5,
    "sft.epochs": 5,
    "sft.micro_batch_size": 5,
    "rm.base": {"model": "org/small"},
    "rm.learning_rate": 0.5,
    "rm.rankings.labeller": "warmth",
    "ppo.kl_coef": 0.5,
    "ppo.iterations": 5,
    "ppo.rewards": [{"source": "rm", "weight": 2}],
    "ppo.judge": "warmth",
    "ppo.seed": 5,
    "ppo.rollout.engine": "merged",
    "tracking.wandb": "offline",
    "deepspeed.config": "/another.json",
}


@pytest.mark.parametrize("row", table(PAGE, "the stage"), ids=lambda row: row[0])
@pytest.mark.parametrize(("column", "options"), COLUMNS)
def test_what_happens_to_a_stage(
    row: list[str], column: int, options: dict[str, Any], tmp_path: Path
) -> None:
    written = STATES[row[0]]
    if written is not None:
        write_stage(tmp_path, "sft", **written)
    assert plan_stage(request(tmp_path, **options), "sft").action == row[column]


def test_the_table_has_every_state() -> None:
    assert [row[0] for row in table(PAGE, "the stage")] == list(STATES)


def retrained(config: Experiment) -> list[str]:
    """What the table says of each stage if `config` takes the place of the toy experiment."""
    words: dict[Stage, str] = {}
    for stage in STAGES:
        upstream = any(words[name] == "retrains" for name in config.upstream(stage))
        changed = stage_hash(config, stage) != stage_hash(toy(), stage)
        words[stage] = "retrains" if changed or upstream else "keeps"
    return list(words.values())


@pytest.mark.parametrize("row", table(PAGE, "you change"), ids=lambda row: row[0])
def test_which_key_retrains_which_stage(row: list[str]) -> None:
    key = row[0].strip("`")
    config = toy(**{key.replace(".", "__"): ANOTHER[key]})
    assert config != toy(), "the value is another one"
    assert row[1:] == retrained(config)


def test_the_table_of_harmless_keys_is_the_list_in_the_code() -> None:
    nested, own, terms = set[str](), set[str](), set[str]()
    for where, keys in table(PAGE, "where"):
        places, names = re.findall(r"`([\w.]+)`", where), re.findall(r"`([\w.]+)`", keys)
        if where == "whole sections":
            assert names == ["tracking", "deepspeed"]
        elif places == ["sft", "rm", "ppo"]:
            own |= set(names)
        elif places == ["ppo.rewards"]:
            terms |= set(names)
        elif places != ["best"]:
            nested |= {f"{place}.{name}" for place in places for name in names}
    assert own == set(SPEED_ONLY)
    assert terms == set(REQUEST_KEYS)
    assert nested == set(SPEED_ONLY_NESTED)
