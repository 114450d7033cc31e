"""Rankings of earlier rounds: which split a prompt is in."""

from __future__ import annotations

from data.sources.collected_rankings import split_of_rounds, useful


def ranking(prompt, split, ranks=(0, 1)):
    return {"split": split, "prompt": prompt, "completions": ["x", "y"], "ranks": list(ranks)}


def test_the_newest_round_that_has_a_prompt_says_its_split():
    oldest = [ranking("a", "train"), ranking("b", "train"), ranking("c", "train"), ranking("d", "held_out")]
    newer = [ranking("a", "held_out"), ranking(" b", "held_out"), ranking("d", "train")]
    placed = [(row["prompt"], own) for row, own in split_of_rounds([oldest, newer], {"b"}, {"c"})]
    assert placed == [
        ("a", "held_out"),
        (" b", "train"),
        ("d", "train"),
        ("a", "held_out"),
        ("b", "train"),
        ("c", "held_out"),
        ("d", "train"),
    ]


def test_rankings_that_tie_are_not_useful():
    rows = [ranking("a", "train", [0, 0]), ranking("b", "train")]
    assert useful(rows) == rows[1:]
