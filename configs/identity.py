"""What of an experiment decides a stage's result, and what differs between two experiments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from configs.schema import STAGES, Experiment, Stage, data_stage

# What only sets speed, memory, or what is written on the way: results are the same but for rounding.
SPEED_ONLY = ("micro_batch_size", "logging_steps", "eval_steps", "save_steps", "keep_checkpoints")
SPEED_ONLY_NESTED = (
    "base.gradient_checkpointing",
    "rm.base.gradient_checkpointing",
    "rm.rankings.rollout.batch_size",
    "rm.rankings.rollout.engine",
    "rm.rankings.rollout.vllm.gpu_memory_utilization",
    "ppo.old_logprobs",
    "ppo.rollout.batch_size",
    "ppo.rollout.engine",
    "ppo.rollout.vllm.gpu_memory_utilization",
    "best.rollout.batch_size",
    "best.rollout.engine",
    "best.rollout.vllm.gpu_memory_utilization",
)
SOURCE = ("path", "name", "split", "revision")
OF_REQUESTS = ("timeout_seconds", "retries", "key_variable")  # of ppo.rewards: how an endpoint is asked


def stage_hash(experiment: Experiment, stage: Stage) -> str:
    """SHA-256 of what the configuration says about the result of `stage`."""
    return hashlib.sha256(json.dumps(_identity(experiment, stage), sort_keys=True).encode()).hexdigest()


def changed_keys(old: Experiment, new: Experiment, stage: Stage) -> list[str]:
    """Dotted keys that differ between two experiments and influence the result of `stage`."""
    before, after = _identity(old, stage), _identity(new, stage)
    absent = object()
    return [key for key in before | after if before.get(key, absent) != after.get(key, absent)]


def _identity(experiment: Experiment, stage: Stage) -> dict[str, Any]:
    """Dotted keys and values that influence the result of `stage`, beyond rounding."""
    tree = experiment.model_dump(mode="json")
    reward_base = tree["rm"].pop("base")
    data = {key: value for key, value in tree["data"].items() if key not in STAGES}
    own = data_stage(stage)
    data[own] = tree["data"][own]
    for other in STAGES:  # those that share this stage's source take prompts away from it
        if other != own and all(tree["data"][other][key] == data[own][key] for key in SOURCE):
            data[other] = {key: data[own][key] for key in SOURCE}
    if stage == "best":
        tree["best"]["rollout"] = tree["best"]["rollout"] or tree["ppo"]["rollout"]
    speed_only = set(SPEED_ONLY)
    if tree[stage].get("use_best"):  # then it matters which checkpoints there are to choose from
        speed_only -= {"eval_steps", "save_steps"}
    section = {key: value for key, value in tree[stage].items() if key not in speed_only}
    if "rewards" in section:
        section["rewards"] = [
            {key: value for key, value in reward.items() if key not in OF_REQUESTS}
            for reward in section["rewards"]
        ]
    parts = {
        "seed": tree["seed"],
        "base": tree["base"],
        "adapter": tree["adapter"],
        "data": data,
        stage: section,
    }
    if reward_base is not None and stage != "sft":
        parts["rm"] = parts.get("rm", {}) | {"base": reward_base}
    # The other engines draw the same noise; that of vLLM is its own.
    return {key: value for key, value in _leaves(parts) if key not in SPEED_ONLY_NESTED or value == "vllm"}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(old: dict[str, Any], new: Experiment, stage: Stage) -> list[str]:
    """What influences `stage` and differs, as `key: old -> new`. `old` comes from a manifest."""
    try:
        before = Experiment.model_validate(old)
    except ValidationError:  # written by another version, whose keys were others
        return ["the configuration, which another version of the schema wrote"]
    old_tree, new_tree = before.model_dump(mode="json"), new.model_dump(mode="json")
    keys = changed_keys(before, new, stage)
    return [f"{key}: {_value(old_tree, key)} -> {_value(new_tree, key)}" for key in keys]


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part] if isinstance(tree, dict) and part in tree else None
    return tree
