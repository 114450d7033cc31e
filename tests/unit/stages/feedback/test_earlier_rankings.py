"""Rankings of earlier rounds join those of this one, each prompt in one split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from stages.feedback.earlier_rankings import with_earlier


def ranking(prompt: str, split: str, **changes: Any) -> dict[str, Any]:
    row = {"split": split, "prompt": prompt, "completions": ["x", "y"], "completion_ids": [[1], [2]]}
    return row | {"ranks": [0, 1]} | changes


def write(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def prompts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prompt"] for row in rows]


def test_a_prompt_is_in_the_split_of_this_round(tmp_path) -> None:
    earlier = write(
        tmp_path / "1.jsonl",
        ranking("a", "train"),
        ranking("b", "train"),
        ranking("c", "held_out"),
        ranking("d", "held_out"),
        ranking("e", "train"),
        ranking("f", "train", ranks=[0, 0], completions=["", "y"]),  # a sample may be empty
    )
    train, held_out, note = with_earlier(
        [ranking("a", "train"), ranking("c", "train")], [ranking("b", "held_out")], [earlier]
    )
    assert prompts(train) == ["a", "c", "a", "c", "e"]
    assert prompts(held_out) == ["b", "b", "d"]
    assert not set(prompts(train)) & set(prompts(held_out))
    assert "3 rankings to train on and 2 held out, of 1 earlier rounds; 1 left out" in note
    assert "2 are in the split that a newer round gives their prompts" in note


@pytest.mark.parametrize(
    "changes",
    [
        {"split": "eval"},
        {"ranks": [0]},
        {"ranks": ["0", "1"]},
        {"completions": []},
        {"completions": [1, 2]},
        {"completion_ids": [[1]]},
        {"ranks": 1},
        {"prompt": 5},
    ],
)
def test_a_damaged_line_is_named(changes: dict[str, Any], tmp_path) -> None:
    file = write(tmp_path / "1.jsonl", ranking("a", "train"), ranking("b", "train") | changes)
    with pytest.raises(UserError, match=r"1\.jsonl, line 2: no ranking that stage rm collected"):
        with_earlier([ranking("a", "train")], [], [file])
