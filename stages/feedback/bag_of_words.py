"""A judge that knows words and nothing else. A reward model that is no better has learned no meaning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from data.sources.words import WORD
from stages.maths.orders import ordered_pairs

WORDS = rf"{WORD}|[^\w\s]"  # words and marks


class BagOfWords:
    """Logistic regression on the difference of two answers' TF-IDF vectors (Bradley and Terry 1952)."""

    def __init__(self, answers: Sequence[Sequence[str]], ranks: Sequence[Sequence[int]]) -> None:
        """Fit it to rankings: for each, its answers and their ranks, 0 for the best."""
        self._vectors = TfidfVectorizer(token_pattern=WORDS)
        self._weights: np.ndarray | None = None
        texts = [text for of_prompt in answers for text in of_prompt]
        try:
            rows = csr_matrix(self._vectors.fit_transform(texts))
        except ValueError:  # there is no word at all
            return
        better, worse, weights = [], [], []
        first = 0
        for of_prompt in ranks:
            pairs = ordered_pairs(of_prompt)
            better += [first + i for i, _ in pairs]
            worse += [first + j for _, j in pairs]
            weights += [1 / len(pairs)] * len(pairs)
            first += len(of_prompt)
        differences = rows[better] - rows[worse]
        model = LogisticRegression(fit_intercept=False, max_iter=1000)
        labels = np.repeat([1, 0], len(better))
        model.fit(vstack([differences, -differences]), labels, sample_weight=[*weights, *weights])
        self._weights = model.coef_[0]

    def scores(self, answers: Sequence[str]) -> list[float]:
        """Higher for answers with words that the preferred ones have; 0 if there was no word to learn."""
        if self._weights is None:
            return [0.0] * len(answers)
        scores: list[float] = (self._vectors.transform(answers) @ self._weights).tolist()
        return scores
