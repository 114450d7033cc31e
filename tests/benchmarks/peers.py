"""Training steps beside those of TRL's trainers: time and peak memory, in processes of their own, in turns.

python tests/benchmarks/peers.py [sft] [rm] [kwise] [ppo] [critic] [--model MODEL] [--turns 2] [--steps 3]

sft, rm   TRL's SFTTrainer and RewardTrainer as installed; NF4 base, the same fp32 LoRA, batch and token ids
          on both sides, gradient checkpointing off, SFT without packing.
kwise     rankings of K = 4, each completion forwarded once, beside the 6 pairs of each as 12 completions.
ppo       the PPOTrainer of TRL 1.12.0, the last release that has it, which this fetches into a folder of its
          own: a LoRA policy, and reward and value models of their own, none of them quantized; here, four
          roles over one NF4 base.
critic    PPO with a head on the policy as its critic, beside PPO with a critic of its own.

On a GPU, --model random-1b makes a 1B-parameter model of random weights where there is no hub.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from pipeline.processes import logs  # noqa: E402
from tests.benchmarks import peers_tristage, peers_trl  # noqa: E402
from tests.benchmarks.peers_workload import Seconds  # noqa: E402

logs.silence()

OLD_TRL = "1.12.0"
FETCHED = ROOT / "runs" / "benchmarks" / f"trl-{OLD_TRL}"
RANDOM_1B = ROOT / "runs" / "benchmarks" / "random-1b"


@dataclass(frozen=True)
class Case:
    """Two sides, and at most which share of the second's time and peak memory the first may take."""

    ours: str
    theirs: str
    time: float
    memory: float | None


CASES = {
    "sft": Case("sft_ours", "sft_trl", 1.0, 1.0),
    "rm": Case("rm_ours", "rm_trl", 0.9, 1.0),
    "kwise": Case("kwise_rankings", "kwise_pairs", 0.4, None),
    "ppo": Case("ppo_ours", "ppo_trl", 0.7, 0.4),
    "critic": Case("ppo_shared", "ppo_ours", 1.0, 1.0),
}


def main() -> int:
    arguments = parse()
    if arguments.side:
        print(json.dumps(run_side(arguments)))
        return 0
    print(
        f"{arguments.model}, {arguments.batch} sequences, {arguments.turns} turns of {arguments.steps} steps"
    )
    arguments.model = local_model(arguments.model)
    for name in arguments.cases or CASES:
        compare(name, CASES[name], arguments)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="embedded name, folder or hub id")
    parser.add_argument("--batch", type=int, default=32, help="sequences of one optimizer step")
    parser.add_argument("--micro", type=int, default=16, help="sequences in one forward")
    parser.add_argument("--prompt", type=int, default=38, help="tokens of each prompt")
    parser.add_argument("--response", type=int, default=24, help="tokens of a response at most")
    parser.add_argument(
        "--steps", type=int, default=3, help="measured steps of a turn, after one that warms up"
    )
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


# The two sides in turns.


def compare(name: str, case: Case, arguments: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, Any]]] = {case.ours: [], case.theirs: []}
    for _ in range(arguments.turns):
        for side, results in found.items():
            results.append(start(side, arguments))
    times = {
        side: statistics.median(s for each in results for s in each["seconds"])
        for side, results in found.items()
    }
    peaks = {side: max(each["peak"] for each in results) for side, results in found.items()}
    for side in found:
        print(f"{side:16} {times[side]:8.2f} s a step {peaks[side] / 2**30:8.2f} GiB")
    verdict("time", times[case.ours] / times[case.theirs], case.time, name)
    if case.memory is not None:
        verdict("peak memory", peaks[case.ours] / peaks[case.theirs], case.memory, name)


def verdict(what: str, ratio: float, target: float, name: str) -> None:
    print(
        f"{name}: {what} {ratio:.2f} x, target {target} x: {'met' if ratio <= target else 'missed'}",
        flush=True,
    )


