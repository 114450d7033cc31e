"""A judge behind an endpoint: both orders are asked, and verdicts that disagree are a tie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apps.evaluate.endpoint_judge import EndpointJudge, JudgeEndpoint, read_endpoint_judge
from configs.errors import UserError
from tests.support.chat_stub import chat_stub


def judge(url: str, **changes) -> EndpointJudge:
    values = {"url": url, "model": "m", "template": "{prompt}|{a}|{b}", "retries": 0} | changes
    return EndpointJudge(JudgeEndpoint.model_validate(values))


def longer(body) -> str:
    """Prefers the longer answer."""
    _, a, b = body["messages"][0]["content"].split("|")
    return "The better one is A." if len(a) > len(b) else "B"


def test_the_better_answer_wins_in_both_orders() -> None:
    with chat_stub(longer) as stub:
        assert judge(stub.url).prefer(["p", "q"], ["long answer", "x"], ["no", "much more"]) == [1.0, 0.0]
    assert len(stub.bodies) == 4
    assert {body["model"] for body in stub.bodies} == {"m"}


def test_a_judge_that_always_names_the_first_has_only_ties() -> None:
    with chat_stub(lambda body: "A") as stub:
        assert judge(stub.url).prefer(["p"], ["one"], ["two"]) == [0.5]


def test_unreadable_verdicts_are_ties_and_counted() -> None:
    with chat_stub(lambda body: "Both are fine.") as stub:
        endpoint = judge(stub.url)
        assert endpoint.prefer(["p"], ["one"], ["two"]) == [0.5]
    assert (endpoint.unreadable, endpoint.asked) == (2, 2)


def test_braces_in_an_answer_stay_text() -> None:
    with chat_stub(lambda body: "A") as stub:
        judge(stub.url).prefer(["{b}"], ["{prompt}"], ["two"])
    assert {body["messages"][0]["content"] for body in stub.bodies} == {
        "{b}|{prompt}|two",
        "{b}|two|{prompt}",
    }


@pytest.mark.parametrize(
    "content", [b"[]", b'{"choices": []}', b"no", b'{"choices": [{"message": {"content": 1}}]}']
)
def test_other_answers_are_refused(content: bytes) -> None:
    with chat_stub(lambda body: content) as stub, pytest.raises(UserError, match="gave no verdict"):
        judge(stub.url).prefer(["p"], ["one"], ["two"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("url: http://x/v1\nmodel: m\ntemplate: '{prompt} {a}'", r"no \{b\}"),
        ("url: ftp://x\nmodel: m", "url"),
        ("url: http://x/v1", "model"),
        ("url: http://x/v1\nmodel: m\nmodle: n", "modle"),
        ("[", "not YAML"),
        ("url: http://x/v1\nmodel: m\nmodel: n", "model is given twice"),
        ("url: http://x/v1\nmodel: 017\nretries: 1:30", "retries"),
        ("- a", "the file"),
        (json.dumps({"url": "http://user:secret@x/v1", "model": "m"}), "url"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "judge.yaml").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        read_endpoint_judge(tmp_path / "judge.yaml")
    assert "secret" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_endpoint_judge(tmp_path / "judge.yaml")
