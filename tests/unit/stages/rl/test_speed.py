"""The operations of an iteration, counted by hand where a forward takes one operation for each token."""

from types import SimpleNamespace
from typing import Any

import pytest

from stages.rl import speed

SECONDS = {"time/rollout": 0.25, "time/score": 0.25, "time/update": 0.5}


@pytest.mark.parametrize(
    ("members", "ptx_tokens", "forwards"),
    [
        (1, None, 10 * (1 + 1 + 1 + 2)),  # sampling, reference, reward model, forward and backward
        (3, None, 10 * (1 + 1 + 3 + 2)),
        (1, 5, 10 * (1 + 1 + 1 + 2) + 5 * 2),
    ],
)
def test_every_reward_model_and_the_demonstrations_count(members, ptx_tokens, forwards, monkeypatch):
    monkeypatch.setattr(speed, "forward_flops", lambda config, tokens, length: tokens)
    monkeypatch.setattr(speed, "matmul_flops", lambda device, dtype: 1000.0)
    base = SimpleNamespace(config=None, device=None, is_gradient_checkpointing=False)
    roles = SimpleNamespace(causal=base, dtype=None)
    models = SimpleNamespace(policy_base=roles, reward_base=roles, reward_members=["reward"] * members)
    collector: Any = SimpleNamespace(
        reward_model=SimpleNamespace(models=models),
        ranks=SimpleNamespace(world=1),
        ppo=SimpleNamespace(batch_size=2),
        rewards=SimpleNamespace(uses_reward_model=True),
        recomputes_logprobs=False,
        shared_critic=True,
    )
    ptx: Any = ptx_tokens and SimpleNamespace(take_tokens=lambda: ptx_tokens, length=5.0)
    metrics = speed.IterationSpeed(collector, ptx).metrics(SECONDS, 10, 1.0)
    assert metrics == {"perf/tokens_per_second": 10.0, "perf/matmul_share": forwards / 1000}
