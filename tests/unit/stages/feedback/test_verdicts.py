"""Replies of judges: what they say, and what is unreadable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.feedback.verdicts import read_pair, read_ranking


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", 1.0),
        ("B", 0.0),
        ("  B.\n", 0.0),
        ("**A**", 1.0),
        ("Answer B", 0.0),
        ("The better one is A.", 1.0),
        ("[[B]]", 0.0),
        ("A\nBecause B is rude.", 1.0),
        ("B: answer A is rude", 0.0),
        ("A > B", 1.0),
        ("B > A", 0.0),
        ('["B", "A"]', 0.0),
        ("A = B", 0.5),
        ("[[C]]", 0.5),
        ("It is a tie.", 0.5),
        ("<think>A is long. B is short.</think>\n\nB", 0.0),
        # Unreadable
        ("<think>\nThe user asks for a joke. Answer A is shorter", None),
        ("<think>A > B, I think", None),
        ("", None),
        ("Both are fine.", None),
        ("A or B", None),
        ("A better answer would be B", None),
        ("a", None),
        ("AB", None),
        ("A is good, but it is a tie", None),
        ("<html>502 Bad Gateway</html>", None),
    ],
)
def test_what_a_reply_says_of_a_pair(reply, verdict):
    assert read_pair(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "ranks"),
    [
        ("B > A = C > D", [1, 0, 1, 2]),
        ("b is best. B>A=C>D", [1, 0, 1, 2]),
        ("**B** > **A** = **C** > **D**", [1, 0, 1, 2]),
        ("Answer B > Answer A = Answer C > Answer D", [1, 0, 1, 2]),
        ('["B", ["A", "C"], "D"]', [1, 0, 1, 2]),
        ('```json\n{"ranking": ["B", ["C", "A"], "D"]}\n```', [1, 0, 1, 2]),
        ("A = B = C = D", [0, 0, 0, 0]),
        ("B > A = C > D\nSo: B > C = A > D", [1, 0, 1, 2]),  # the same order twice
        ("A > B\n\nIn all: B > A = C > D", [1, 0, 1, 2]),  # an order of some is none
        ("<think>D > C > B > A?</think> B > A = C > D", [1, 0, 1, 2]),
        # Unreadable
        ("B > A = C > D, or D > C > B > A", None),  # two orders
        ("B > A > C", None),
        ("B > A > C > D > E", None),
        ("B > A > C > C", None),
        ("B, A, C, D", None),
        ("B < A < C < D", None),
        ('["B", "A", "C", 4]', None),
        ('["B", ["A", "C"], [], "D"]', None),
        ('["B", [["A"], "C"], "D"]', None),
        ('["B", "A", "C", "D"', None),
        ("", None),
        ("[" * 20_000, None),
        ("A > " * 5_000, None),
    ],
)
def test_what_a_reply_says_of_four_answers(reply, ranks):
    assert read_ranking(reply, 4) == ranks


@given(st.text(alphabet='ABC >=[]",*\n', max_size=60))
def test_any_reply_is_an_order_of_all_or_unreadable(reply):
    ranks = read_ranking(reply, 3)
    assert ranks is None or sorted(set(ranks)) == list(range(len(set(ranks))))
    assert read_pair(reply) in (None, 0.0, 0.5, 1.0)
