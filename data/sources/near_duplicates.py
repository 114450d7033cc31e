"""Held-out prompts that nearly repeat a training prompt, found by MinHash (Broder 1997)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from typing import NamedTuple

from data.sources.words import WORD

SHINGLE = 3
PERMUTATIONS = 64
MOST = 20_000  # prompts of each side that are compared; a sample by hash of larger sets


class NearDuplicate(NamedTuple):
    """A held-out prompt, a training prompt that it nearly repeats, and their estimated similarity."""

    held_out: str
    trained: str
    similarity: float


def near_duplicates(
    held_out: Collection[str], trained: Collection[str], threshold: float
) -> list[NearDuplicate]:
    """The held-out prompts with the training prompt that is most like each, if it is like it at all.

    Args:
        threshold: Jaccard similarity of the sets of three neighbouring words, without case and punctuation.
    """
    if not held_out or not trained:
        return []
    from datasketch import MinHash, MinHashLSH  # imports scipy

    trained, held_out = _sample(trained), _sample(held_out)
    options = {"num_perm": PERMUTATIONS, "seed": 1}
    learned = MinHash.bulk(map(shingles, trained), **options)
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    with index.insertion_session() as session:
        for number, one in enumerate(learned):
            session.insert(number, one, check_duplication=False)
    found = []
    for prompt, one in zip(held_out, MinHash.bulk(map(shingles, held_out), **options), strict=True):
        similar = [(one.jaccard(learned[number]), -number) for number in index.query(one)]
        similarity, place = max(similar, default=(0.0, 0))
        if similarity >= threshold:
            found.append(NearDuplicate(prompt, trained[-place], similarity))
    return sorted(found, key=lambda each: -each.similarity)


def shingles(text: str) -> list[bytes]:
    """The sequences of three neighbouring words; of fewer words, the one of all."""
    words = re.findall(WORD, text.lower())
    count = max(1, len(words) - SHINGLE + 1)
    return [" ".join(words[start : start + SHINGLE]).encode() for start in range(count)]


def _sample(prompts: Collection[str]) -> list[str]:
    """At most MOST of the prompts, in an order that does not depend on theirs."""
    return sorted(sorted(prompts, key=lambda one: hashlib.sha256(one.encode()).digest())[:MOST])
