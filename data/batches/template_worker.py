"""A process that renders chat templates: JSON lines in, JSON lines out. `template_process` starts it.

A template is a program of others. Here, the system bounds its memory and its time, because nothing within the
process can stop every loop and every text of gigabytes. It imports nothing of this project, and no torch.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

SECONDS = 5  # of a processor, for one conversation
MEMORY_BYTES = 2 * 2**30
# A text may be this many times as long as its conversation, and so many characters longer.
GROWTH, SCAFFOLD = 16, 2**20


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The text of each conversation, or the fault of the first that has none."""
    texts = []
    for messages, prompt in request["conversations"]:
        longest = SCAFFOLD + GROWTH * sum(len(message["content"]) for message in messages)
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process
            text = _render(request, messages, prompt)
        except MemoryError:
            return {"fault": f"it needs more than {MEMORY_BYTES >> 30} GiB of memory"}
        except Exception as error:  # a template may raise anything
            return {"fault": f"{' '.join(str(error).split()) or type(error).__name__:.200}"}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if len(text) > longest:
            return {"fault": f"it makes {len(text):,} characters of a short conversation"}
        texts.append(text)
    return {"texts": texts}


def _render(request: dict[str, Any], messages: list[dict[str, str]], prompt: bool) -> str:
    (text,), _ = render_jinja_template(
        conversations=[messages],
        chat_template=request["template"],
        add_generation_prompt=prompt,
        **request["variables"],
    )
    return str(text)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends when its parent closes the pipe, or is gone
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
