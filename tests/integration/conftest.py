"""Shared by the integration tests: a process group of one, for engines inside the test process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from configs.schema import DeepSpeed
from stages.distributed.process_group import init_distributed
from stages.distributed.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """This process as the only rank. The launcher's variables are removed afterwards for child processes."""
    before = dict(os.environ)
    ranks = init_distributed(DeepSpeed())
    for name in set(os.environ) - set(before):
        del os.environ[name]
    yield ranks
    torch.distributed.destroy_process_group()
