"""docs/guides/tasks.md: its files are read, its table is what they make, and its lists are complete."""

import json
import re
from pathlib import Path

import pytest
import yaml

from configs.load import load_experiment
from configs.schema import Experiment
from configs.task_file import read_task, shipped_pools
from configs.task_pool import Task
from data.examples import StageData
from tests.contract.bad_inputs.entry import VALID
from tests.support.docs_pages import blocks, table

PAGE = "guides/tasks.md"
TASKS = [block.text for block in blocks("yaml", PAGE) if block.title == "tasks"]


def block(language: str, title: str) -> str:
    return next(found.text for found in blocks(language, PAGE) if found.title == title)


def experiment(folder: Path, data: str) -> Experiment:
    file = folder / "mine.yaml"
    tree = yaml.safe_load(VALID)
    tree["data"] |= yaml.safe_load(data)["data"]
    file.write_text(yaml.safe_dump(tree))
    return load_experiment(file)


@pytest.mark.parametrize("text", TASKS)
def test_every_task_file_is_read(text, tmp_path):
    (tmp_path / "tickets.yaml").write_text(text)
    read_task(str(tmp_path / "tickets.yaml"), "data.sft.task")


def test_the_rows_become_what_the_page_shows(tmp_path):
    """Which template a row gets is the choice of the seed, so many are tried."""
    (tmp_path / "tickets.yaml").write_text(TASKS[0])
    (tmp_path / "tickets.jsonl").write_text(block("jsonl", "rows"))
    config = experiment(tmp_path, block("yaml", "experiment"))
    source = config.data.sources("sft")[0].model_copy(update={"held_out": 0})
    data = config.data.model_copy(update={"sft": source, "chat": True})
    made = set()
    for seed in range(60):
        seeded = config.model_copy(update={"data": data, "seed": seed})
        for row in StageData(seeded, "sft", lambda _: None).rows("demonstrations").train:
            made.add((row["prompt"].replace("\n", "<br>"), row["completion"]))
    shown = {(prompt, answer) for prompt, answer in table(PAGE, "prompt")}
    assert len(shown) == 3 and shown <= made


def test_a_pool_that_ships_takes_rows(tmp_path):
    (tmp_path / "snli.jsonl").write_text(
        "".join(json.dumps({"premise": f"p{n}", "hypothesis": "h", "label": n % 3}) + "\n" for n in range(9))
    )
    config = experiment(tmp_path, block("yaml", "pool"))
    assert len(StageData(config, "sft", lambda _: None).rows("demonstrations").train) == 8


def test_the_page_lists_every_pool_with_its_columns():
    rows = {pool.strip("`"): re.findall(r"`(\w+)`", columns) for pool, columns in table(PAGE, "pool")}
    assert {name for pool in rows for name in (pool, f"{pool}_zh")} == set(shipped_pools())
    for pool, columns in rows.items():
        for name in (pool, f"{pool}_zh"):
            task = read_task(name, "k")
            assert set(columns) == task.columns and columns[-1] == task.label
            assert [each.inverted for each in task.templates] == [False] * 6 + [True]


def test_the_page_lists_every_key_of_a_task():
    keys = {key for row in table(PAGE, "key") for key in re.findall(r"`(\w+)`", row[0])}
    assert keys == set(Task.model_fields) - {"name"}
