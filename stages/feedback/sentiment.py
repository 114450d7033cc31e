"""The sentiment of a text, by a lexicon."""

from __future__ import annotations

from functools import cache

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


def sentiment(text: str) -> float:
    """VADER's compound score in [-1, 1] (Hutto and Gilbert 2014)."""
    compound: float = _analyzer().polarity_scores(text)["compound"]
    return compound


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()  # reads its lexicon from disk
