"""Loss and gradients equal those of TRL's trainers on the same base, weights and token ids.

The reference is TRL's code path: its data preparation, its collator, its count of the tokens in a batch, its
`compute_loss` and its backward. Both sides compute in fp32. The tolerance covers the order of sums:
TRL pads other columns and computes log-probabilities in chunks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from configs.schema import Base, RankingLoss, Rm, Sft
from data.batches import pack
from data.batches.tokenize import Demonstration, Ranking
from stages import sft
from stages.distributed.ranks import Ranks
from stages.feedback.reward_ensemble import RewardEnsemble, joint_step
from stages.feedback.reward_training import RewardModelTrainer
from stages.models.base import load_base, model_folder
from stages.models.roles import Role, Roles
from tests.support.engines import assert_same_gradients, engine_of, gradients_of
from tests.support.roles import CPU, new_role, save_role_of, tensors_of, tiny_roles

QUANTIZATIONS = ("nf4", "none")
Result = tuple[float, dict[str, Tensor]]


def sequence(length: int, noise: random.Random) -> list[int]:
    return [noise.randrange(10, 380) for _ in range(length)]


@pytest.fixture(scope="module")
def demonstrations(tiny_tokenizer: Any) -> list[Demonstration]:
    """Eight demonstrations of unequal length."""
    noise = random.Random(0)
    return [
        Demonstration(
            sequence(noise.randrange(2, 30), noise), [*sequence(answer, noise), tiny_tokenizer.eos_token_id]
        )
        for answer in (1, 19, 7, 3, 12, 5, 25, 9)
    ]


@pytest.fixture(scope="module")
def rankings(tiny_tokenizer: Any) -> list[Ranking]:
    """Four pairs, best first, whose completions differ in length."""
    noise = random.Random(1)
    return [
        Ranking(
            "",
            sequence(prompt, noise),
            [[*sequence(length, noise), tiny_tokenizer.eos_token_id] for length in lengths],
            [0, 1],
        )
        for prompt, lengths in ((3, (9, 4)), (17, (2, 21)), (8, (1, 1)), (12, (14, 15)))
    ]


# Tristage: the recipes' trainers on a DeepSpeed engine.


def tristage_sft(quantization: str, ranks: Ranks, examples: Sequence[sft.Example], micro: int) -> Result:
    roles = sft_roles(quantization)
    settings = Sft(batch_size=8, micro_batch_size=micro, max_grad_norm=0)
    engine = engine_of(roles, {Role.POLICY: 1e-3}, ranks, settings)
    trainer = sft.SftTrainer(engine, pad_id=0, micro_batch_size=micro)
    metrics, gradients = gradients_of(engine, lambda: trainer.step(examples))
    return metrics["loss"], gradients


def sft_roles(quantization: str) -> Roles:
    return new_role(tiny_roles(quantization=quantization), Role.POLICY, seed=3)


def rm_roles(quantization: str) -> Roles:
    roles = new_role(tiny_roles(quantization=quantization), Role.REWARD, seed=4, head=True)
    head: Any = roles.heads[Role.REWARD]
    torch.nn.init.zeros_(head.bias.requires_grad_(False))  # TRL's head has no bias; the recipe freezes it
    return roles


# TRL.


def peft_name(name: str) -> str:
    """The name in PEFT's model of a parameter of `Roles`."""
    if name.startswith("heads."):
        return "base_model.model.score.weight"
    return name.replace("causal.", "base_model.model.", 1)


def trl_model(base: PreTrainedModel, folder: Path, role: str) -> PeftModel:
    """`base` under the adapter in `folder`, as TRL users have it."""
    config = LoraConfig.from_pretrained(str(folder))
    config.task_type = None  # the adapter does not depend on the head of the base
    return PeftModel.from_pretrained(
        base, str(folder), adapter_name=str(role), is_trainable=True, config=config
    )


def trl_step(trainer: Trainer, weights: dict[str, Tensor], accumulation: int) -> Result:
    """Loss and gradients of the first optimizer step, as `Trainer.train` computes them."""
    parameters = dict(trainer.model.named_parameters())
    for name, weight in weights.items():
        parameters[peft_name(name)].data = weight.clone()  # TRL rounds weights over a quantized base to bf16
    batches, items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), accumulation, CPU)
    assert len(batches) == accumulation
    trainer.current_gradient_accumulation_steps = accumulation
    loss = sum(float(trainer.training_step(trainer.model, batch, items)) for batch in batches)
    gradients = {name: parameters[peft_name(name)].grad for name in weights}
    return loss, {name: gradient for name, gradient in gradients.items() if gradient is not None}


