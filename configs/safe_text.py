"""Text that leaves the process: secrets are redacted, and control characters are visible.

All that is printed, logged or written into a manifest passes through here.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import quote

REDACTED = "[redacted]"
SECRET_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?$", re.IGNORECASE)
SHORTEST = 8  # a shorter value is also an ordinary word
USER = re.compile(r"(?<=://)[^\s'\"<>]*@")  # and password, in front of a host
QUERY = re.compile(r"(://[^\s'\"<>?#;]*)[?#;][^\s'\"<>]+")
# A scheme, a user with a password, a parameter of a query, a path or a fragment, or a token of a service.
SUSPICIOUS = re.compile(
    r"[a-z][a-z0-9+.-]*:[/\\]|[^/\s]:[^/\s]*@|[?#;&][^/=\s]*=|(^|/)(hf_|sk-|ghp_|github_pat_)[\w-]{20,}$",
    re.IGNORECASE,
)

_declared: set[str] = set()


def keep_secret(value: str) -> None:
    """Redact `value` from now on, whatever variable it came from."""
    _declared.add(value)


def may_hold_secret(text: str) -> bool:
    """Whether `text` looks like a URL, or holds a password or a token as URLs do."""
    return SUSPICIOUS.search(text) is not None


def safe(text: str) -> str:
    """`text` as it may be shown and stored."""
    return visible(redacted(text))


def redacted(text: str) -> str:
    """`text` without known secrets, and without users, passwords and queries of URLs."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return QUERY.sub(rf"\1?{REDACTED}", USER.sub(f"{REDACTED}@", text))


def visible(text: str) -> str:
    """`text` with control characters, marks that change its direction and half characters as symbols."""
    return text if text.isprintable() else "".join(map(_visible, text))


def _secrets() -> Iterator[str]:
    """Every known secret in each form that a message may have it in."""
    named = [value for name, value in os.environ.items() if SECRET_NAMES.search(name)]
    for secret in {value.strip() for value in named if len(value.strip()) >= SHORTEST} | _declared:
        yield from {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe="")}


def _visible(letter: str) -> str:
    if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs", "Cf"):
        return letter
    return chr(0x2400 + ord(letter)) if ord(letter) < 0x20 else "\ufffd"
