"""Models and tokenizers that are sound, but do not fit the experiment or each other."""

from __future__ import annotations

from typing import Any

import pytest

from configs.errors import UserError
from configs.schema import Base, Experiment
from stages.models.base import load_config, load_tokenizer
from stages.models.base_checks import check_fit
from stages.sampling.decoding_batch import check_joinable
from tests.contract.bad_inputs.entry import check_message
from tests.contract.bad_inputs.model_damage import damaged, edit

CONFIG = "config.json"


def experiment(**data: Any) -> Experiment:
    sources = {stage: {"path": f"{stage}.jsonl"} for stage in ("sft", "rm", "ppo")}
    lengths = {"max_length": 512, "max_prompt_length": 400}
    tree = {"name": "toy", "base": {"model": "tiny-random"}, "data": sources | lengths | data}
    return Experiment.model_validate(tree)


@pytest.mark.parametrize(
    ("stage", "data", "part"),
    [
        (
            "sft",
            {"max_length": 513},
            "data.max_length: 513 tokens are more than the 512 of the context window",
        ),
        ("rm", {}, "data.max_prompt_length + rm.rankings."),
        ("ppo", {}, "data.max_prompt_length + ppo."),
    ],
)
def test_context_window(stage, data, part):
    config = experiment(**data)
    with pytest.raises(UserError) as caught:
        check_fit(config, stage, config.base, load_config(config.base), load_tokenizer(config.base))
    check_message(str(caught.value), part, "Lower it, or use a base with a larger window")


@pytest.mark.parametrize(
    ("stage", "section", "part"),
    [
        ("sft", {"adapter": {"r": 65}}, "adapter.r: 65 is more than the hidden size of 'tiny-random', 64"),
        (
            "rm",
            {"rm": {"rankings": {"rollout": {"top_k": 385}}}},
            "rm.rankings.rollout.top_k: 385 is more than the vocabulary of 'tiny-random', 384",
        ),
        ("ppo", {"ppo": {"rollout": {"top_k": 1_000_000}}}, "ppo.rollout.top_k: 1,000,000 is more than"),
        ("best", {"best": {"rollout": {"top_k": 385}}}, "best.rollout.top_k: 385 is more than"),
    ],
)
def test_sizes_above_those_of_the_base(stage, section, part):
    base_config = experiment(max_length=256, max_prompt_length=64).model_dump()
    config = Experiment.model_validate(base_config | section)
    with pytest.raises(UserError) as caught:
        check_fit(config, stage, config.base, load_config(config.base), load_tokenizer(config.base))
    check_message(str(caught.value), part, "Lower it to that or less")


def test_tokenizer_of_another_model(tiny_folder, tmp_path):
    damaged(tiny_folder, tmp_path / "model", [edit(CONFIG, vocab_size=300)])
    config, model_config = experiment(), load_config(Base(model=str(tmp_path / "model")))
    with pytest.raises(UserError) as caught:
        check_fit(config, "sft", config.base, model_config, load_tokenizer(config.base))
    check_message(
        str(caught.value), "has token 383, but the model only 300 embeddings", "copy both from the same"
    )


@pytest.mark.parametrize(
    ("stage", "section", "key"),
    [
        ("rm", {"rm": {"rankings": {"rollout": {"engine": "continuous"}}}}, "rm.rankings.rollout.engine"),
        ("ppo", {"ppo": {"rollout": {"engine": "continuous"}}}, "ppo.rollout.engine"),
        ("best", {"ppo": {"rollout": {"engine": "continuous"}}}, "ppo.rollout.engine"),
        ("best", {"best": {"rollout": {"engine": "continuous"}}}, "best.rollout.engine"),
    ],
)
def test_continuous_sampling_of_a_sliding_window(stage, section, key, tiny_folder, tmp_path):
    damaged(tiny_folder, tmp_path / "model", [edit(CONFIG, sliding_window=8)])
    model_config = load_config(Base(model=str(tmp_path / "model")))
    config = experiment(max_length=256, max_prompt_length=64)
    check_joinable(config, stage, model_config)  # `auto` samples in chunks there
    config = Experiment.model_validate(config.model_dump() | section)
    with pytest.raises(UserError) as caught:
        check_joinable(config, stage, model_config)
    check_message(
        str(caught.value), f"{key}: continuous, but 'tiny-random' does not keep", "Set it to auto or merged"
    )
