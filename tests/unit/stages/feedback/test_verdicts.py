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
        ("A good answer to this needs some care.", None),  # an article
        ("Note: A good answer is short.", None),
        ("The first is a joke, B", None),
        ("Answer A lacks detail, so B.", None),
        # A letter that is meant
        ("Verdict: B", 0.0),
        ("Verdict: A because it is short", 1.0),
        ("I choose (B), which is short.", 0.0),
        ("I choose **A** here.", 1.0),
        ("A is better.", 1.0),
        ("B wins by far", 0.0),
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


@pytest.mark.parametrize(
    ("reply", "pair", "ranks"),
    [
        ("B", 0.0, None),  # max_tokens: 1
        ("**A**\nBecause B is", 1.0, None),
        ("A > B, because A", 1.0, None),
        ("B > A = C > D\n\nThe first", None, [1, 0, 1, 2]),
        ('["B", ["A", "C"], "D"]\nSince', None, [1, 0, 1, 2]),
        ("Let me think. The better answer is A", None, None),  # and what would come next?
        ("Both are short. Answer A", None, None),
        ("I first thought of B > A = C > D", None, None),
        ("It is a tie between", None, None),
        ("B > A = C >", None, None),
    ],
)
def test_of_a_reply_that_was_cut_only_its_beginning_counts(reply, pair, ranks):
    assert read_pair(reply, cut=True) == pair
    assert read_ranking(reply, 4, cut=True) == ranks


@given(st.text(alphabet='ABC >=[]",*\n', max_size=60))
def test_any_reply_is_an_order_of_all_or_unreadable(reply):
    ranks = read_ranking(reply, 3)
    assert ranks is None or sorted(set(ranks)) == list(range(len(set(ranks))))
    assert read_pair(reply) in (None, 0.0, 0.5, 1.0)
