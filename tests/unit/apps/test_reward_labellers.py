"""How well the labellers of published data agree, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apps.evaluate.reward_models.labellers import judges_agree, voters_agree
from configs.schema import Source
from tests.unit.data.sources.test_published import LLMBAR, PANDALM, changed


def judged(place: str, prompt: str, better: str, worse: str) -> dict[str, Any]:
    return {"prompt": prompt, "completions": [better, worse], "ranks": [0, 1], "where": place}


def test_judges_of_the_same_two_answers_are_compared_and_others_not() -> None:
    rows = [
        judged("1", "p", "a", "b"),
        judged("2", "p", "a", "b"),  # agrees
        judged("3", "p", "b", "a"),  # agrees with neither
        judged("4", "p", "a", "c"),  # another pair, which one judge saw
        judged("5", "q", "a", "b"),
        judged("6", "q", "a", "b"),
        judged("7", "q", "b", "a"),  # the judge of row 6 again
        judged("8", "r", "b", "a"),  # a row without a judge
        judged("9", "r", "b", "a"),
    ]
    judges = {"1": "x", "2": "y", "3": "z", "4": "x", "5": "x", "6": "y", "7": "y", "8": "x"}
    found = judges_agree(rows, judges)
    assert found is not None
    assert found["value"] == pytest.approx((1 / 3 + 1) / 2) and found["n"] == 2
    assert judges_agree(rows, {}) is None


def voted(prompt: str, *votes: int) -> dict[str, Any]:
    return changed(PANDALM, instruction=prompt, **{f"annotator{n}": vote for n, vote in enumerate(votes, 1)})


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_votes_that_order_the_answers_are_compared(tmp_path: Path, ending: str) -> None:
    rows = [
        voted("a", 1, 1, 2),  # one of three pairs of votes agrees
        voted("a", 2, 2, 2),  # all three, of the same prompt
        voted("b", 2, 2, 0),  # the only pair
        voted("c", 1, 2, 0),  # left out as a ranking; its pair of votes disagrees
        voted("d", 0, 0, 1),  # no pair
    ]
    file = tmp_path / f"rows.{ending}"
    if ending == "json":
        file.write_text(json.dumps([*rows, LLMBAR]))
    else:
        lines = [list(PANDALM), *(list(row.values()) for row in rows)]
        file.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    found = voters_agree(Source(path=str(file)))
    assert found is not None
    assert found["value"] == pytest.approx(((1 / 3 * 3 + 3) / 6 + 1 + 0) / 3) and found["n"] == 3
    assert voters_agree(Source(path=str(file), ignore_columns=("annotator1",))) is None
