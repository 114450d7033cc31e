"""A process that renders Jinja templates: JSON lines in, JSON lines out. `template_process` starts it.

A template is a program of others. Here, the system bounds its memory and its time, because nothing within the
process can stop every loop and every text of gigabytes. It imports nothing of this project, and no torch.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, tzinfo
from functools import lru_cache, partial
from typing import Any

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

SECONDS = 5  # of a processor, for one text
MEMORY_BYTES = 2 * 2**30
# A text may be this many times as long as its conversation, and so many characters longer.
GROWTH, SCAFFOLD = 16, 2**20


# Templates of tasks. A name that a row lacks is an error, and nothing in them is random.
TASKS = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
del TASKS.filters["random"], TASKS.globals["lipsum"]


class OneDay(datetime):
    """The clock of templates: on each day it is 26 July 2024, so that a run does not depend on its day."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> OneDay:
        return cls(2024, 7, 26, tzinfo=tz)


def answers(request: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The `text` of each conversation, or of each template of a task, until one has a `fault`."""
    for render, letters in _asked(request):
        text, fault = _bounded(render, letters)
        yield {"fault": fault} if fault else {"text": text}
        if fault:
            return


def _asked(request: dict[str, Any]) -> Iterator[tuple[Callable[[], str], int]]:
    """What renders each text, and the number of letters that it is made of."""
    for messages, prompt in request.get("conversations", ()):
        letters = sum(len(message["content"]) for message in messages)
        yield partial(_render, request, messages, prompt), letters
    for number, values in request.get("jobs", ()):
        template, row = request["templates"][number], request["rows"][values]
        yield partial(_of_task, template, row), len(str(row))


def _of_task(template: str, row: dict[str, Any]) -> str:
    return _compiled(template).render(row)


@lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    return TASKS.from_string(template)


def _bounded(render: Callable[[], str], letters: int) -> tuple[str, str]:
    """The text, or what is wrong: it fails, or takes too much time, memory or text for so many letters."""
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process
        text = render()
    except MemoryError:
        return "", f"it needs more than {MEMORY_BYTES >> 30} GiB of memory"
    except Exception as error:  # a template may raise anything
        return "", f"{' '.join(str(error).split()) or type(error).__name__:.200}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if len(text) > SCAFFOLD + GROWTH * letters:
        return "", f"it makes {len(text):,} characters of a short text"
    return text, ""


def _render(request: dict[str, Any], messages: list[dict[str, str]], prompt: bool) -> str:
    (text,), _ = chat_template_utils.render_jinja_template(
        conversations=[messages],
        chat_template=request["template"],
        add_generation_prompt=prompt,
        **request["variables"],
    )
    return str(text)


if __name__ == "__main__":
    chat_template_utils.datetime = OneDay  # its `strftime_now` asks this name
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends when its parent closes the pipe, or is gone
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        for reply in answers(json.loads(line)):
            print(json.dumps(reply), flush=True)  # if the process is ended, the number of texts tells where
