"""This project's side of each comparison.

Functions import the libraries because the two sides need different ones.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Literal

from tests.benchmarks.peers_workload import ROOT, Seconds, prompt, sequences, timed


def tristage_roles(arguments: argparse.Namespace, *names: str) -> tuple[Any, Any]:
    """Ranks, and roles over one NF4 base; `reward` and `critic` have a head."""
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


def tristage_engine(
    arguments: argparse.Namespace, ranks: Any, roles: Any, training: Any, *trained: str
) -> Any:
    from configs.schema import DeepSpeed
    from stages.models.role_models import RoleModels
    from stages.training.engine import Engine

    os.environ.setdefault("LOCAL_RANK", "0")
    config = DeepSpeed(config=str(ROOT / "configs" / "deepspeed" / "zero0.json"))
    models = RoleModels((roles, None))  # no tokenizer is asked for
    return Engine(models, dict.fromkeys(trained, 1e-4), training, 100, config, ranks)


def sft_tristage(arguments: argparse.Namespace) -> Seconds:
    from configs.schema import Sft
    from data.batches.tokenize import Demonstration
    from stages import sft

    ranks, roles = tristage_roles(arguments, "policy")
    training = Sft(batch_size=arguments.batch, micro_batch_size=arguments.micro)
    trainer = sft.SftTrainer(tristage_engine(arguments, ranks, roles, training, "policy"), 0, arguments.micro)
    responses = enumerate(sequences(arguments, arguments.batch))
    batch = [Demonstration(prompt(arguments, i), response) for i, response in responses]
    return timed(arguments.steps, lambda: trainer.step(batch))


def rm_tristage(arguments: argparse.Namespace, completions: int = 2, pairs: bool = False) -> Seconds:
    from itertools import combinations

    from configs.schema import Rm
    from data.batches.tokenize import Ranking
    from stages.feedback.reward_ensemble import joint_step
    from stages.feedback.reward_training import RewardModelTrainer
    from stages.models.base_checks import supports_block_mask

    ranks, roles = tristage_roles(arguments, "reward")
    roles.heads["reward"].bias.requires_grad_(False)
    prompts = arguments.batch // completions
    completion_ids = list(sequences(arguments, prompts * completions))
    batch = [
        Ranking(
            "",
            prompt(arguments, i),
            completion_ids[i * completions : (i + 1) * completions],
            list(range(completions)),
        )
        for i in range(prompts)
    ]
    if pairs:
        batch = [
            Ranking("", ranking.prompt_ids, [ranking.completion_ids[a], ranking.completion_ids[b]], [0, 1])
            for ranking in batch
            for a, b in combinations(range(completions), 2)
        ]
    training = Rm(batch_size=len(batch), micro_batch_size=arguments.micro)
    engine = tristage_engine(arguments, ranks, roles, training, "reward")
    shared = supports_block_mask(roles.causal) and not pairs
    trainer = RewardModelTrainer(engine, 0, arguments.micro, shared)
    return timed(arguments.steps, lambda: joint_step([trainer], [batch]))


def kwise_rankings(arguments: argparse.Namespace) -> Seconds:
    return rm_tristage(arguments, completions=4)


def kwise_pairs(arguments: argparse.Namespace) -> Seconds:
    return rm_tristage(arguments, completions=4, pairs=True)


def ppo_shared(arguments: argparse.Namespace) -> Seconds:
    return ppo_tristage(arguments, critic="shared")


def ppo_tristage(arguments: argparse.Namespace, critic: Literal["adapter", "shared"] = "adapter") -> Seconds:
    from configs.schema import Base, Data, Ppo, Rollout, Source
    from data.batches.tokenize import Prompt
    from stages import ppo
    from stages.feedback.reward_model import RewardModel
    from stages.models.base import load_tokenizer
    from stages.models.role_models import RoleModels
    from stages.sampling.sampler import open_sampler

    separate_critic = critic == "adapter"
    ranks, roles = tristage_roles(arguments, "policy", "reference", "reward", *["critic"] * separate_critic)
    if not separate_critic:
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
    engine = tristage_engine(arguments, ranks, roles, settings, "policy", "critic")
    source = Source(path="prompts.jsonl")
    reward_model = RewardModel(RoleModels((roles, tokenizer)), ranks, Data(sft=source, rm=source, ppo=source))
    prompts = [Prompt("", "", prompt(arguments, i)) for i in range(arguments.batch)]
    iterations = iter(range(1 + arguments.steps))
    with open_sampler(roles, tokenizer, ranks, settings.rollout) as sampler:
        trainer = ppo.PpoTrainer(engine, settings, sampler, reward_model, 0)
        return timed(arguments.steps, lambda: trainer.iterate(next(iterations), prompts))
