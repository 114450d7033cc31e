"""What vLLM cannot serve is one message, and no engine is left behind."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from configs.errors import UserError
from configs.schema import Rollout
from stages.models.roles import Roles
from tests.contract.bad_inputs.entry import check_message
from tests.support import vllm_stub
from tests.support.roles import ppo_roles
from tests.support.sampling import on_gpu, sample_responses, sampler_of
from tests.support.vllm_stub import LLM

GIB = 2**30


@pytest.fixture
def roles(adapters: dict[str, Path]) -> Roles:
    return ppo_roles(adapters, quantization="none")


def test_more_memory_than_is_free(gpu, roles, tiny_tokenizer) -> None:
    with pytest.raises(UserError) as caught:
        on_gpu(roles, tiny_tokenizer, gpu_memory_utilization=0.7)
    check_message(
        str(caught.value),
        "rollout.vllm.gpu_memory_utilization: 0.7 of the GPU's memory is 7.0 GiB",
        "6.0 GiB of 10.0 are free. Lower it",
    )
    assert not gpu


@pytest.mark.parametrize(
    ("share", "reason"),
    [
        (0.7, "0.7 of the CPU's memory is 7.0 GiB, and 6.0 GiB of 10.0 are free. Lower it"),
        (0.1, "0.1 of the CPU's memory is 1.0 GiB, and this process already holds 2.0 GiB of it. Raise it."),
    ],
)
def test_memory_of_a_cpu(share, reason, started, roles, tiny_tokenizer, monkeypatch) -> None:
    held = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=2 * GIB))
    monkeypatch.setattr(psutil, "Process", lambda: held)
    with (
        pytest.raises(UserError) as caught,
        sampler_of(roles, tiny_tokenizer, vllm={"gpu_memory_utilization": share}),
    ):
        pass
    check_message(str(caught.value), f"rollout.vllm.gpu_memory_utilization: {reason}")
    assert not started


def test_base_that_vllm_does_not_run(started, roles, tiny_tokenizer, monkeypatch) -> None:
    """vLLM's kernels refuse a base at its first token: before training, not at the first rollout."""

    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError("Unsupported CPU attention configuration: head_dim=16\n  isa=2")

    monkeypatch.setattr(LLM, "generate", refuse)
    with pytest.raises(UserError) as caught, sampler_of(roles, tiny_tokenizer):
        pass
    check_message(
        str(caught.value),
        "rollout.engine: vllm does not start with this base: Unsupported CPU attention configuration",
        "Choose engine auto",
    )
    assert not started[0].running


def test_prompt_that_the_cache_does_not_hold(started, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        sampler.respond("policy", [[5] * (vllm_stub.ROOM - 12)], [1])
        with pytest.raises(UserError) as caught:
            sampler.respond("policy", [[5], [5] * (vllm_stub.ROOM - 11)], [1, 2])
        check_message(
            str(caught.value),
            "rollout.vllm.gpu_memory_utilization: 0.3 of memory holds 1024 tokens",
            "1025 are needed. Raise it",
        )
        assert len(started[0].calls) == 1


def test_vllm_is_imported_only_where_it_is_asked_for(
    started, roles, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # which makes its import fail
    others = Rollout(engine="auto", max_new_tokens=4)
    assert len(sample_responses(roles, tiny_tokenizer, others, [[5]], [1])) == 1
    with pytest.raises(ImportError), sampler_of(roles, tiny_tokenizer):
        pass
