"""The file of a judge: its keys, what it asks, and its digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.judge_file import JudgeEndpoint, judge_digest, read_judge

PLAIN = "url: http://x/v1\nmodel: m\n"


def read(folder: Path, text: str) -> JudgeEndpoint:
    (folder / "judge.yaml").write_text(text)
    return read_judge(folder / "judge.yaml", "--judges")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PLAIN + "template: '{prompt} {a}'", r"the template has no \{b\}, which mode: pairs needs"),
        (PLAIN + "mode: ranking\ntemplate: '{prompt} {a} {b}'", r"no \{answers\}, which mode: ranking"),
        (PLAIN + "mode: list", "mode: Input should be 'pairs' or 'ranking'"),
        (PLAIN + "template: '{a} or {b}'", r"the template has no \{prompt\} or \{last\}, which mode"),
        ("url: ftp://x\nmodel: m", "url"),
        ("url: http://x/v1", "model"),
        (PLAIN + "modle: n", "modle: Extra inputs are not permitted; the keys are url, model"),
        ("[", "not YAML"),
        ("#" * 2**17, "longer than 65,536 bytes"),
        (PLAIN + "model: n", "model is given twice"),
        (PLAIN + "retries: 1:30", "retries"),
        (PLAIN + "concurrency: 0", "concurrency"),
        (PLAIN + "timeout_seconds: yes", "timeout_seconds"),
        (PLAIN + "price: {input: -1, output: 1}", "price.input"),
        (PLAIN + "price: 3", "price"),
        (PLAIN + "parameters: [seed]", "parameters"),
        (PLAIN + "parameters: {messages: []}", "parameters: messages is the question; write it in template"),
        (PLAIN + "parameters: {model: other}", "parameters: model is said by model"),
        (PLAIN + "parameters: {model: null}", "parameters: model is said by model"),
        (
            PLAIN + "parameters: {stream: true}",
            "parameters: stream is not for a judge: its reply",
        ),
        (PLAIN + "parameters: {n: 4}", "parameters: n is not for a judge: one reply is read"),
        (
            PLAIN + "parameters: {temperature: .nan}",
            "parameters.temperature.float: Input should be a finite number",
        ),
        ("url: http://x/v1\nmodel: ''", "model"),
        ("- a", "it holds no `key: value`; the keys are url, model, mode"),
        ("", "it holds no `key: value`"),
        (PLAIN + "key_variable: secret-of-mine", "key_variable must be the name of an environment variable"),
        (json.dumps({"url": "http://user:secret@x/v1", "model": "m"}), "url"),
        (json.dumps({"url": "http://x/v1?key=secret", "model": "m"}), "url"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"--judges: {tmp_path}/judge.yaml: ")
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_judge(tmp_path / "judge.yaml", "--judges")
    (tmp_path / "judge.yaml").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8: byte 0 is 0xff; save it as UTF-8"):
        read_judge(tmp_path / "judge.yaml", "--judges")


def test_the_body_of_a_request(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}]
    plain = {"model": "m", "messages": messages, "max_tokens": 16, "temperature": 0}
    assert read(tmp_path, PLAIN).body("q") == plain
    assert read(tmp_path, PLAIN + "mode: ranking").body("q") == plain | {"max_tokens": 256}
    given = read(tmp_path, PLAIN + "parameters: {max_tokens: null, max_completion_tokens: 9, temperature: 1}")
    assert given.body("q") == {
        "model": "m",
        "messages": messages,
        "temperature": 1,
        "max_completion_tokens": 9,
    }


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        ("mode: ranking", True),
        ("template: 'Which? {prompt} {a} {b}'", True),
        ("max_tokens: 17", True),
        ("parameters: {seed: 1}", True),
        ("parameters: [", True),  # not YAML
        ("max_tokens: 16", False),  # the default
        ("# a comment", False),
        ("timeout_seconds: 5", False),
        ("retries: 9", False),
        ("concurrency: 1", False),
        ("key_variable: JUDGE_KEY", False),
        ("price: {input: 1, output: 1}", False),
    ],
)
def test_the_digest_is_of_what_is_asked_and_whom(tmp_path: Path, change: str, changes: bool) -> None:
    file = tmp_path / "judge.yaml"
    file.write_text(PLAIN)
    before = judge_digest(file)
    file.write_text(PLAIN + change)
    assert (judge_digest(file) != before) == changes
    file.write_text(PLAIN.replace("/v1", "/v2"))
    assert judge_digest(file) != before


def test_a_missing_file_has_no_digest(tmp_path: Path) -> None:
    assert judge_digest(tmp_path / "judge.yaml") is None
