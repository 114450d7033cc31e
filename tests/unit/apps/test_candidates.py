"""Names of candidates are read as they are meant, or refused by name."""

from __future__ import annotations

import pytest

from apps.evaluate.candidates import Candidate, parse_candidates
from configs.errors import UserError


def test_each_form() -> None:
    names = ["base", "sft@4", "base+8", "base+2-nearest", "base+2-shuffled", "runs/other+x/ppo/adapter"]
    assert parse_candidates(names) == [
        Candidate("base", "base"),
        Candidate("sft@4", "sft", best_of=4),
        Candidate("base+8", "base", shots=8),
        Candidate("base+2-nearest", "base", shots=2, choice="nearest"),
        Candidate("base+2-shuffled", "base", shots=2, choice="shuffled"),
        Candidate("runs/other+x/ppo/adapter", "runs/other+x/ppo/adapter"),
    ]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["sft"], "two or more"),
        (["sft", "sft"], "twice"),
        (["sft", " sft"], "'sft' stands there twice"),
        (["sft@0", "ppo"], "from 1 to 1024"),
        (["base+5000", "ppo"], "from 1 to 1024"),
        (["", "ppo"], "none of"),
    ],
)
def test_others_are_refused(names: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_candidates(names)
