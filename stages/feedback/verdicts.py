"""What a judge's reply says: which of two answers is better, or the order of several."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from string import ascii_uppercase as LETTERS
from typing import Any

THOUGHT, THOUGHT_END = "<think>", "</think>"  # around what a model thinks aloud
DECORATION = re.compile(r"[*`\"]|\b(?:answer|response)\b", re.IGNORECASE)
LETTER = re.compile(r"\b[AB]\b")
# A letter that is meant as a verdict, and no article: "A good answer" has none.
NO_ARTICLE = r"(?!\s+(?!(?:is|was|wins|because|since|as|for|over|by|due)\b)[a-z])"
MEANT = re.compile(
    rf"(?:(?i:\b(?:answer|response|option|is)\b)|:)[\s*`\"'(\[]*([AB])\b{NO_ARTICLE}"  # after a word
    r"|[*`\"'(\[]([AB])[*`\"')\]]"  # set apart
    r"|\b([AB]) (?:is|was) (?:the )?better\b|\b([AB]) wins\b"
)
FIRST = re.compile(r"\W*([AB])(?=[.:)\]]|\s*$)", re.MULTILINE)  # a verdict, then perhaps its reasons
TIE = re.compile(r"\btie\b|\bequally good\b|\[\[C\]\]", re.IGNORECASE)  # [[C]] is MT-Bench's
CHAIN = re.compile(r"\b[A-Z](?:\s*[>=]\s*[A-Z])+\b")
LIST = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]")
FIRST_CHAIN, FIRST_LIST = re.compile(rf"\W*({CHAIN.pattern})"), re.compile(rf"\s*({LIST.pattern})")


def read_pair(reply: str, cut: bool = False) -> float | None:
    """1 if the reply prefers A, 0 if it prefers B, 1/2 for a tie; None if it is unreadable.

    It is readable if it begins with a letter alone, names only one of the letters and means it as a verdict,
    says that they tie, or has a form of `read_ranking`. `[[A]]`, `[[B]]` and `[[C]]` are the verdicts of
    Zheng et al. 2023.

    Args:
        cut: the reply ran out of tokens. Only a verdict at its beginning is sure.
    """
    if order := read_ranking(reply, 2, cut):
        return 0.5 if order[0] == order[1] else float(order[0] < order[1])
    said = _said(reply)
    if (first := FIRST.match(DECORATION.sub("", said))) is not None:
        return float(first[1] == "A")
    named, tie = set(LETTER.findall(said)), TIE.search(said)
    if cut or bool(tie) == bool(named) or len(named) > 1:
        return None
    if tie:
        return 0.5
    return float(named == {"A"}) if MEANT.search(said) else None


def read_ranking(reply: str, count: int, cut: bool = False) -> list[int] | None:
    """The rank of each of the first `count` letters, 0 for the best; None if the reply is unreadable.

    It is readable if it has an order of exactly these letters, and no other such order: `B > A = C`, or a
    list of JSON, `["B", ["A", "C"]]`, best first, where an inner list ties.

    Args:
        cut: the reply ran out of tokens. Only an order at its beginning is sure.
    """
    text = _said(reply)
    if cut:
        first = FIRST_CHAIN.match(DECORATION.sub("", text)) or FIRST_LIST.match(text)
        text = first[1] if first else ""
    found = {tuple(order) for groups in _groups(text) if (order := _ranks(groups, count))}
    return list(found.pop()) if len(found) == 1 else None


def _said(reply: str) -> str:
    """What follows the thought; nothing if the thought was cut off."""
    thought, _, said = reply.rpartition(THOUGHT_END)
    return "" if not thought and THOUGHT in said else said


def _groups(text: str) -> Iterator[list[list[str]]]:
    """Each order in a text: groups of letters, best first."""
    for chain in CHAIN.findall(DECORATION.sub("", text)):
        yield [re.findall("[A-Z]", group) for group in chain.split(">")]
    for listed in LIST.findall(text):
        try:
            items: list[Any] = json.loads(listed)
        except ValueError:
            continue
        yield [item if isinstance(item, list) else [item] for item in items]


def _ranks(groups: list[list[Any]], count: int) -> list[int]:
    """The rank of each letter; empty if the groups do not hold each of the letters once."""
    ranks = {letter: rank for rank, group in enumerate(groups) for letter in group if isinstance(letter, str)}
    whole = sum(map(len, groups)) == count and set(ranks) == set(LETTERS[:count]) and all(groups)
    return [ranks[letter] for letter in LETTERS[:count]] if whole else []
