"""Stand-ins for people: functions that score an answer. They rank samples, or judge the end result."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

Labeller = Callable[[str], float]
REPETITION_WEIGHT = 3.0


def repeated_bigrams(text: str) -> float:
    """Share of a text's word bigrams that repeat an earlier one, in [0, 1)."""
    words = text.lower().split()
    bigrams = list(pairwise(words))
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()  # reads its lexicon from disk


def warmth(text: str) -> float:
    """Sentiment in [-1, 1] (VADER's compound score, Hutto and Gilbert 2014) less repetition.

    Sentiment alone would be highest for a collapsed policy that repeats one happy phrase.
    """
    sentiment = _analyzer().polarity_scores(text)["compound"]
    return sentiment - REPETITION_WEIGHT * repeated_bigrams(text)


LABELLERS: dict[str, Labeller] = {"warmth": warmth}


def ranks_of(scores: list[float]) -> list[int]:
    """Rank of each score, 0 for the best; equal scores share a rank, and ranks have no gaps."""
    order = sorted(set(scores), reverse=True)
    return [order.index(score) for score in scores]
