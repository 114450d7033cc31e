"""Jinja templates rendered in a process of their own, which bounds their time and memory."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import IO, Any

from transformers import PreTrainedTokenizerBase

from data.batches import template_worker
from data.sources.messages import Message

# One thread of numpy's libraries needs one stack, which counts as memory.
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
Conversation = tuple[list[Message], bool]  # messages, and whether the generation prompt follows


class TemplateFault(Exception):
    """A template failed on a conversation, or was stopped."""


def render(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[str]:
    """The text of each conversation in the chat template of `tokenizer`.

    Raises:
        TemplateFault: the template raised an error, or needs too much time, memory or text.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several templates, and none is the default
        raise TemplateFault(str(error)) from error
    request = {
        "template": template,
        "variables": tokenizer.special_tokens_map,
        "conversations": conversations,
    }
    texts, fault = _worker(os.getpid()).ask(request, len(conversations))
    if fault:
        raise TemplateFault(fault)
    return texts


class JobFault(TemplateFault):
    """A template of a task failed. `job` is its number among those that were asked for."""

    def __init__(self, fault: str, job: int) -> None:
        super().__init__(fault)
        self.job = job


def render_jobs(
    templates: Sequence[str], rows: Sequence[Mapping[str, Any]], jobs: Sequence[tuple[int, int]]
) -> list[str]:
    """The text of each job: the number of a template, and that of the row that it sees.

    Raises:
        JobFault: the template raised an error, as it does if the row lacks a name, or needs too much.
    """
    texts, fault = _worker(os.getpid()).ask({"templates": templates, "rows": rows, "jobs": jobs}, len(jobs))
    if fault:
        raise JobFault(fault, len(texts))
    return texts


class _Worker:
    """The process, started again after it ended."""

    def __init__(self) -> None:
        self._process = self._start()
        self._parent = os.getpid()
        atexit.register(self._end)

    def ask(self, request: Mapping[str, Any], number: int) -> tuple[list[str], str]:
        """`number` texts, and ""; or the texts before the first fault, and what it is."""
        if self._process.poll() is not None:
            self._process = self._start()
        try:
            return self._exchange(request, number)
        except BaseException:  # such as Ctrl-C: replies that nobody read would answer the next request
            self._process.kill()
            self._process.wait()
            raise

    def _exchange(self, request: Mapping[str, Any], number: int) -> tuple[list[str], str]:
        """Send a request and read its replies."""
        stdin, stdout = _pipes(self._process)
        stdin.write(f"{json.dumps(request)}\n")
        stdin.flush()
        texts: list[str] = []
        while len(texts) < number and (line := stdout.readline()):
            reply = json.loads(line)
            if "fault" in reply:
                return texts, reply["fault"]
            texts.append(reply["text"])
        if len(texts) == number:
            return texts, ""
        if self._process.wait() == -signal.SIGPROF:
            return texts, f"it takes more than {template_worker.SECONDS} seconds"
        return texts, f"its process ended with status {self._process.returncode}"

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        # -P: the folder of the script would hide modules of Python, such as tokenize.
        command = [sys.executable, "-P", template_worker.__file__]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | QUIET
        )
        if _pipes(process)[1].readline() != "ready\n":
            raise RuntimeError(f"the process for chat templates did not start (status {process.wait()})")
        return process

    def _end(self) -> None:
        if os.getpid() == self._parent:  # not in a fork
            self._process.kill()
            self._process.wait()


@lru_cache(maxsize=1)
def _worker(parent: int) -> _Worker:
    """The worker of this process. A fork shares no pipe with its parent."""
    return _Worker()


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin and process.stdout
    return process.stdin, process.stdout