def start(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options = {
        name: value for name, value in vars(arguments).items() if name not in ("cases", "side", "turns")
    }
    environment = importing_first(*[fetch_old_trl()] * (side == "ppo_trl"))
    done = subprocess.run(
        [sys.executable, __file__, "--side", side, *words(options)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{side}\n{done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def importing_first(*folders: Path) -> dict[str, str]:
    """This process's environment, in which Python imports from `folders` and the project before all else."""
    path = [*map(str, folders), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def words(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line has them."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def fetch_old_trl() -> Path:
    if not (FETCHED / "trl").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FETCHED)]
        environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        subprocess.run([*pip, f"trl=={OLD_TRL}"], check=True, env=environment)
    return FETCHED


def local_model(name: str) -> str:
    """A folder or hub id that both sides can load: TRL's knows nothing of embedded models."""
    if name == "random-1b":
        return str(make_random_1b())
    from stages.models.demo_models import EMBEDDED, embedded_model

    return str(embedded_model(name)) if name in EMBEDDED else name


def make_random_1b() -> Path:
    """A Llama of 1.2 billion random parameters in bf16, with the tokenizer of the embedded random model."""
    if not (RANDOM_1B / "config.json").exists():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

        from stages.models.demo_models import embedded_model

        sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
        heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256}
        config = LlamaConfig(**sizes, **heads, tie_word_embeddings=True)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # drawing takes a CPU a minute
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(RANDOM_1B)
        AutoTokenizer.from_pretrained(embedded_model("tiny-random")).save_pretrained(RANDOM_1B)
    return RANDOM_1B


# One side, in its own process.


def run_side(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import set_seed

    torch.manual_seed(0)
    set_seed(0)
    seconds: Seconds = {**vars(peers_tristage), **vars(peers_trl)}[arguments.side](arguments)
    from stages.training.throughput import peak_memory_bytes

    return {"seconds": seconds, "peak": peak_memory_bytes()}


def sequences(arguments: argparse.Namespace, count: int) -> Iterator[list[int]]:
    """Token ids of `count` responses, of half the longest length to all of it."""
    import random

    noise = random.Random(count)
    for _ in range(count):
        length = noise.randint(arguments.response // 2, arguments.response)
        yield [noise.randrange(100, 380) for _ in range(length)]


def prompt(arguments: argparse.Namespace, number: int) -> list[int]:
    import random

    noise = random.Random(f"prompt {number}")
    return [noise.randrange(100, 380) for _ in range(arguments.prompt)]


def timed(steps: int, step: Callable[[], Any]) -> Seconds:
    import torch

    seconds = []
    for _ in range(1 + steps):
        begin = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def our_roles(arguments: argparse.Namespace, *names: str) -> tuple[Any, Any]:
    """Ranks, and roles over one NF4 base; those of `reward` and `critic` have a head."""
    from configs.schema import Adapter, Base, DeepSpeed
    from stages.distributed.process_group import init_distributed
    from stages.models.base import load_base
    from stages.models.roles import Roles

    ranks = init_distributed(DeepSpeed())
    dtype = "auto" if ranks.device.type == "cuda" else "float32"
    roles = Roles(load_base(Base(model=arguments.model, compute_dtype=dtype), ranks.device))
    for name in names:
        roles.add_new(name, Adapter(r=16, alpha=32))
        if name in ("reward", "critic"):
            roles.add_head(name)
    return ranks, roles


def our_engine(arguments: argparse.Namespace, ranks: Any, roles: Any, training: Any, *trained: str) -> Any:
    from configs.schema import DeepSpeed
    from stages.training.engine import Engine

    os.environ.setdefault("LOCAL_RANK", "0")
    config = DeepSpeed(config=str(ROOT / "configs" / "deepspeed" / "zero0.json"))
    return Engine(roles, dict.fromkeys(trained, 1e-4), training, 100, config, ranks)


def sft_ours(arguments: argparse.Namespace) -> Seconds:
    from configs.schema import Sft
    from data.batches.tokenize import Demonstration
    from stages import sft

    ranks, roles = our_roles(arguments, "policy")
    training = Sft(batch_size=arguments.batch, micro_batch_size=arguments.micro)
    trainer = sft.SftTrainer(our_engine(arguments, ranks, roles, training, "policy"), 0, arguments.micro)
    responses = enumerate(sequences(arguments, arguments.batch))
    batch = [Demonstration(prompt(arguments, i), response) for i, response in responses]
    return timed(arguments.steps, lambda: trainer.step(batch))


def rm_ours(arguments: argparse.Namespace, completions: int = 2, pairs: bool = False) -> Seconds:
    from itertools import combinations

    from configs.schema import Rm
    from data.batches.tokenize import Ranking
    from stages import rm
    from stages.models.base_checks import supports_block_mask

    ranks, roles = our_roles(arguments, "reward")
    roles.heads["reward"].bias.requires_grad_(False)
    prompts = arguments.batch // completions
    answers = list(sequences(arguments, prompts * completions))
    batch = [
        Ranking(
            "",
            prompt(arguments, i),
            answers[i * completions : (i + 1) * completions],
            list(range(completions)),
        )
        for i in range(prompts)
    ]
    if pairs:
        batch = [
            Ranking("", each.prompt_ids, [each.completion_ids[a], each.completion_ids[b]], [0, 1])
            for each in batch
            for a, b in combinations(range(completions), 2)
        ]
    training = Rm(batch_size=len(batch), micro_batch_size=arguments.micro)
    engine = our_engine(arguments, ranks, roles, training, "reward")
    shared = supports_block_mask(roles.causal) and not pairs
    trainer = rm.RewardModelTrainer(engine, 0, arguments.micro, shared)
    return timed(arguments.steps, lambda: trainer.step(batch))


def kwise_rankings(arguments: argparse.Namespace) -> Seconds:
    return rm_ours(arguments, completions=4)


def kwise_pairs(arguments: argparse.Namespace) -> Seconds:
    return rm_ours(arguments, completions=4, pairs=True)


def ppo_shared(arguments: argparse.Namespace) -> Seconds:
    return ppo_ours(arguments, critic="shared")


def ppo_ours(arguments: argparse.Namespace, critic: Literal["adapter", "shared"] = "adapter") -> Seconds:
    from configs.schema import Base, Data, Ppo, Rollout, Source
    from data.batches.tokenize import Prompt
    from stages import ppo
    from stages.feedback.reward_model import RewardModel
    from stages.models.base import load_tokenizer
    from stages.models.role_models import RoleModels
    from stages.sampling.sampler import open_sampler

    own = critic == "adapter"
    ranks, roles = our_roles(arguments, "policy", "reference", "reward", *["critic"] * own)
    if not own:
        roles.add_head("critic")
    for name in ("reference", "reward"):
        for parameter in roles.role_parameters(name).values():
            parameter.requires_grad_(False)
    settings = Ppo(
        batch_size=arguments.batch,
        micro_batch_size=arguments.micro,
        epochs=1,
        critic=critic,
        rollout=Rollout(max_new_tokens=arguments.response, batch_size=arguments.batch),
        missing_eos_penalty=None,
    )
    tokenizer = load_tokenizer(Base(model=arguments.model))
    tokenizer.eos_token_id = None  # no response ends
    engine = our_engine(arguments, ranks, roles, settings, "policy", "critic")
    source = Source(path="prompts.jsonl")
    reward_model = RewardModel(RoleModels((roles, tokenizer)), ranks, Data(sft=source, rm=source, ppo=source))
    prompts = [Prompt("", "", prompt(arguments, i)) for i in range(arguments.batch)]
    numbers = iter(range(1 + arguments.steps))
    with open_sampler(roles, tokenizer, ranks, settings.rollout) as sampler:
        trainer = ppo.PpoTrainer(engine, settings, sampler, reward_model, 0)
        return timed(arguments.steps, lambda: trainer.iterate(next(numbers), prompts))


def trl_options(arguments: argparse.Namespace, **options: Any) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(ROOT / "runs" / "benchmarks" / "out"),
        "use_cpu": not gpu,
        "bf16": gpu,
        "per_device_train_batch_size": arguments.micro,
        "gradient_accumulation_steps": arguments.batch // arguments.micro,
        "gradient_checkpointing": False,
        "learning_rate": 1e-4,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }


def trl_model(arguments: argparse.Namespace, kind: str, nf4: bool, **options: Any) -> Any:
    import torch
    import transformers

    gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if gpu else torch.float32
    if nf4:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    automatic = getattr(transformers, f"AutoModelFor{kind}")
    device_map = {"": "cuda" if gpu else "cpu"}
    return automatic.from_pretrained(arguments.model, dtype=dtype, device_map=device_map, **options)


def lora(task: str | None) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task)


def trl_timed(trainer: Any) -> Seconds:
    """Seconds from the end of one step to that of the next, as `train` takes them."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    return [after - before for before, after in pairwise(ends)]


def with_fp32_adapter(trainer: Any) -> Any:
    """The trainer, with the adapter in fp32 as here: TRL rounds one over a quantized base to bf16.

    CPUs without bf16 units would be many times slower in it; a GPU holds half as much of it and its moments.
    """
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def trl_tokenizer(arguments: argparse.Namespace) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(arguments.model)


def sft_trl(arguments: argparse.Namespace) -> Seconds:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = []
    for i, response in enumerate(sequences(arguments, arguments.batch)):
        ids = prompt(arguments, i)
        rows.append({"input_ids": ids + response, "completion_mask": [0] * len(ids) + [1] * len(response)})
    options = trl_options(arguments, max_steps=1 + arguments.steps, max_length=4096)
    trainer = SFTTrainer(
        model=trl_model(arguments, "CausalLM", nf4=True),
        args=SFTConfig(completion_only_loss=True, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=trl_tokenizer(arguments),
        peft_config=lora("CAUSAL_LM"),
    )
    return trl_timed(with_fp32_adapter(trainer))


def rm_trl(arguments: argparse.Namespace) -> Seconds:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    answers = list(sequences(arguments, arguments.batch))
    rows = [
        {
            "chosen_ids": prompt(arguments, i) + answers[2 * i],
            "rejected_ids": prompt(arguments, i) + answers[2 * i + 1],
        }
        for i in range(arguments.batch // 2)
    ]
    halves = {"per_device_train_batch_size": arguments.micro // 2}  # pairs
    options = trl_options(arguments, max_steps=1 + arguments.steps, max_length=4096, **halves)
    trainer = RewardTrainer(
        model=trl_model(arguments, "SequenceClassification", nf4=True, num_labels=1),
        args=RewardConfig(**options),
        train_dataset=Dataset.from_list(rows),
        processing_class=trl_tokenizer(arguments),
        peft_config=lora("SEQ_CLS"),
    )
    return trl_timed(with_fp32_adapter(trainer))


def ppo_trl(arguments: argparse.Namespace) -> Seconds:
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rows = [{"input_ids": prompt(arguments, i)} for i in range(arguments.batch)]
    reward, value = (
        trl_model(arguments, "SequenceClassification", nf4=False, num_labels=1) for _ in range(2)
    )
    return trl_timed(
        PPOTrainer(
            args=PPOConfig(
                **trl_options(arguments),
                total_episodes=arguments.batch * (1 + arguments.steps),
                num_ppo_epochs=1,
                num_mini_batches=1,
                response_length=arguments.response,
                local_rollout_forward_batch_size=arguments.batch,
                num_sample_generations=0,
                temperature=1.0,
            ),
            processing_class=trl_tokenizer(arguments),
            model=trl_model(arguments, "CausalLM", nf4=False),
            ref_model=None,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows),
            peft_config=lora("CAUSAL_LM"),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