def trl_options(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trl"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_length": 64,
        **options,
    }


def trl_sft(
    quantization: str,
    demonstrations: Sequence[Demonstration],
    tokenizer: Any,
    folder: Path,
    accumulation: int = 1,
    **options: Any,
) -> Result:
    roles = sft_roles(quantization)
    save_role_of(roles, Role.POLICY, folder / "adapter", tokenizer)
    base = load_base(base_config(quantization), CPU)
    rows = [
        {
            "input_ids": demonstration.prompt_ids + demonstration.completion_ids,
            "completion_mask": [0] * len(demonstration.prompt_ids) + [1] * len(demonstration.completion_ids),
        }
        for demonstration in demonstrations
    ]
    trainer = SFTTrainer(
        model=trl_model(base, folder / "adapter", Role.POLICY),
        args=SFTConfig(completion_only_loss=True, **trl_options(folder, **options)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return trl_step(trainer, tensors_of(roles, Role.POLICY), accumulation)


def trl_rm(
    quantization: str, rankings: Sequence[Ranking], tokenizer: Any, folder: Path, **options: Any
) -> Result:
    roles = rm_roles(quantization)
    save_role_of(roles, Role.REWARD, folder / "adapter", tokenizer)
    config = base_config(quantization)
    base = AutoModelForSequenceClassification.from_pretrained(
        model_folder(config),
        num_labels=1,
        dtype=torch.float32,
        quantization_config=vars(roles.causal.config).get("quantization_config"),
    )
    model = trl_model(base, folder / "adapter", Role.REWARD)
    model.base_model.model.score.weight.requires_grad_(True)
    rows = [
        {
            "chosen_ids": ranking.prompt_ids + ranking.completion_ids[0],
            "rejected_ids": ranking.prompt_ids + ranking.completion_ids[1],
            **({"margin": ranking.labels[0] - ranking.labels[1]} if ranking.labels else {}),
        }
        for ranking in rankings
    ]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**trl_options(folder, per_device_train_batch_size=len(rankings), **options)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    weights = tensors_of(roles, Role.REWARD)
    del weights[f"heads.{Role.REWARD}.bias"]
    return trl_step(trainer, weights, 1)


def base_config(quantization: str) -> Base:
    return Base(model="tiny-random", quantization=quantization, compute_dtype="float32")


def assert_same(actual: Result, expected: Result) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=1e-5)
    assert_same_gradients(actual[1], expected[1])


@pytest.fixture(scope="module", params=QUANTIZATIONS)
def sft_reference(
    request: pytest.FixtureRequest,
    demonstrations: list[Demonstration],
    tiny_tokenizer: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Result]:
    """TRL's loss and gradients on the eight demonstrations in one batch."""
    folder = tmp_path_factory.mktemp("trl")
    result = trl_sft(request.param, demonstrations, tiny_tokenizer, folder, per_device_train_batch_size=8)
    return request.param, result


@pytest.mark.parametrize("micro", [8, 3, 1])
def test_sft_equals_trl(
    micro: int, sft_reference: tuple[str, Result], demonstrations: list[Demonstration], ranks: Ranks
) -> None:
    """The loss is a mean over the tokens of the whole batch, whatever the micro-batches."""
    quantization, trl = sft_reference
    assert_same(tristage_sft(quantization, ranks, demonstrations, micro), trl)


def test_sft_equals_trl_that_accumulates(
    demonstrations: list[Demonstration], tiny_tokenizer: Any, ranks: Ranks, tmp_path: Path
) -> None:
    trl = trl_sft(
        "nf4",
        demonstrations,
        tiny_tokenizer,
        tmp_path,
        accumulation=8,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
    )
    assert_same(tristage_sft("nf4", ranks, demonstrations, 1), trl)
    assert_same(tristage_sft("nf4", ranks, demonstrations, 8), trl)


def test_packed_sft_equals_unpacked_and_trl_packed(
    sft_reference: tuple[str, Result],
    demonstrations: list[Demonstration],
    tiny_tokenizer: Any,
    ranks: Ranks,
    tmp_path: Path,
) -> None:
    quantization, unpacked = sft_reference
    rows = pack.pack(demonstrations, 64)
    assert 1 < len(rows) < len(demonstrations), "the rows must hold several examples and need padding"
    packed = tristage_sft(quantization, ranks, rows, 2)
    assert_same(packed, unpacked)
    trl = trl_sft(
        quantization,
        demonstrations,
        tiny_tokenizer,
        tmp_path,
        per_device_train_batch_size=len(rows),
        packing=True,
        packing_strategy="bfd",
    )
    assert_same(packed, trl)


def test_sft_comparison_would_notice(
    sft_reference: tuple[str, Result], demonstrations: list[Demonstration], ranks: Ranks
) -> None:
    """One more token to learn changes loss and gradients by far more than the tolerance."""
    quantization, trl = sft_reference
    first, *rest = demonstrations
    longer = Demonstration(first.prompt_ids[:-1], first.prompt_ids[-1:] + first.completion_ids)
    loss, gradients = tristage_sft(quantization, ranks, [longer, *rest], 8)
    assert loss != pytest.approx(trl[0], rel=1e-4)
    with pytest.raises(AssertionError, match="off by"):
        assert_same_gradients(gradients, trl[1])


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_pairwise_rm_equals_trl(
    quantization: str, rankings: list[Ranking], tiny_tokenizer: Any, ranks: Ranks, tmp_path: Path
) -> None:
    trl = trl_rm(quantization, rankings, tiny_tokenizer, tmp_path)
    for micro, share_prompts in ((8, True), (2, True), (8, False)):
        settings = Rm(batch_size=4, micro_batch_size=micro, max_grad_norm=0)
        engine = engine_of(rm_roles(quantization), {Role.REWARD: 1e-3}, ranks, settings)
        trainer = RewardModelTrainer(engine, 0, micro, share_prompts)
        metrics, gradients = gradients_of(engine, partial(joint_step, [trainer], [rankings]))
        assert_same((metrics["loss"], gradients), trl)
        assert "heads.reward.weight" in gradients


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (RankingLoss(margin="scores"), {}),
        (RankingLoss(center=0.3), {"center_rewards_coefficient": 0.3}),
        (RankingLoss(margin="scores", center=0.3), {"center_rewards_coefficient": 0.3}),
        (RankingLoss(kind="plackett_luce", center=0.3), {"center_rewards_coefficient": 0.3}),
    ],
    ids=lambda value: " ".join(sorted(value.model_fields_set)) if isinstance(value, RankingLoss) else "",
)
def test_options_of_the_pairwise_loss_equal_those_of_trl(
    loss: RankingLoss,
    options: dict[str, float],
    rankings: list[Ranking],
    tiny_tokenizer: Any,
    ranks: Ranks,
    tmp_path: Path,
) -> None:
    if loss.margin == "scores":
        labels = ([2.0, 1.25], [3.5, -1.0], [0.5, 0.0], [1.0, 1.0])
        rankings = [replace(one, labels=own) for one, own in zip(rankings, labels, strict=True)]
    trl = trl_rm("none", rankings, tiny_tokenizer, tmp_path, **options)
    for micro, share_prompts in ((8, True), (2, True), (8, False)):
        settings = Rm(batch_size=4, micro_batch_size=micro, max_grad_norm=0)
        engine = engine_of(rm_roles("none"), {Role.REWARD: 1e-3}, ranks, settings)
        trainer = RewardModelTrainer(engine, 0, micro, share_prompts, loss)
        held_out = RewardEnsemble([trainer], 4, 0).evaluate(rankings)
        metrics, gradients = gradients_of(engine, partial(joint_step, [trainer], [rankings]))
        assert_same((metrics["loss"], gradients), trl)
        assert held_out["loss"] == pytest.approx(trl[0], rel=1e-5)


def test_prompts_forwarded_once_change_nothing(ranks: Ranks) -> None:
    """Rankings of 4, 3 and 2: loss and gradients equal those with a separate forward of each completion."""
    text = partial(sequence, noise=random.Random(8))
    examples = [
        Ranking("", text(9), [text(n) for n in (5, 12, 1, 7)], [0, 1, 1, 2]),
        Ranking("", text(20), [text(n) for n in (3, 8, 8)], [0, 1, 2]),
        Ranking("", text(2), [text(n) for n in (6, 2)], [0, 1]),
    ]
    results = []
    for share_prompts in (True, False):
        engine = engine_of(rm_roles("nf4"), {Role.REWARD: 1e-3}, ranks, Rm(batch_size=3, max_grad_norm=0))
        trainer = RewardModelTrainer(engine, 0, 12, share_prompts)
        held_out = RewardEnsemble([trainer], 3, 0).evaluate(examples)
        metrics, gradients = gradients_of(engine, partial(joint_step, [trainer], [examples]))
        results.append((metrics["loss"], gradients))
        assert held_out["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert_same(*results)
