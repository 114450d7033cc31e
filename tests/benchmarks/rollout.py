"""Tokens per second of the sampling engines, side by side in one run on one quantized base.

python tests/benchmarks/rollout.py [--model smollm2-135m-instruct] [--prompts 32] [--length 38] [--new 24]
    [--compute-dtype auto] [--top-p 1]

generate is transformers' `generate` with its own sampling, on the quantized base with unchanged PEFT layers.
hf is the same with noise that is a function of the prompt's seed. In the first part, all prompts are one
batch and no response ends. In the second, there are four times as many prompts as rows of a batch, responses
end at the token that came most often, and the limit is four times as many tokens. In fp32, the tokens are the
same for every engine but generate. The engines take turns. The table shows the median of each engine's tokens
per second.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from pipeline.processes import logs  # noqa: E402

logs.silence()

import torch  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from transformers import PreTrainedTokenizerBase  # noqa: E402

from configs.schema import Adapter, Base, DeepSpeed, Rollout  # noqa: E402
from data.batches.collate import prompts as collate_prompts  # noqa: E402
from data.batches.sampler import micro_batches  # noqa: E402
from stages.distributed.process_group import init_distributed  # noqa: E402
from stages.models import onednn  # noqa: E402
from stages.models.base import load_base, load_tokenizer  # noqa: E402
from stages.models.roles import Roles  # noqa: E402
from stages.sampling.decoding import Response  # noqa: E402
from stages.sampling.rollout_engine import RolloutEngine, start_rollout_engine  # noqa: E402

ENGINES = ("hf", "merged", "continuous")
TARGET = 2.2
# Factor on the new tokens and on the prompts per row of a batch, and how responses end.
SHAPES = ((1, "to the last"), (4, "at most, or up to the token that came most often"))


def main() -> None:
    arguments = parse()
    ranks = init_distributed(DeepSpeed())
    base = Base(
        model=arguments.model,
        quantization=arguments.quantization,
        compute_dtype=arguments.compute_dtype,
    )
    tokenizer = load_tokenizer(base)
    roles = Roles(load_base(base, ranks.device))
    roles.add_new("policy", Adapter(r=16))
    for layer in roles.causal.modules():
        if isinstance(layer, LoraLayer):
            # The forward of PEFT's class is used again: generate and hf call it.
            vars(layer).pop("forward", None)
    print(f"{arguments.model} ({arguments.quantization}, {roles.dtype}), torch {torch.__version__}")
    responses: list[list[int]] = []
    for times, title in SHAPES:
        most_common = Counter(token for response in responses for token in response).most_common(1)
        tokenizer.eos_token_id = most_common[0][0] if most_common else None
        options = {
            "max_new_tokens": arguments.new * times,
            "batch_size": arguments.prompts // times,
            "top_p": arguments.top_p,
        }
        print(f"{arguments.prompts} prompts of {arguments.length} tokens, {times} for each row of a batch;")
        print(f"{arguments.new * times} new tokens each, {title}")
        with ExitStack() as stack:
            engines: dict[str, RolloutEngine] = {"generate": Plain(roles, tokenizer, Rollout(**options))}
            for name in ENGINES:
                rollout = Rollout(engine=name, **options)
                engine = start_rollout_engine(roles, tokenizer, ranks, rollout)
                engines[name] = stack.enter_context(closing(engine))
            responses = measure(arguments, engines, roles.vocabulary)


class Plain:
    """`generate` of transformers on layers of bitsandbytes."""

    def __init__(self, roles: Roles, tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> None:
        self.roles, self.tokenizer, self.rollout = roles, tokenizer, rollout

    def close(self) -> None:
        """Do nothing."""

    @patch.object(onednn, "LARGE", math.inf)
    @torch.no_grad()
    def respond(
        self,
        role: str,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        advance: Callable[[int], None],
    ) -> list[Response]:
        self.roles.eval()
        self.roles.activate(role)
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        ids: list[list[int]] = []
        for chunk in micro_batches(prompts, self.rollout.batch_size):
            input_ids, attention_mask = collate_prompts(chunk, pad).to(self.roles.causal.device)
            output = self.roles.causal.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                max_new_tokens=self.rollout.max_new_tokens,
                do_sample=True,
                top_k=0,
                top_p=self.rollout.top_p,
                eos_token_id=end,
                pad_token_id=pad,
            )
            rows = output[:, input_ids.shape[1] :].tolist()
            ids += [row[: row.index(end) + 1] if end in row else row for row in rows]
        return [Response(row) for row in ids]


def measure(
    arguments: argparse.Namespace, engines: dict[str, RolloutEngine], vocabulary: int
) -> list[list[int]]:
    """Let the engines take turns and print their tokens per second. Returns the responses of `generate`."""
    torch.manual_seed(0)
    prompts = torch.randint(vocabulary, (arguments.prompts, arguments.length)).tolist()
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    newest: dict[str, list[list[int]]] = {}
    for turn in range(arguments.repeats + 1):
        for name, engine in engines.items():
            begin = time.perf_counter()
            sampled = engine.respond("policy", prompts, list(range(len(prompts))), lambda _: None)
            seconds = time.perf_counter() - begin
            newest[name] = [response.ids for response in sampled]
            if turn:  # the first warms up
                speeds[name].append(sum(map(len, newest[name])) / seconds)
    for name in ("generate", "hf"):
        lengths = list(map(len, newest[name]))
        print(f"{name}: {statistics.median(lengths):g} tokens in the middle, {max(lengths)} at most")
    print_table({name: statistics.median(rates) for name, rates in speeds.items()})
    return newest["generate"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="embedded name, folder or hub id")
    parser.add_argument("--quantization", default="nf4", choices=("nf4", "int8", "none"))
    parser.add_argument("--compute-dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--length", type=int, default=38, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=24, help="tokens of each response")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def print_table(speeds: dict[str, float]) -> None:
    plain = speeds["generate"]
    for name, rate in speeds.items():
        print(
            f"{name:11} {rate:8.0f} tokens/s {rate / plain:8.2f} x generate {rate / speeds['hf']:8.2f} x hf"
        )
    ratio = speeds["merged"] / plain
    print(f"target {TARGET} x generate for merged: {'met' if ratio >= TARGET else 'missed'}", flush=True)


if __name__ == "__main__":
    main()
