"""PPO that samples with vLLM: each rollout is with the policy as the last update left it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from configs.load import load_experiment
from stages import ppo
from stages.context import Context
from stages.distributed.ranks import Ranks
from stages.sampling import vllm_checks
from tests.integration.test_ppo_start import Recorder
from tests.support import vllm_stub
from tests.support.runs import TINY, checkpoint_tensors
from tests.support.vllm_stub import LLM

OVERRIDES = (
    *("ppo.rollout.engine=vllm", "base.quantization=none", "ppo.iterations=3", "ppo.eval_steps=null"),
    *("ppo.save_steps=1", "ppo.keep_checkpoints=9", "ppo.epochs=1", "ppo.minibatches=1"),
    *("data.ppo.held_out=5", "ppo.rollout.batch_size=3"),
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[LLM]]:
    """The engines that a run starts, on a machine that looks as if it had vLLM."""
    monkeypatch.setattr(vllm_checks, "find_spec", lambda name: True)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    llms = vllm_stub.install(monkeypatch)
    yield llms
    assert not any(llm.running for llm in llms), "the stage closed its engine"


def test_rollouts_follow_the_updates(
    started: list[LLM], adapters: dict[str, Path], ranks: Ranks, tmp_path: Path
) -> None:
    recorder = Recorder()
    config = load_experiment(TINY, OVERRIDES)
    ppo.run(Context(config, "ppo", tmp_path, adapters, recorder, False, ranks))
    (llm,) = started
    # The held-out prompts are judged before and after the rollouts; at the end base and SFT policy, too.
    asked = [call.request.lora_name if call.request else "base" for call in llm.calls]
    rollouts = ["policy-1", "policy-2", "policy-3"]
    assert asked == ["policy-1", *rollouts, "policy-4", "base", "reference-5"]
    for step, call in enumerate(llm.calls[2:5], 1):
        saved = checkpoint_tensors(tmp_path, step)
        assert call.adapter
        for name, tensor in call.adapter.items():
            inside = name.replace("base_model.model.", "causal.").replace(".weight", ".policy.weight")
            assert torch.equal(tensor, saved[inside])
    first = next(row for row in recorder.metrics if "objective/kl" in row)
    assert first["objective/kl"] == 0.0 and first["val/ratio"] == 1.0, "of the model that trains, not vLLM's"
    assert first["rollout/logprob_difference"] > 0
