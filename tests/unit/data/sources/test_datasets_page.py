"""docs/guides/datasets.md: every block is read as the page says, or refused."""

import re
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import Source
from data.examples import StageData
from data.sources.formats import FORMATS
from data.sources.keys import SYNONYMS
from data.sources.loading import load_rows
from data.sources.order import RANKS, SCORES
from data.storage.files import write_json_lines

PAGE = (Path(__file__).parents[4] / "docs" / "guides" / "datasets.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r'```jsonl title="(\w+)( refused)?"\n(.*?)```', PAGE, re.DOTALL)
NEEDS_LESS = {
    "rankings": ["rankings", "demonstrations", "prompts"],
    "demonstrations": ["demonstrations", "prompts"],
    "prompts": ["prompts"],
    "texts": ["demonstrations"],  # they have no prompt
}
READ = [(kind, block) for kind, refused, block in BLOCKS if not refused]
REFUSED = [(kind, line) for kind, refused, block in BLOCKS if refused for line in block.splitlines()]
LEFT_OUT = '"label": false'


def load(text, kind, folder):
    file = folder / "rows.jsonl"
    file.write_text(text, encoding="utf-8")
    return load_rows(Source(path=str(file)), kind, lambda note: None)


@pytest.mark.parametrize(("kind", "block"), READ, ids=[kind for kind, _ in READ])
def test_every_row_is_read(kind, block, tmp_path):
    for each in NEEDS_LESS[kind]:
        loaded = load(block, each, tmp_path)
        left_out = block.count(LEFT_OUT) if each == "demonstrations" else 0
        assert (len(loaded.rows), loaded.left_out) == (len(block.splitlines()) - left_out, left_out)
        assert all(row["prompt"] or kind == "texts" for row in loaded.rows)


@pytest.mark.parametrize(("kind", "line"), REFUSED)
def test_every_row_of_the_refused_ones_is_refused(kind, line, tmp_path):
    with pytest.raises(UserError, match=r"1 of 1 rows cannot serve as"):
        load(line, kind, tmp_path)


def test_the_page_has_every_format_and_synonym():
    text = "".join(block for _, _, block in BLOCKS)
    read = set(re.findall(r'"(\w+)":', text)) | set(re.findall(r"`(\w+)`", PAGE))
    required = {key for form in FORMATS for key in form.required}
    assert required | set(SYNONYMS) | {*RANKS, *SCORES} <= read
    assert len(READ) >= len(FORMATS)


def test_the_example_holds_a_whole_file_out(tmp_path):
    (block,) = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "held_out" in block]
    for name, words in {"train.jsonl": "abc", "test.jsonl": "cde"}.items():
        write_json_lines(tmp_path / name, [{"prompt": word, "completion": name} for word in words])
    others = "\n".join(f"  {stage}: {{path: {stage}.jsonl}}" for stage in ("rm", "ppo"))
    (tmp_path / "my.yaml").write_text(f"name: my\nbase: {{model: tiny-random}}\n{block}{others}\n")
    split = StageData(load_experiment(tmp_path / "my.yaml"), "sft", lambda _: None).rows("demonstrations")
    assert [row["prompt"] for row in split.train] == ["a", "b"]
    assert [row["prompt"] for row in split.held_out] == ["c", "d", "e", "c"]
