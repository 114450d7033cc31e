"""Very long rows and very many: time and memory stay in proportion."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.schema import Data, Source
from data.batches import tokenize
from data.sources.loading import load_rows

ROOT = Path(__file__).resolve().parents[3]
ROWS = 1_000_000
KIBIBYTES_PER_ROW = 0.7  # of Python's own, for a row of about 70 characters
COUNT = """
import resource, sys
from configs.schema import Source
from data.sources.loading import load_rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = load_rows(Source(path=sys.argv[1]), "demonstrations", print).rows
print(len(rows), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def peak() -> int:
    """Bytes of memory of this process at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("overlong", ["drop", "truncate"])
@pytest.mark.parametrize("text", ["a" * 100_000_000, "some words " * 2_000_000], ids=["letter", "words"])
def test_a_row_of_many_megabytes(text, overlong, tmp_path, tiny_tokenizer):
    path = tmp_path / "long.jsonl"
    path.write_text(
        json.dumps({"prompt": text, "completion": "x"}) + '\n{"prompt": "q", "completion": "x"}\n'
    )
    sources = {stage: Source(path=str(path)) for stage in ("sft", "rm", "ppo")}
    config = Data(**sources, chat=True, overlong=overlong)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
    begin, memory = time.monotonic(), peak()
    rows = load_rows(config.sources("sft")[0], "demonstrations", print).rows
    kept, counts = tokenize.demonstrations(rows, tiny_tokenizer, config)
    assert time.monotonic() - begin < 10
    assert peak() - memory < 8 * len(text) + 240 * 2**20
    assert (counts.dropped, counts.truncated) == ((1, 0) if overlong == "drop" else (0, 1))
    assert len(kept[0].prompt_ids) <= config.max_prompt_length


def test_cutting_out_the_middle_changes_nothing_that_is_kept(tiny_tokenizer, monkeypatch):
    text = " ".join(f"word {n}" for n in range(3000))
    sources = {stage: Source(path="a.jsonl") for stage in ("sft", "rm", "ppo")}
    config = Data(**sources, overlong="truncate", max_length=64, max_prompt_length=32)
    rows = [{"prompt": text, "completion": text}]
    cut, _ = tokenize.demonstrations(rows, tiny_tokenizer, config)
    monkeypatch.setattr(tokenize, "CHARACTERS_PER_TOKEN", 10**9)
    assert cut == tokenize.demonstrations(rows, tiny_tokenizer, config)[0]


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    path = tmp_path / "million.jsonl"
    with path.open("w") as stream:
        for n in range(ROWS):
            stream.write(f'{{"prompt": "What is {n} plus one?", "completion": "It is {n + 1}."}}\n')
    done = subprocess.run(
        [sys.executable, "-c", COUNT, path], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    count, kibibytes = map(int, done.stdout.split())
    assert count == ROWS and kibibytes < ROWS * KIBIBYTES_PER_ROW
