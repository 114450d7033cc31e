"""The process that renders templates answers each request, and no other."""

from __future__ import annotations

from typing import Any

import pytest

from data.batches import template_process
from data.batches.template_process import _Worker


def request(*texts: str) -> dict[str, Any]:
    jobs = [(0, number) for number in range(len(texts))]
    return {"templates": ["{{ text }}"], "rows": [{"text": text} for text in texts], "jobs": jobs}


def test_replies_that_an_interrupt_left_unread_answer_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    worker = _Worker()
    with monkeypatch.context() as patch:
        patch.setattr(template_process.json, "loads", interrupt)
        with pytest.raises(KeyboardInterrupt):
            worker.ask(request("old", "older"), 2)
    assert worker.ask(request("new"), 1) == (["new"], "")
