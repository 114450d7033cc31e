"""The stages log the same figures and responses as `golden.json`.

A figure may differ by 1e-5 of itself or by 1e-6 (KL: 1e-5), whichever is more. That covers rounding: another
CPU sums in another order, in fp32, and the error grows in training. On one CPU, 20 steps with the kernels
that torch, MKL and oneDNN keep for SSE or AVX2 moved the losses of SFT and RM by at most 1.2e-6 of
themselves, PPO's value loss and scores by 4.4e-6 of themselves, its policy loss by 2.1e-7 and its KL by
2.3e-6; no token changed. The test detects small changes of the algorithm: learning rates 1 % higher move SFT
by 5.6e-4, RM by 4.2e-3 and PPO's value loss by 9.7e-3 of themselves, the last at the first step.

Rounding may change a sampled token and all later tokens. Steps are compared until the responses
differ, which must not be in the first half. A change of sampling shows at once, and another change of
behaviour shows in the figures of the earlier steps.

`test_stages.py` shows that two runs with one seed are bit-identical.
"""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path

import pytest

from configs.schema import STAGES, Stage
from tests.integration import golden
from tests.integration.golden import FIGURES, LONGER, STEPS, Trajectories

RELATIVE, ABSOLUTE = 1e-5, 1e-6
OF_A_RESPONSE = 1e-5  # for sums over a response's tokens, each rounded
FEWEST_STEPS = STEPS // 2
SHORTER = ("sft.max_steps=1", "rm.max_steps=1", "ppo.iterations=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def trajectories(folder: Path) -> Trajectories:
    return golden.run(folder, folder, *LONGER)


@pytest.fixture(scope="module")
def another_seed(
    folder: Path, trajectories: Trajectories, tmp_path_factory: pytest.TempPathFactory
) -> Trajectories:
    """The first step of each stage under another seed, on the same upstream adapters."""
    return golden.run(folder, tmp_path_factory.mktemp("another-seed"), "seed=2", *SHORTER)


@pytest.mark.parametrize("stage", STAGES)
def test_trajectory_is_the_golden_one(stage: Stage, trajectories: Trajectories) -> None:
    actual, recorded = trajectories[stage], json.loads(golden.FILE.read_text(encoding="utf-8"))[stage]
    assert len(actual) == len(recorded) == STEPS
    same_responses = [a["responses"] == b["responses"] for a, b in zip(actual, recorded, strict=True)]
    same_steps = len(list(takewhile(bool, same_responses)))
    assert same_steps >= FEWEST_STEPS, f"the responses of step {same_steps + 1} are others"
    for step in range(same_steps):
        for name in FIGURES[stage]:
            absolute = OF_A_RESPONSE if name == "objective/kl" else ABSOLUTE
            expected = pytest.approx(recorded[step][name], rel=RELATIVE, abs=absolute)
            assert actual[step][name] == expected, f"{stage}, step {step + 1}: {name}"


@pytest.mark.parametrize("stage", STAGES)
def test_another_seed_is_another_run(
    stage: Stage, trajectories: Trajectories, another_seed: Trajectories
) -> None:
    first, other = trajectories[stage][0], another_seed[stage][0]
    figures = [{name: step[name] for name in FIGURES[stage]} for step in (first, other)]
    assert figures[0] != pytest.approx(figures[1], rel=RELATIVE, abs=ABSOLUTE)
    if stage == "ppo":
        assert first["responses"] != other["responses"]
