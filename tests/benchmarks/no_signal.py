"""What whitening does to a policy whose reward hardly varies: treatments of advantages, over seeds.

python tests/benchmarks/no_signal.py [--run RUN] [--seeds 1 2 3] [--floors 0.1 1] [ppo.iterations=20 ...]

PPO starts from the stages `sft` and `rm` of the run directory. Its reward is constant, constant with noise of
deviation 0.001, the share of vowels in an answer, which varies, or a hundredth of that. Each line has the KL
of the last rollout and the mean reward of the first and the last rollout. A floor is the least deviation by
which advantages are divided.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

sys.path[0] = str(Path(__file__).resolve().parents[2])

from torch import Tensor  # noqa: E402

from configs.load import load_experiment  # noqa: E402
from configs.schema import DeepSpeed  # noqa: E402
from stages import ppo  # noqa: E402
from stages.context import Context  # noqa: E402
from stages.distributed.process_group import init_distributed  # noqa: E402
from stages.distributed.ranks import Ranks  # noqa: E402
from stages.maths.advantages import centre, whiten, whiten_signal  # noqa: E402
from tests.integration.test_ppo_start import Recorder  # noqa: E402

Treatment = Callable[[Tensor, Tensor, Tensor], Tensor]
TREATMENTS: dict[str, Treatment] = {
    "always whitened": lambda advantages, _, mask: whiten(advantages, mask),
    "centred": lambda advantages, _, mask: centre(advantages, mask),
    "whitened if there is a signal": whiten_signal,
}
REWARDS = ("constant", "nearly_constant", "vowels", "weak_vowels")
COMMON = ("ppo.eval_steps=null", "data.ppo.held_out=0", "ppo.missing_eos_penalty=null", "ppo.save_steps=9999")


def constant(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [1.0 for _ in completions]


def nearly_constant(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [1 + random.Random(text).gauss(0, 1e-3) for text in completions]


def vowels(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]


def weak_vowels(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [score / 100 for score in vowels(prompts, completions)]


def floored(floor: float) -> Treatment:
    """Centre, and divide by the deviation, but by `floor` at least."""

    def treat(advantages: Tensor, _: Tensor, mask: Tensor) -> Tensor:
        deviation = advantages[mask].std(unbiased=False)
        return centre(advantages, mask) / deviation.clamp(min=floor)

    return treat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"), help="has finished sft and rm")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--floors", nargs="*", type=float, default=[], help="also floors on the deviation")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    ranks = init_distributed(DeepSpeed())
    print("| reward | advantages | KL of each seed, nats | mean reward, first and last rollout |")
    print("|---|---|---|---|")
    floors = {f"whitened, deviation at least {floor:g}": floored(floor) for floor in arguments.floors}
    for reward in REWARDS:
        for name, treatment in (TREATMENTS | floors).items():
            with patch("stages.rl.update.whiten_signal", treatment):
                runs = [train(arguments, ranks, reward, seed) for seed in arguments.seeds]
            kls = ", ".join(f"{rows[-1]['objective/kl']:.3g}" for rows in runs)
            first, last = (statistics.fmean(rows[i]["objective/scores"] for rows in runs) for i in (0, -1))
            print(f"| {reward} | {name} | {kls} | {first:.4g}, {last:.4g} |", flush=True)


def train(arguments: argparse.Namespace, ranks: Ranks, reward: str, seed: int) -> list[Mapping[str, float]]:
    """The metrics of each iteration of PPO."""
    source = f"ppo.rewards=[{{source: 'tests.benchmarks.no_signal:{reward}'}}]"
    overrides = [*COMMON, source, f"ppo.seed={seed}", *arguments.overrides]
    config = load_experiment(arguments.run / "config.yaml", overrides)
    inputs = {stage: arguments.run / stage / "adapter" for stage in ("sft", "rm")}
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        ppo.run(Context(config, "ppo", Path(folder), inputs, recorder, False, ranks))
    return [row for row in recorder.metrics if "objective/kl" in row]


if __name__ == "__main__":
    main()
