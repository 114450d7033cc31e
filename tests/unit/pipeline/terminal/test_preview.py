"""The page of `tristage preview`, with and without colour."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest
from rich.console import Console

from data.preview import Lengths, Piece, Preview
from pipeline.terminal.preview import bins, print_histogram, print_previews, token_text
from tests.contract.bad_inputs.entry import check_message, tristage
from tests.support.runs import TINY

ESCAPE = "\x1b["
SHORT = "rm.rankings.rollout.max_new_tokens=8"


def console(**options):
    return Console(file=io.StringIO(), width=100, highlight=False, **options)


def printed(page, tokenizer):
    ids = tokenizer("Late.\n", add_special_tokens=False)["input_ids"]
    pieces = [Piece("prompt", ids, "prompt"), Piece("learned", ids, "learned"), Piece("cut", ids[:1], "cut")]
    print_previews(page, [Preview("a.jsonl, line 1", pieces, "")], tokenizer, "")
    return page.file.getvalue()


def test_labels_stand_in_front_of_their_tokens_without_colour(tiny_tokenizer, monkeypatch):
    lines = printed(console(), tiny_tokenizer).splitlines()
    tokens = "│".join(token_text(tiny_tokenizer, id_) for id_ in tiny_tokenizer("Late.\n")["input_ids"])
    assert lines[:3] == ["a.jsonl, line 1", f"  prompt   {tokens}", f"  learned  {tokens}"]
    assert lines[3].startswith("  cut      ") and tokens.endswith("↵")
    assert "learned: these tokens carry loss" in lines
    assert not any(line.startswith(("score:", "rank N")) for line in lines), "labels that do not occur"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in printed(console(force_terminal=True), tiny_tokenizer)


def test_a_terminal_gets_colours(tiny_tokenizer, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = printed(console(force_terminal=True, color_system="standard"), tiny_tokenizer)
    assert ESCAPE + "1;32m" in coloured
    without = re.sub("\x1b\\[[0-9;]*m", "", coloured)
    assert without == printed(console(), tiny_tokenizer)


def test_a_histogram_marks_the_limit_where_it_lies():
    page = console()
    print_histogram(page, Lengths("prompts", [1, 1, 2, 5, 9, 9, 30], "data.max_prompt_length", 8))
    lines = page.file.getvalue().splitlines()
    assert lines[1] == "prompts, in tokens: 7, median 5, longest 30"
    position = next(number for number, line in enumerate(lines) if "limit" in line)
    assert lines[position].endswith("data.max_prompt_length is 8: 3 are longer")
    assert lines[position - 1].split()[0] == "7-9" and lines[position + 1].split()[0] == "10-12"
    print_histogram(page := console(), Lengths("prompts", [1, 2], "data.max_prompt_length", 8))
    assert page.file.getvalue().rstrip().endswith("data.max_prompt_length is 8: 0 are longer")


@pytest.mark.parametrize("values", [[5], [0, 0, 1], list(range(1000)), [1, 10**6]])
def test_bins_hold_every_value_once(values):
    found = bins(values)
    assert sum(found.values()) == len(values) and len(found) <= 10
    assert all(low <= high for low, high in found)


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("sft", ["  learned  ", "data.max_length is 128: 0 are longer"]),
        ("rm", ["  rank 3   ", "score: the reward model reads the score"]),
        ("ppo", ["  prompt   ", "the policy samples up to 8 tokens; the score is read at the last of them"]),
    ],
)
def test_the_rows_of_each_stage(stage, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, stdout, _ = tristage("preview", TINY, "--stage", stage, "-n", "2")
    assert status == 0 and not list(tmp_path.iterdir())
    assert all(part in stdout for part in parts)
    assert len(re.findall(r"(?m)^/.*\.jsonl, line \d+$", stdout)) == 2


def test_packed_sequences_show_where_their_examples_begin_and_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("preview", TINY, "--stage", "sft", "-n", "2")
    assert "packed" not in tristage(*words)[1]
    status, stdout, _ = tristage(*words, "sft.packing=true")
    assert status == 0
    found = re.search(r"packed: (\d+) examples in (\d+) sequences of up to 128 tokens, (\d+)% full", stdout)
    assert found and int(found[1]) >= int(found[2]) and 0 < int(found[3]) <= 100
    assert len(re.findall(r"(?m)^sequence \d+: \d+ tokens$", stdout)) == 2
    places = re.findall(r"(?m)^ +(\d+) to (\d+) +/.*\.jsonl, line \d+, \d+ learned: ", stdout)
    begins = [(int(first), int(last)) for first, last in places]
    assert begins[0][0] == 0
    for (_, last), (first, _) in pairwise(begins):
        assert first in (0, last + 1)


def test_a_labeller_ranks_what_is_sampled_later():
    stdout = tristage("preview", TINY, "--stage", "rm", "-n", "1", "rm.rankings.labeller=warmth", SHORT)[1]
    assert "then 4 answers of up to 8 tokens are sampled, and ranked by warmth" in stdout


def test_what_cannot_be_previewed_is_refused(tmp_path):
    status, _, stderr = tristage("preview", TINY, "--stage", "sft", f"data.sft.path={tmp_path}/none.jsonl")
    assert status == 2
    check_message(stderr, f"{tmp_path}/none.jsonl")
    assert tristage("preview", TINY)[0] == 2
