"""Rollout engines that run in step with other ranks."""

from __future__ import annotations

import pytest

from configs.schema import Rollout
from stages.distributed.ranks import Ranks
from stages.sampling import rollout_engine
from stages.sampling.decoding import Limits, Response
from stages.sampling.rollout_engine import GenerateEngine
from tests.support.roles import CPU, tiny_roles


class BesideABusierRank(Ranks):
    """One of two ranks. The other has three batches."""

    def max(self, value: int) -> int:
        return max(value, 3)


@pytest.mark.parametrize("prompts", [1, 2, 3, 5])
def test_generate_forwards_as_many_batches_as_the_busiest_rank(
    prompts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[list[int]]] = []

    def generate(model, batch, token_sampler, limits, synced: bool) -> list[Response]:
        assert synced
        batches.append(batch)
        return [Response([prompt[0] + 100]) for prompt in batch]

    monkeypatch.setattr(rollout_engine, "generate", generate)
    limits = Limits(max_new_tokens=4, end=2, pad=0)
    roles, ranks = tiny_roles(), BesideABusierRank(0, 2, CPU)
    engine = GenerateEngine(roles, ranks, Rollout(engine="hf", batch_size=2), limits)
    advanced: list[int] = []
    responses = engine.respond("base", [[i] for i in range(prompts)], list(range(prompts)), advanced.append)
    assert [response.ids for response in responses] == [[i + 100] for i in range(prompts)]
    assert len(batches) == 3
    assert sum(advanced) == prompts
