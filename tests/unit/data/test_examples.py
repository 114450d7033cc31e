"""The rows of a stage: its share of a source, its limit, its counts, and a source that changes meanwhile."""

import json
import shutil
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.schema import Experiment
from data.batches.tokenize import Prompt
from data.examples import StageData, once_each, read_examples
from data.sources import loading
from data.storage.source_digest import source_digest
from pipeline.planning.batches import batches
from tests.support.pipeline_runs import toy

SHARED = 1000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "all.jsonl"
    rows = [{"prompt": f"p{number}", "completion": "c"} for number in range(SHARED)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def experiment(source: Path, **changes: object) -> Experiment:
    paths = {f"data__{stage}__path": str(source) for stage in ("sft", "rm", "ppo")}
    return toy(**paths, data__sft__held_out=10, sft__batch_size=1, **changes)


def ignore(line: str) -> None: ...


def test_the_limit_is_of_the_stages_own_rows(source):
    """A fifth of the rows belongs to SFT. Of 100 rows with a limit of 100, 20 would be left."""
    notes: list[str] = []
    config = experiment(source, data__sft__limit=100)
    train, held_out, counts = StageData(config, "sft", notes.append).rows("demonstrations")
    assert (len(train), len(held_out)) == (90, 10)
    assert counts["rows_read"] == counts["rows_of_other_stages"] + 100 < SHARED  # it stops at the limit
    assert counts["rows_left_out"] == 0
    assert notes == [
        f"data.sft: {counts['rows_read']} rows read, 0 left out, {counts['rows_of_other_stages']} of other "
        "stages; 90 to train on, 10 held out"
    ]


@pytest.mark.parametrize("limit", [None, 40, 100, 150, SHARED])
def test_the_plan_counts_the_rows_that_the_stage_reads(source, limit):
    config = experiment(source, data__sft__limit=limit)
    train, _, _ = StageData(config, "sft", ignore).rows("demonstrations")
    planned = batches(config, "sft", world=1).steps
    assert planned is not None
    # A share of prompts is drawn by hash: 200 of 1000, give or take.
    assert planned == len(train) if limit and limit <= 150 else abs(planned - len(train)) < 40


def test_stages_with_limits_have_different_prompts(source):
    config = experiment(source, data__sft__limit=100, data__rm__limit=100, data__ppo__limit=100)
    prompts = {
        stage: {
            row["prompt"] for part in StageData(config, stage, ignore).rows("prompts")[:2] for row in part
        }
        for stage in ("sft", "rm", "ppo")
    }
    assert [len(of_stage) for of_stage in prompts.values()] == [100, 100, 100]
    assert len(set.union(*prompts.values())) == 300


def test_examples_are_counted(tmp_path, tiny_tokenizer):
    from data.batches import tokenize

    rows = [
        {"prompt": f"p{n}", "completion": "c" * (400 if n < 3 else 1), "label": n != 9} for n in range(30)
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = toy(
        data__sft__path=str(file), data__sft__held_out=0, data__max_length=40, data__max_prompt_length=20
    )
    found = read_examples(
        StageData(config, "sft", ignore), "demonstrations", tokenize.demonstrations, tiny_tokenizer
    )
    assert len(found.train) == 26 and found.held_out == []
    assert found.counts == {
        "rows_read": 30,
        "rows_left_out": 1,
        "rows_unwanted": 1,
        "rows_of_other_stages": 0,
        "examples": 26,
        "examples_held_out": 0,
        "examples_truncated": 0,
        "examples_too_long": 3,
        "examples_without_pair": 0,
    }


def test_a_source_that_changed_since_the_plan_is_refused(source):
    config = experiment(source)
    planned = {"data.sft.path": source_digest(source) or ""}
    StageData(config, "sft", ignore, planned).rows("demonstrations")
    source.write_text(source.read_text().replace("p1", "q1"))
    with pytest.raises(
        UserError, match=r"data\.sft\.path: .*all\.jsonl changed while the stage was starting"
    ):
        StageData(config, "sft", ignore, planned).rows("demonstrations")


def test_a_source_that_changes_while_it_is_read_is_refused(source, monkeypatch):
    read = loading.read

    def replacing(of):
        yield from read(of)
        source.write_text('{"prompt": "p", "completion": "other"}\n')

    monkeypatch.setattr(loading, "read", replacing)
    with pytest.raises(UserError, match="changed while the stage was starting"):
        StageData(experiment(source), "sft", ignore).rows("demonstrations")


def test_the_digest_of_a_folder_shows_every_change(tmp_path):
    folder = tmp_path / "rows"
    (folder / "more").mkdir(parents=True)
    (folder / "a.jsonl").write_text("a")
    (folder / "more" / "b.jsonl").write_text("b")
    before = source_digest(folder)
    shutil.copytree(folder, tmp_path / "same")
    assert source_digest(tmp_path / "same") == before
    seen = {before}
    for change in (
        lambda: (folder / "c.jsonl").write_text(""),
        lambda: (folder / "a.jsonl").write_text("A"),
        lambda: (folder / "a.jsonl").rename(folder / "d.jsonl"),
        lambda: (folder / "more" / "b.jsonl").unlink(),
    ):
        change()
        seen.add(source_digest(folder))
    assert len(seen) == 5 and None not in seen
    assert source_digest(tmp_path / "none") is None


def test_a_prompt_that_repeats_is_kept_once_in_its_place():
    notes: list[str] = []
    first, other = Prompt("What is it?", "What is it?", [1]), Prompt("And?", "And?", [2])
    chat = Prompt([{"role": "user", "content": "What  is it?"}], "What is it?", [3])
    assert once_each([first, other, chat, first], notes.append) == [first, other]
    assert notes == ["2 of 4 prompts repeat others; each is answered once"]
    assert once_each([first, other], notes.append) == [first, other] and len(notes) == 1
