"""One finished run of the tiny model, and its policies in memory, for all tests of what uses a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.answers.loading import load
from apps.trained_run import LoadedPolicies, TrainedRun, open_run
from tests.support.random_run import finished_run
from tests.unit.apps.server import Address, serving


@pytest.fixture(scope="session")
def run_dir(tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose policies answer in a chat."""
    return finished_run(tmp_path_factory.mktemp("chat-run") / "run", tiny_tokenizer)


@pytest.fixture(scope="session")
def text_run_dir(tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose policies continue a text, and whose rollouts exclude tokens."""
    overrides = ("data.chat=false", "ppo.rollout.temperature=0.7", "ppo.rollout.top_p=0.9")
    return finished_run(tmp_path_factory.mktemp("text-run") / "run", tiny_tokenizer, *overrides)


@pytest.fixture(scope="session")
def run(run_dir: Path) -> TrainedRun:
    return open_run(run_dir)


@pytest.fixture(scope="session")
def loaded(run: TrainedRun) -> LoadedPolicies:
    return load(run, run.policies, score=True)


@pytest.fixture(scope="session")
def server(run: TrainedRun, loaded: LoadedPolicies) -> Iterator[Address]:
    """One server for all tests that need no other limits."""
    with serving(run, loaded) as address:
        yield address
