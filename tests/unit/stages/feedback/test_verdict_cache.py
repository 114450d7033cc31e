"""Replies on disk: kept over a kill, refused if damaged, whole lines only."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs.errors import UserError
from stages.feedback.verdict_cache import Reply, VerdictCache, question_key

REPLIES = {f"key {number}": Reply(f"reply \u2028 \ud800 {number}", number, None) for number in range(3)}


def written(file: Path) -> Path:
    cache = VerdictCache(file)
    for key, reply in REPLIES.items():
        cache.add(key, reply)
    return file


def test_replies_are_read_back(tmp_path):
    cache = VerdictCache(written(tmp_path / "cache.jsonl"))
    assert {key: cache.get(key) for key in REPLIES} == REPLIES
    assert len(cache) == 3 and cache.get("another") is None


def test_a_reply_that_was_cut_is_read_back_as_one(tmp_path):
    cache = VerdictCache(tmp_path / "cache.jsonl")
    cache.add("cut", Reply("A", 1, 2, cut=True))
    assert VerdictCache(tmp_path / "cache.jsonl").get("cut") == Reply("A", 1, 2, cut=True)
    assert '"cut"' not in written(tmp_path / "whole.jsonl").read_text()  # as earlier versions wrote it


def test_without_a_file_they_are_in_memory():
    cache = VerdictCache()
    cache.add("key", Reply("A"))
    assert cache.get("key") == Reply("A") and cache.file is None


def test_a_last_line_that_a_kill_has_cut_is_dropped_and_written_again(tmp_path):
    file = written(tmp_path / "cache.jsonl")
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        cache = VerdictCache(file)
        assert len(cache) == lines
        assert file.read_bytes() == b"".join(whole.splitlines(keepends=True)[:lines])
    file.write_bytes(whole[:-5])
    VerdictCache(file).add("key 2", REPLIES["key 2"])
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "nonsense",
        "[]",
        '{"question": "k", "reply": "A", "sha256": ""}',
        '{"question": "k", "reply": {"text": "A", "more": 1}, "sha256": ""}',
        json.dumps({"question": "k", "reply": {"text": "A"}, "sha256": "0" * 64}),
    ],
)
def test_a_damaged_line_is_refused(line, tmp_path):
    file = written(tmp_path / "cache.jsonl")
    file.write_bytes(file.read_bytes() + line.encode() + b"\n")
    with pytest.raises(UserError, match=r"cache.jsonl, line 4: damaged.*Remove the line; its question is"):
        VerdictCache(file)


def test_a_flipped_bit_is_refused(tmp_path):
    file = written(tmp_path / "cache.jsonl")
    content = bytearray(file.read_bytes())
    for position in range(0, len(content), 7):
        content[position] ^= 2
        file.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            VerdictCache(file)
        content[position] ^= 2


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    file = written(tmp_path / "cache.jsonl")
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    cache = VerdictCache(file)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        cache.add("key 3", Reply("B"))
    assert file.read_bytes() == before and cache.get("key 3") is None


def test_threads_share_a_cache(tmp_path):
    cache = VerdictCache(tmp_path / "cache.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cache.add(str(number), Reply("A" * number)), range(100)))
    again = VerdictCache(tmp_path / "cache.jsonl")
    assert all(again.get(str(number)) == Reply("A" * number) for number in range(100))


def test_a_key_is_of_the_address_and_the_whole_body():
    keys = {
        question_key(url, {"model": model, "messages": [{"content": text}]})
        for url in ("http://a/", "http://b/")
        for model in ("m", "n")
        for text in ("p", "q")
    }
    assert len(keys) == 8
    assert question_key("u", {"a": 1, "b": 2}) == question_key("u", {"b": 2, "a": 1})
