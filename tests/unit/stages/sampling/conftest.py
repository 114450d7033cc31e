"""The four roles of PPO, for tests that sample from them, and machines on which vLLM's stand-in runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.support import vllm_stub
from tests.support.roles import ppo_roles
from tests.support.vllm_stub import LLM

GIB = 2**30


@pytest.fixture(scope="module")
def roles(adapters):
    roles = ppo_roles(adapters)
    roles.eval()
    return roles


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[LLM]]:
    """The engines that a test starts, on a CPU of 10 GiB."""
    held = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=GIB))
    monkeypatch.setattr(psutil, "Process", lambda: held)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    llms = vllm_stub.install(monkeypatch)
    yield llms
    assert not any(llm.running for llm in llms), "every engine is closed"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[LLM]:
    """The engines that a test starts, on a GPU of 10 GiB of which 6 are free."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * GIB, 10 * GIB))
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    return vllm_stub.install(monkeypatch, vllm_stub.Platform("cuda"), triton=True)
