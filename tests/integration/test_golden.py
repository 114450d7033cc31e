"""The stages do today what they did when `golden.json` was written.

A figure may be off by 1e-5 of itself or by 1e-6 (KL: 1e-5), whichever is more. That is for rounding: another
CPU sums in another order, in fp32, and training carries it on. On one CPU, 20 steps with the kernels that
torch, MKL and oneDNN keep for SSE or AVX2 moved the losses of SFT and RM by at most 1.2e-6 of themselves,
PPO's value loss and scores by 4.4e-6 of themselves, its policy loss by 2.1e-7 and its KL by 2.3e-6; no token
changed. It sees small changes of the algorithm: learning rates 1 % higher move SFT by 5.6e-4, RM by
4.2e-3 and PPO's value loss by 9.7e-3 of themselves, the last at the first step.

Rounding may turn a sampled token one day, and all that follows. Steps are compared until the responses
differ, which may not be in the first half: a change of sampling shows at once, and another change of
behaviour in the figures of the steps before.

That one seed twice is the same run bit for bit, `test_stages.py` shows.
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
OF_A_RESPONSE = 1e-5  # sums over a response's tokens, each rounded
FEWEST_STEPS = STEPS // 2
SHORTER = ("sft.max_steps=1", "rm.max_steps=1", "ppo.iterations=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def today(folder: Path) -> Trajectories:
    return golden.run(folder, folder, *LONGER)


@pytest.fixture(scope="module")
def another_seed(folder: Path, today: Trajectories, tmp_path_factory: pytest.TempPathFactory) -> Trajectories:
    """The first step of each stage under another seed, on the same upstream adapters."""
    return golden.run(folder, tmp_path_factory.mktemp("another-seed"), "seed=2", *SHORTER)


@pytest.mark.parametrize("stage", STAGES)
def test_trajectory_is_the_golden_one(stage: Stage, today: Trajectories) -> None:
    ours, theirs = today[stage], json.loads(golden.FILE.read_text(encoding="utf-8"))[stage]
    assert len(ours) == len(theirs) == STEPS
    same_text = [a["responses"] == b["responses"] for a, b in zip(ours, theirs, strict=True)]
    alike = len(list(takewhile(bool, same_text)))
    assert alike >= FEWEST_STEPS, f"the responses of step {alike + 1} are others"
    for step in range(alike):
        for name in FIGURES[stage]:
            absolute = OF_A_RESPONSE if name == "objective/kl" else ABSOLUTE
            expected = pytest.approx(theirs[step][name], rel=RELATIVE, abs=absolute)
            assert ours[step][name] == expected, f"{stage}, step {step + 1}: {name}"


@pytest.mark.parametrize("stage", STAGES)
def test_another_seed_is_another_run(stage: Stage, today: Trajectories, another_seed: Trajectories) -> None:
    first, other = today[stage][0], another_seed[stage][0]
    figures = [{name: step[name] for name in FIGURES[stage]} for step in (first, other)]
    assert figures[0] != pytest.approx(figures[1], rel=RELATIVE, abs=ABSOLUTE)
    if stage == "ppo":
        assert first["responses"] != other["responses"]
