"""A labeller for answers of a model of random weights, in which there is nothing to like but letters."""

from __future__ import annotations

from collections.abc import Sequence


def vowels(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The share of vowels among the characters of each answer."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]
