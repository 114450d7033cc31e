"""Which keys of an experiment influence the result of a stage, and which differ between experiments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from configs.schema import STAGES, Experiment, Stage, data_stage

# Keys that change only speed, memory or logging. Results stay the same, up to rounding.
SPEED_ONLY = ("micro_batch_size", "logging_steps", "eval_steps", "save_steps", "keep_checkpoints")
SPEED_ONLY_NESTED = (
    "rm.packing",
    "base.gradient_checkpointing",
    "rm.base.gradient_checkpointing",
    "rm.rankings.rollout.batch_size",
    "rm.rankings.rollout.engine",
    "rm.rankings.rollout.vllm.gpu_memory_utilization",
    "rm.rankings.rollout.vllm.enforce_eager",
    "ppo.old_logprobs",
    "ppo.rollout.batch_size",
    "ppo.rollout.engine",
    "ppo.rollout.vllm.gpu_memory_utilization",
    "ppo.rollout.vllm.enforce_eager",
    "best.rollout.batch_size",
    "best.rollout.engine",
    "best.rollout.vllm.gpu_memory_utilization",
    "best.rollout.vllm.enforce_eager",
)
NEWER_KEYS = {
    "from": None,
    "reference": "sft",
    "group_by_length": False,
}  # which older runs lack: left out at these defaults
NEWER_NESTED = {
    "adapter.dora": False,
    "adapter.init": "zero",
    "sft.method": "lora",
    "sft.virtual_tokens": 20,
    "rm.rankings.earlier": [],
    "rm.rankings.merge": "each",
    "rm.loss.kind": "bradley_terry",
    "rm.loss.ties": "ignore",
    "rm.loss.margin": "none",
    "rm.loss.margin_scale": 1.0,
    "rm.loss.center": 0.0,
    "rm.loss.label_smoothing": 0.0,
    "rm.members": 1,
    "rm.pooling": "last",
    "ppo.ensemble": "mean",
    "ppo.ensemble_coef": 1.0,
    "data.keep_apart": True,
}
# Left out at these defaults, as are the names in `columns`.
NEWER_SOURCE_KEYS = {"data_dir": None, "format": None, "rank_by": None, "weight": 1.0, "task": None}
NAMES_ONLY = ("label",)  # of a source
SOURCE_KEYS = ("path", "name", "data_dir", "split", "revision")
REQUEST_KEYS = ("timeout_seconds", "retries", "key_variable")  # of ppo.rewards: how to call an endpoint


def stage_hash(experiment: Experiment, stage: Stage) -> str:
    """SHA-256, in hexadecimal, of the keys and values that influence the result of `stage`."""
    return hashlib.sha256(json.dumps(_identity(experiment, stage), sort_keys=True).encode()).hexdigest()


def changed_keys(old: Experiment, new: Experiment, stage: Stage) -> list[str]:
    """Dotted keys that influence the result of `stage` and differ between two experiments."""
    before, after = _identity(old, stage), _identity(new, stage)
    absent = object()
    return [key for key in before | after if before.get(key, absent) != after.get(key, absent)]


def different_values(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """The values of both experiments by each dotted key in which they differ; None if a key is absent."""
    before, after = (dict(_leaves(each.model_dump(mode="json"))) for each in (old, new))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return {key: (before.get(key), after.get(key)) for key in keys}


def split_keys(experiment: Experiment, stage: Stage) -> dict[str, Any]:
    """The keys of `data` that may change which rows `stage` trains on and holds out, with their values."""
    data = experiment.model_dump(mode="json")["data"]
    behind = (_sources(data, data_stage(one)) for one in experiment.data_behind(stage))
    found = {key: source for sources in behind for key, source in sources.items()}
    return dict(_leaves(found | {"near_duplicates": data["near_duplicates"]}, "data."))


def _identity(experiment: Experiment, stage: Stage) -> dict[str, Any]:
    """Dotted keys and values that change the result of `stage` by more than rounding."""
    tree = experiment.model_dump(mode="json")
    reward_base = tree["rm"].pop("base")
    learned: list[Stage] = ["sft"] if stage == "ppo" and experiment.ppo.ptx_coef else []
    data = _data_identity(tree["data"], [*learned, data_stage(stage)])
    if stage == "best":
        tree["best"]["rollout"] = tree["best"]["rollout"] or tree["ppo"]["rollout"]
    speed_only = set(SPEED_ONLY)
    if tree[stage].get("use_best"):  # these steps decide which checkpoints it chooses from
        speed_only -= {"eval_steps", "save_steps"}
    section = {key: value for key, value in tree[stage].items() if key not in speed_only}
    for key, default in NEWER_KEYS.items():
        if key in section and section[key] == default:
            del section[key]
    if "rewards" in section:
        section["rewards"] = [
            {key: value for key, value in reward.items() if key not in REQUEST_KEYS}
            for reward in section["rewards"]
        ]
    parts = {
        "seed": tree["seed"],
        "base": tree["base"],
        "adapter": tree["adapter"],
        "data": data,
        stage: section,
    }
    if stage == "best":
        parts["ppo"] = {"judge": tree["ppo"]["judge"]}  # which scores the answers, too
    if reward_base is not None and stage != "sft":
        parts["rm"] = parts.get("rm", {}) | {"base": reward_base}
    leaves = (
        (key, value)
        for key, value in _leaves(parts)
        if not (key in NEWER_NESTED and value == NEWER_NESTED[key])
    )
    # All engines but vLLM draw the same noise.
    return {key: value for key, value in leaves if key not in SPEED_ONLY_NESTED or value == "vllm"}


def _data_identity(data: dict[str, Any], stages: Sequence[Stage]) -> dict[str, Any]:
    """What influences the rows of stages, with `sft` or `sft[0]`, `sft[1]`, ... for their sources."""
    own = {key: source for stage in stages for key, source in _sources(data, stage).items()}
    found = {key: value for key, value in data.items() if key not in STAGES and key != "near_duplicates"}
    found |= {key: _source_identity(source) for key, source in own.items()}
    for other in STAGES:  # a stage with the same source takes prompts from this stage
        for key, source in _sources(data, other).items() if other not in stages else ():
            if any(all(source[name] == mine[name] for name in SOURCE_KEYS) for mine in own.values()):
                found[key] = _without_defaults({name: source[name] for name in SOURCE_KEYS})
    return found


def _sources(data: dict[str, Any], stage: Stage) -> dict[str, dict[str, Any]]:
    given = data[stage]
    if isinstance(given, dict):
        return {stage: given}
    return {f"{stage}[{number}]": source for number, source in enumerate(given)}


def _source_identity(source: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in _without_defaults(source).items() if key not in NAMES_ONLY}
    return kept | {"columns": {key: name for key, name in source["columns"].items() if name is not None}}


def _without_defaults(source: dict[str, Any]) -> dict[str, Any]:
    """A source without the keys that older runs lack, where these say nothing."""
    absent = object()
    return {key: value for key, value in source.items() if NEWER_SOURCE_KEYS.get(key, absent) != value}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(old: dict[str, Any], new: Experiment, stage: Stage) -> list[str]:
    """The keys of `changed_keys` as `key: old -> new`. `old` is the configuration in a manifest."""
    try:
        before = Experiment.model_validate(old)
    except ValidationError:  # another version of the schema had other keys
        return ["the configuration, which another version of the schema wrote"]
    old_tree, new_tree = before.model_dump(mode="json"), new.model_dump(mode="json")
    keys = changed_keys(before, new, stage)
    return [f"{key}: {_value_at(old_tree, key)} -> {_value_at(new_tree, key)}" for key in keys]


def _value_at(tree: Any, key: str) -> Any:
    for part in key.replace("[", ".").replace("]", "").split("."):
        if isinstance(tree, list):
            tree = dict(enumerate(tree)).get(int(part)) if part.isdecimal() else None
        else:
            tree = tree[part] if isinstance(tree, dict) and part in tree else None
    return tree
