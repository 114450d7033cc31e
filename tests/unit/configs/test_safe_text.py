"""What is shown and stored holds no secret, and no control character acts on a terminal."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from configs.errors import UserError
from configs.safe_text import keep_secret, may_hold_secret, redacted, safe, visible

KEY = "pl4nted 'key'/ü\nof two lines"


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "HF_TOKEN", "my_password", "AWS_SECRET", "KEY", "DB_CREDENTIALS"]
)
def test_values_of_secret_variables_are_redacted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEY in redacted(f"Bearer {KEY}")
    monkeypatch.setenv(name, f"{KEY}\n")
    for form in (KEY, repr(KEY), json.dumps(KEY), quote(KEY, safe="")):
        message = redacted(f"bad header {form}.")
        assert "pl4nted" not in message and message.startswith("bad header") and "[redacted]" in message


def test_a_short_value_is_an_ordinary_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORT_KEY", "step")
    assert redacted("step 3") == "step 3"


def test_a_declared_secret_is_redacted_everywhere() -> None:
    keep_secret("a-key-of-an-odd-variable")
    assert str(UserError("401 for a-key-of-an-odd-variable")) == "401 for [redacted]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:pw@host/x: gone", "at http://[redacted]@host/x: gone"),
        ("at http://me:p/w@host/x", "at http://[redacted]@host/x"),
        ("'https://host/x?token=pw' failed", "'https://host/x?[redacted]' failed"),
        ("https://host/x#token=pw", "https://host/x?[redacted]"),
        ("https://host/x;key=pw", "https://host/x?[redacted]"),
        ("see https://host/x; it says", "see https://host/x; it says"),
        ("a@b.c wrote", "a@b.c wrote"),
    ],
)
def test_urls_lose_what_may_be_a_secret(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text", ["a\x1b[31mb", "a\x9b31mb", "a\rb", "a\x07b", "a\u202eb", "a\ud800b", "a\x7fb"]
)
def test_control_characters_become_symbols(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text) and shown[0] == "a" and shown.isprintable() and shown.encode()


def test_ordinary_text_stays() -> None:
    for text in ("two\nlines\tof text", "naïve 日本語 😀", ""):
        assert safe(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "http://h",
        "HTTPS://h",
        "s3://b",
        "u:pw@h",
        "//u:pw@h",
        "x.jsonl?token=1",
        "x#key=1",
        "x;a=1",
        "http:\\\\h",
    ],
)
def test_places_that_may_hold_a_secret(text: str) -> None:
    assert may_hold_secret(text)


@pytest.mark.parametrize(
    "text", ["data/x.jsonl", "owner/set", "/a/year=2024/x.parquet", "C:x", "a@b", "my:fn"]
)
def test_places_that_hold_none(text: str) -> None:
    assert not may_hold_secret(text)
