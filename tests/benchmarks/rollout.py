"""Tokens per second of the sampling engines, side by side in one run on one quantized base.

python tests/benchmarks/rollout.py [--model smollm2-135m-instruct] [--prompts 32] [--length 38] [--new 24]

The responses never end their turn, so that every engine samples the same number of tokens. The engines take
turns, and the median of each is shown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from pipeline import quiet  # noqa: E402

quiet.silence()

import torch  # noqa: E402

from configs.schema import Adapter, Base, DeepSpeed, Rollout  # noqa: E402
from stages.modeling import Roles, load_base, load_tokenizer  # noqa: E402
from stages.ranks import init_distributed  # noqa: E402
from stages.rollout import Sampler  # noqa: E402

ENGINES = ("hf", "merged")
TARGET = 2.2


def main() -> None:
    arguments = parse()
    ranks = init_distributed(DeepSpeed())
    base = Base(model=arguments.model, quantization=arguments.quantization)
    tokenizer = load_tokenizer(base)
    tokenizer.eos_token_id = None  # no response ends
    roles = Roles(load_base(base, ranks.device))
    roles.add_new("policy", Adapter(r=16))
    torch.manual_seed(0)
    vocabulary = roles.causal.config.vocab_size
    prompts = torch.randint(vocabulary, (arguments.prompts, arguments.length)).tolist()
    samplers = {
        name: Sampler(
            roles,
            tokenizer,
            ranks,
            Rollout(engine=name, max_new_tokens=arguments.new, batch_size=arguments.prompts),
        )
        for name in ENGINES
    }
    seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
    for turn in range(arguments.repeats + 1):
        for name, sampler in samplers.items():
            begin = time.perf_counter()
            responses = sampler("policy", prompts, list(range(len(prompts))))
            assert all(len(response) == arguments.new for response in responses)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - begin)
    print_table(arguments, {name: statistics.median(times) for name, times in seconds.items()})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="embedded name, folder or hub id")
    parser.add_argument("--quantization", default="nf4", choices=("nf4", "int8", "none"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--length", type=int, default=38, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=24, help="tokens of each response")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def print_table(arguments: argparse.Namespace, seconds: dict[str, float]) -> None:
    tokens = arguments.prompts * arguments.new
    print(f"{arguments.model} ({arguments.quantization}), torch {torch.__version__}")
    print(f"{arguments.prompts} prompts of {arguments.length} tokens, {arguments.new} new tokens each")
    for name, each in seconds.items():
        print(f"{name:8} {tokens / each:8.0f} tokens/s {seconds['hf'] / each:8.2f} x hf")
    ratio = seconds["hf"] / seconds["merged"]
    print(f"target {TARGET} x: {'met' if ratio >= TARGET else 'missed'}")


if __name__ == "__main__":
    main()
