"""Replies of judges: what they say, and what is unreadable."""

from __future__ import annotations

import time

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
    "reply",
    [
        "Answer {} is worse.",
        "Answer {} is wrong.",
        "Answer {} is incorrect.",
        "Answer {} is not better.",
        "{} isn't better",
        "{} isn’t better",
        "Answer {} is the loser",
        "Option {} is not as good.",
        "The worse answer is {}.",
        "Worst: {}",
        "Loser: {}",
        "Loser\n{}",
        "Which is the worst?\n{}",
        "The worst one is\n\n[[{}]]",
        "Eliminate answer {}.",
        "I reject: {}",
        "I would never choose {}",
        "{} is second best",
        "{} is better. Not really.",
        "{} is better. Actually, no.",
        "{}\n{} is not better.",
        "{}\nIt is worse.",
        "{}: rude.",
        "({}) is rude.",
        "[[{}]] is worse",
        "If {} is better",
        "{} is correct",
        '{"worse": "{}"}',
        '{"winner": "{}", "loser": "{}"}',
    ],
)
@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_letter_that_loses_or_may_lose_is_no_verdict(reply, letter):
    assert read_pair(reply.replace("{}", letter)) is None


@pytest.mark.parametrize(
    "reply",
    [
        "A: 3/10\nB: 9/10",
        "A: 3/10, B 9/10",
        "**A**: weak. **B**: strong.",
        "**A**: strong. **B**: weak.",
        "A) good\nB) better",
        "| A | good |\n| B | better |",
        "A: B is better",
        "A\nB",
        "A: good\nB: better\n\nB",
        "[[A]] or [[B]]? [[B]]",
        "A.\nWait, B.",
        "A\nNo: B",
        "A\nB is what I would pick.",
        "I prefer A. On reflection, B.",
        "I choose neither A nor B",
        "A > B is wrong",
        "A > B? No.",
        "worst to best: A > B",
        'Options: ["A", "B"]. I choose B.',
        '{"winner": "A", "best": "B"}',
        '{"winner": "A", "winner": "B"}',
        "It is not a tie.",
    ],
)
def test_a_reply_that_says_two_things_is_unreadable(reply):
    assert read_pair(reply) is None


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A. Blue.\nB. I do not know.\n\nMy verdict: B", 0.0),
        ("A is short.\nB is long.\n\n[[B]]", 0.0),
        ("A\n\nAnswer B is incorrect.", 1.0),
        ("A. Answer A is more accurate.", 1.0),
        ("Verdict: A.\nB is rude.", 1.0),
        ("Answer A is better because B is rude.", 1.0),
        ("A is better than B.", 1.0),
        ("I prefer B over A.", 0.0),
        ("B beats A", 0.0),
        ("So, I think A is better.", 1.0),
        ("My final verdict is: [[A]]", 1.0),
        ("Better answer: A", 1.0),
        ("Winner: B", 0.0),
        ("Final answer: B", 0.0),
        ("The answer is A.", 1.0),
        ("## Verdict:\nB", 0.0),
        ("'A'", 1.0),
        ("Best to worst: B > A", 0.0),
        ('{"winner": "B"}', 0.0),
        ('{"verdict": "A", "reason": "B is not kind"}', 1.0),
        ('```json\n{"better_answer": "Answer B"}\n```', 0.0),
        ('{"winner": "tie"}', 0.5),
    ],
)
def test_a_clear_verdict_wins(reply, verdict):
    assert read_pair(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "ranks"),
    [
        ("Best to worst: A > B > C", [0, 1, 2]),
        ('{"best_to_worst": ["A", "B", "C"]}', [0, 1, 2]),
        ('{"ranking": ["A", "B", "C"], "reason": "C is not kind"}', [0, 1, 2]),
        ('{"ranking": [\n  "A",\n  "B", "C"\n]}', [0, 1, 2]),
        ("C is not kind.\n\nA > B > C\nC is the worst.", [0, 1, 2]),
        # The wrong way round, or denied
        ("worst to best: A > B > C", None),
        ("From the worst answer to the best one:\nA > B > C", None),
        ("A > B > C. Worst first.", None),
        ('["A","B","C"] (worst first)', None),
        ('["A","B","C"]\n(worst first)', None),
        ('{"worst_to_best": ["A", "B", "C"]}', None),
        ('{"rejected": ["A", "B", "C"]}', None),
        ("In ascending order: A > B > C", None),
        ("A > B > C is the wrong order", None),
    ],
)
def test_the_direction_of_an_order(reply, ranks):
    assert read_ranking(reply, 3) == ranks


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    "part", ["\n", ":\n", ". ", "- ", "A. ", "A: ", "worst ", "A > B\n", "{", "[", '["A", ', "I ", "so, "]
)
def test_long_replies_are_read_in_time(part, cut):
    started = time.monotonic()
    reply = (part * 20_000)[:20_000]
    read_pair(reply, cut), read_ranking(reply, 3, cut)
    assert time.monotonic() - started < 5  # quadratic ones took 60


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
