"""A base that vLLM's CPU kernels run, and the one rank that vLLM joins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from configs.schema import DeepSpeed
from stages.distributed.process_group import init_distributed, leave_process_group
from stages.distributed.ranks import Ranks
from tests.support.bases import wider_base


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """This process as the only rank. vLLM reads the launcher's variables when it joins."""
    before = dict(os.environ)
    yield init_distributed(DeepSpeed())
    leave_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def wide_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with heads of 64 dimensions. vLLM's attention on a CPU has none of 16."""
    return wider_base(tiny_folder, tmp_path_factory.mktemp("wide") / "base")


@pytest.fixture(scope="session")
def bf16_folder(wide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in bf16. vLLM quantizes the weights of the file; transformers rounds them to bf16 before."""
    folder = tmp_path_factory.mktemp("bf16") / "base"
    AutoModelForCausalLM.from_pretrained(wide_folder, dtype=torch.bfloat16).save_pretrained(folder)
    for file in wide_folder.glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
