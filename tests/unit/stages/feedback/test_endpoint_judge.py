"""A judge behind an endpoint: both modes, both orders, failures, hostile replies, costs and the cache."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.judge_file import JudgeEndpoint
from stages.feedback.endpoint_judge import EndpointJudge
from stages.feedback.verdict_cache import VerdictCache
from tests.contract.bad_inputs.entry import check_message
from tests.support.chat_stub import chat_stub

KEY = "rm.rankings.labeller"
LISTED: dict[str, Any] = {"mode": "ranking", "template": "{prompt}|{answers}"}
ANSWERS = ["bb", "dddd", "a", "ccc"]  # the judges below prefer the longest: ranks 2, 0, 3, 1


def judge(url: str, cache: VerdictCache | None = None, seed: int = 0, **changes: Any) -> EndpointJudge:
    values = {"url": url, "model": "m", "template": "{prompt}|{a}|{b}", "retries": 0} | changes
    return EndpointJudge(JudgeEndpoint.model_validate(values), KEY, cache, seed)


def longer(body) -> str:
    """Prefers the longer of two answers."""
    _, a, b = body["messages"][0]["content"].split("|")
    return "The better one is A." if len(a) > len(b) else "B"


def longest_first(body) -> str:
    """Orders answers by length, the longest first."""
    named = re.findall(r"Answer ([A-Z]): (.*)", body["messages"][0]["content"])
    return " > ".join(letter for letter, text in sorted(named, key=lambda each: -len(each[1])))


# Pairs


def test_the_better_answer_wins_in_both_orders() -> None:
    with chat_stub(longer) as stub:
        assert judge(stub.url).prefer(["p", "q"], ["long answer", "x"], ["no", "much more"]) == [1.0, 0.0]
    assert sorted(stub.questions) == [
        "p|long answer|no",
        "p|no|long answer",
        "q|much more|x",
        "q|x|much more",
    ]
    assert {body["model"] for body in stub.bodies} == {"m"}


def test_all_pairs_of_four_answers_are_asked_and_ranked_by_wins() -> None:
    with chat_stub(longer) as stub:
        assert judge(stub.url).rank(["p"], [ANSWERS]) == [[2, 0, 3, 1]]
    assert len(stub.bodies) == len(set(stub.questions)) == judge(stub.url).requests(4) == 12


def test_a_judge_that_always_names_the_first_has_only_ties() -> None:
    with chat_stub(lambda body: "A") as stub:
        assert judge(stub.url).prefer(["p"], ["one"], ["two"]) == [0.5]
        assert judge(stub.url).rank(["p"], [ANSWERS]) == [[0, 0, 0, 0]]


def test_a_pair_whose_verdicts_disagree_ties() -> None:
    def likes_first_unless_longest(body) -> str:
        *_, b = body["messages"][0]["content"].split("|")
        return "B" if b == "dddd" else "A"

    with chat_stub(likes_first_unless_longest) as stub:
        assert judge(stub.url).rank(["p"], [ANSWERS]) == [[1, 0, 1, 1]]


def test_equal_answers_tie_without_a_question() -> None:
    with chat_stub(longer) as stub:
        assert judge(stub.url).rank(["p", "q"], [["a", "bb", "a"], ["c", "c", "c"]]) == [[1, 0, 1], [0, 0, 0]]
    assert len(stub.bodies) == 2


# Rankings


def test_one_request_ranks_all_answers() -> None:
    with chat_stub(longest_first) as stub:
        assert judge(stub.url, **LISTED).rank(["p"], [ANSWERS]) == [[2, 0, 3, 1]]
        assert judge(stub.url, **LISTED).prefer(["p", "p"], ["a", "bbb"], ["bb", "a"]) == [0.0, 1.0]
    assert len(stub.bodies) == 3
    assert set(re.findall("Answer ([A-Z]): (.*)", stub.questions[0])) != set()


def test_the_order_shown_is_random_and_depends_on_the_seed_alone() -> None:
    answers = [[f"{number} {letter}" for letter in "abcd"] for number in range(12)]
    prompts = list(map(str, range(12)))
    with chat_stub(longest_first) as stub:
        for seed in (0, 0, 1):
            judge(stub.url, seed=seed, concurrency=1, **LISTED).rank(prompts, answers)
    first, again, other = stub.questions[:12], stub.questions[12:24], stub.questions[24:]
    assert first == again != other
    firsts = {re.findall(r"Answer A: \d+ (.)", question)[0] for question in first}
    assert len(firsts) > 1  # no sample stands first for all prompts


def test_a_judge_of_places_favours_no_sample() -> None:
    answers = [[f"{number} {letter}" for letter in "abcd"] for number in range(200)]
    with chat_stub(lambda body: "A > B > C > D") as stub:
        ranks = judge(stub.url, concurrency=16, **LISTED).rank(list(map(str, range(200))), answers)
    means = [sum(column) / 200 for column in zip(*ranks, strict=True)]
    assert means == pytest.approx([1.5] * 4, abs=0.3)  # deviation of a mean: sqrt(1.25 / 200) = 0.08


def test_ties_of_a_ranking_stay() -> None:
    with chat_stub(lambda body: "B = A > D = C") as stub:
        (ranks,) = judge(stub.url, **LISTED).rank(["p"], [ANSWERS])
    assert sorted(ranks) == [0, 0, 1, 1]


def test_more_answers_than_letters_are_refused() -> None:
    answers = [str(number) for number in range(27)]
    with chat_stub(longest_first) as stub:
        for ask in (lambda it: it.rank(["p"], [answers]), lambda it: it.try_once(27)):
            with pytest.raises(UserError, match=r"takes at most 26 answers.*Lower rm\.rankings"):
                ask(judge(stub.url, **LISTED))
        assert judge(stub.url, **LISTED).rank(["p"], [[*answers[:26], "0"]])
    assert len(stub.bodies) == 1


# What is shown


def test_braces_in_an_answer_stay_text() -> None:
    with chat_stub(lambda body: "A") as stub:
        judge(stub.url).prefer(["{b}"], ["{prompt}"], ["two"])
    assert set(stub.questions) == {"{b}|{prompt}|two", "{b}|two|{prompt}"}


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Sky?"},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "And at night?"},
]


def test_a_judge_reads_the_whole_conversation() -> None:
    whole = "System: Be brief.\n\nUser: Sky?\n\nAssistant: Blue.\n\nUser: And at night?"
    with chat_stub(lambda body: "A") as stub:
        judge(stub.url).prefer([TALK], ["one"], ["two"])
        judge(stub.url, template="{last}|{a}|{b}").prefer([TALK], ["one"], ["two"])
    with chat_stub(lambda body: "A > B") as listing:
        judge(listing.url, **LISTED).rank([TALK[:2]], [["x", "y"]])
    assert set(stub.questions[:2]) == {f"{whole}|one|two", f"{whole}|two|one"}
    assert set(stub.questions[2:4]) == {"And at night?|one|two", "And at night?|two|one"}
    assert listing.questions[0].startswith("System: Be brief.\n\nUser: Sky?|Answer A: ")


def test_one_message_is_its_content_alone() -> None:
    """So a judge is asked the same about a prompt of plain text and about one of a single message."""
    with chat_stub(lambda body: "A") as stub:
        judge(stub.url).prefer(["Sky?", TALK[1:2]], ["one", "one"], ["two", "two"])
    assert set(stub.questions) == {"Sky?|one|two", "Sky?|two|one"}


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "planted-secret\n")
    refusal = json.dumps({"error": {"message": "Incorrect API key: planted-secret"}}).encode()
    with chat_stub(lambda body: (401, refusal)) as stub, pytest.raises(UserError) as caught:
        judge(stub.url, key_variable="JUDGE_KEY").prefer(["p"], ["one"], ["two"])
    check_message(str(caught.value), f"{KEY}: {stub.url} gave no verdict (status 401: Incorrect API key: [")
    assert stub.keys[0] == "Bearer planted-secret" and "planted-secret" not in str(caught.value)


def test_a_missing_key_is_refused() -> None:
    with pytest.raises(UserError, match="the environment variable NO_SUCH_KEY is not set"):
        judge("http://127.0.0.1:9/", key_variable="NO_SUCH_KEY")


# Failures


HOSTILE: list[tuple[Any, str]] = [
    (b"[]", "its answer is b'[]'"),
    (b'{"choices": []}', "its answer is"),
    (b"no", "its answer is b'no'"),
    (b"", "its answer is b''"),
    (b"<!DOCTYPE html><html>Log in</html>", "its answer is b'<!DOCTYPE html>"),
    (b"[" * 10**5, "its answer is b'[["),
    (b'{"choices": [{"message": {"content": 1}}]}', "its content is 1"),
    (b'{"choices": [{"message": {"content": "A", "content": "B"}}]}', "'content' is given twice"),
    (b'{"choices": [], "choices": [{"message": {"content": "A"}}]}', "'choices' is given twice"),
    (
        b'{"choices": [{"message": {"content": "A"}}], "error": {"message": "full"}}',
        "there was an error: {'me",
    ),
    (b'{"error": "full"}', "there was an error: 'full'"),
    (
        json.dumps({"choices": [{"message": {"content": "A"}}, {"message": {"content": "B"}}]}).encode(),
        "its ans",
    ),
    (b'{"choices": {"message": {"content": "A"}}}', "not one choice"),
    (
        b'{"choices": [{"message": {"content": "A"}, "finish_reason": "content_filter"}]}',
        "its content filter",
    ),
    (
        b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}',
        "content filter ended",
    ),
    (b'{"choices": [{"message": {"content": "A"}}]}' + b" " * 2**24, "larger than 16 MiB"),
    ((404, b'{"error": {"message": "no model m"}}'), "status 404: no model m"),
    ((400, b"<html>" + b"x" * 10**6), "status 400: <html>xxx"),
    ((500, b""), "status 500)"),
    ((429, b'{"error": "slow down"}'), "status 429"),
]


@pytest.mark.parametrize(("answer", "reason"), HOSTILE, ids=[reason for _, reason in HOSTILE])
def test_other_answers_are_refused(answer: Any, reason: str) -> None:
    with chat_stub(lambda body: answer) as stub, pytest.raises(UserError) as caught:
        judge(stub.url).prefer(["p"], ["one"], ["two"])
    check_message(str(caught.value), f"{KEY}: {stub.url} gave no verdict (", reason, "Check url, model")


def test_a_request_that_failed_is_repeated() -> None:
    failures = [(503, b""), (429, b"")]
    with chat_stub(lambda body: failures.pop() if failures else longer(body)) as stub:
        assert judge(stub.url, retries=2, concurrency=1).prefer(["p"], ["one"], ["three"]) == [0.0]
    assert len(stub.bodies) == 2 + 2


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 520, 524, 529])
def test_statuses_that_pass_are_repeated(status: int) -> None:
    """Those of proxies, too: 520 to 524 are Cloudflare's, and 529 is Anthropic's for too many requests."""
    failures = [(status, b"")]
    with chat_stub(lambda body: failures.pop() if failures else longer(body)) as stub:
        assert judge(stub.url, retries=1, concurrency=1).prefer(["p"], ["one"], ["three"]) == [0.0]
    with chat_stub(lambda body: (404, b"")) as stub, pytest.raises(UserError, match="status 404"):
        judge(stub.url, retries=1, concurrency=1).prefer(["p"], ["one"], ["three"])
    assert len(stub.bodies) == 1


def test_a_slow_endpoint_is_refused() -> None:
    def slow(body) -> str:
        time.sleep(2)
        return "A"

    started = time.monotonic()
    with (
        chat_stub(slow) as stub,
        pytest.raises(UserError, match=r"longer than timeout_seconds, 0\.2|timed out"),
    ):
        judge(stub.url, timeout_seconds=0.2).prefer(["p"], ["one"], ["two"])
    assert time.monotonic() - started < 2


def test_nobody_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"gave no verdict \(ConnectionError"):
        judge("http://127.0.0.1:9/v1").prefer(["p"], ["one"], ["two"])


def test_a_failure_ends_the_asking() -> None:
    def refuse_the_third(body) -> Any:
        return (400, b"no") if len(stub.bodies) == 3 else "A"

    with chat_stub(refuse_the_third) as stub, pytest.raises(UserError):
        judge(stub.url, concurrency=1).rank(list("pqrstu"), [ANSWERS] * 6)
    assert len(stub.bodies) == 3


# Unreadable replies


def test_unreadable_verdicts_are_ties_and_counted() -> None:
    def shy_of_q(body) -> str:
        return "Both are fine." if body["messages"][0]["content"].startswith("q") else longer(body)

    with chat_stub(shy_of_q) as stub:
        endpoint = judge(stub.url)
        assert endpoint.prefer(["p", "q"], ["one", "one"], ["three", "three"]) == [0.0, 0.5]
    assert (endpoint.usage()["judge_unreadable"], endpoint.usage()["judge_requests"]) == (2, 4)


def test_a_reply_that_ran_out_of_tokens_is_no_verdict() -> None:
    def cut(text: str) -> tuple[int, bytes]:
        choice = {"message": {"content": text}, "finish_reason": "length"}
        return 200, json.dumps({"choices": [choice]}).encode()

    def thinking(body) -> Any:
        asks_p = body["messages"][0]["content"].startswith("p")
        return longer(body) if asks_p else cut("The better one is A")

    with chat_stub(thinking) as stub:
        endpoint = judge(stub.url)
        assert endpoint.prefer(["p", "q"], ["one", "one"], ["three", "three"]) == [0.0, 0.5]
    assert endpoint.usage()["judge_unreadable"] == 2


@pytest.mark.parametrize("options", [{}, LISTED], ids=["pairs", "ranking"])
def test_more_than_half_unreadable_is_refused_and_one_is_shown(options) -> None:
    reply = "As a model,\x1b[31m I cannot choose."
    with chat_stub(lambda body: reply) as stub, pytest.raises(UserError) as caught:
        judge(stub.url, **options).rank(["p"], [ANSWERS])
    count = len(stub.bodies)
    check_message(
        str(caught.value), f"{KEY}: {count} of {count} replies of m are unreadable", "I cannot choose"
    )
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("reason", [None, "stop", "length"])
def test_an_error_of_none_is_none(reason) -> None:
    choice = {"message": {"content": "A"}, "finish_reason": reason, "content_filter_results": {}}
    content = json.dumps({"choices": [choice], "error": None}).encode()
    with chat_stub(lambda body: content) as stub:
        assert judge(stub.url).prefer(["p"], ["one"], ["two"]) == [0.5]


def test_a_reply_that_the_model_declines_is_unreadable() -> None:
    nothing = json.dumps({"choices": [{"message": {"content": None, "refusal": "no"}}]}).encode()
    with chat_stub(lambda body: nothing if len(stub.bodies) == 1 else "B") as stub:
        endpoint = judge(stub.url, concurrency=1)
        assert endpoint.prefer(["p"], ["one"], ["two"]) == [0.5]
    assert endpoint.usage()["judge_unreadable"] == 1


def test_of_a_long_reply_the_end_is_read(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "cache.jsonl")
    with chat_stub(lambda body: "B " + "so " * 10**6 + "\nA > B") as stub:
        judge(stub.url, cache).prefer(["p"], ["one"], ["two"])
    assert (tmp_path / "cache.jsonl").stat().st_size < 50_000


# Before training


def test_one_question_is_tried() -> None:
    with chat_stub(lambda body: "A") as stub:
        assert judge(stub.url).try_once(4) == f"{KEY}: requests to m for each prompt: at most 12"
        assert len(stub.bodies) == 1
    with chat_stub(longest_first) as stub:
        assert judge(stub.url, **LISTED).try_once(4).endswith("at most 1")
    with chat_stub(lambda body: "Well.") as stub, pytest.raises(UserError, match=r"such as 'Well\.'"):
        judge(stub.url).try_once(4)


# Costs


def test_tokens_are_summed_and_priced() -> None:
    with chat_stub(longer) as stub:
        endpoint = judge(stub.url, price={"input": 0.15, "output": 0.60})
        endpoint.rank(["p"], [ANSWERS])
        endpoint.rank(["p"], [ANSWERS])  # known by now
    assert endpoint.usage() == {
        "judge_requests": 12,
        "judge_unreadable": 0,
        "judge_prompt_tokens": 120,
        "judge_completion_tokens": 24,
        "judge_cost": pytest.approx((120 * 0.15 + 24 * 0.60) / 1e6),
    }
    assert "judge_cost" not in judge(stub.url).usage() and endpoint.without_usage == 0


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": True},
        {"prompt_tokens": "9"},
    ],
)
def test_an_endpoint_that_does_not_tell_its_tokens(usage) -> None:
    content = json.dumps({"choices": [{"message": {"content": "A"}}], "usage": usage}).encode()
    with chat_stub(lambda body: content) as stub:
        endpoint = judge(stub.url)
        endpoint.prefer(["p"], ["one"], ["two"])
    assert endpoint.without_usage == 2 and endpoint.usage()["judge_prompt_tokens"] == 0


# The cache


@pytest.mark.parametrize("options", [{}, LISTED], ids=["pairs", "ranking"])
def test_what_is_in_the_cache_is_not_asked_again(options, tmp_path: Path) -> None:
    answer, file = longest_first if options else longer, tmp_path / "cache.jsonl"
    with chat_stub(answer) as stub:
        first = judge(stub.url, VerdictCache(file), **options)
        ranks = first.rank(["p", "q"], [ANSWERS] * 2)
        asked = len(stub.bodies)
        again = judge(stub.url, VerdictCache(file), **options)
        assert again.rank(["p", "q"], [ANSWERS] * 2) == ranks
        assert len(stub.bodies) == asked and again.usage() == first.usage()
        judge(stub.url, VerdictCache(file), **options | {"max_tokens": 5}).rank(["p"], [ANSWERS])
        assert len(stub.bodies) > asked


def test_after_a_failure_only_the_rest_is_asked(tmp_path: Path) -> None:
    broken = threading.Event()

    def breaks(body) -> Any:
        return (400, b"over quota") if broken.is_set() and len(stub.bodies) > 8 else longer(body)

    file = tmp_path / "cache.jsonl"
    with chat_stub(breaks) as stub:
        broken.set()
        with pytest.raises(UserError, match=r"over quota.*8 replies are kept, and the same command resumes"):
            judge(stub.url, VerdictCache(file), concurrency=1).rank(["p"], [ANSWERS])
        broken.clear()
        before = len(stub.bodies)
        assert judge(stub.url, VerdictCache(file)).rank(["p"], [ANSWERS]) == [[2, 0, 3, 1]]
        assert len(stub.bodies) - before == 12 - 8
