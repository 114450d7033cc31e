"""What every stage does first: join the other ranks, load bases and tokenizers, read its examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from configs.errors import UserError
from configs.schema import Base, Experiment, Stage
from data.formats import Kind, load_rows
from data.split import stage_split
from data.tokenize import Counts, apply_template
from stages.base_checks import check_fit, check_joinable
from stages.cast import Cast, Players, same_tokens
from stages.checkpoint import save_adapter
from stages.context import Context
from stages.engine import Engine, deepspeed_options
from stages.modeling import Roles, base_digest, load_base, load_config, load_tokenizer
from stages.ranks import Ranks, init_distributed
from stages.vllm_engine import check_vllm

Example = TypeVar("Example")


def prepare(context: Context) -> tuple[Ranks, Cast]:
    """Ranks, and the stage's bases, each with its tokenizer and the experiment's chat template; no roles yet.

    Raises:
        UserError: a base, a tokenizer or vLLM cannot serve, or a stage upstream was trained on another base.
    """
    config = context.config
    check_vllm(config, context.stage)
    ranks = init_distributed(config.deepspeed)
    bases = config.bases(context.stage)
    if ranks.rank == 0:
        for base in bases:
            load_tokenizer(base)  # an embedded model is built once
    ranks.barrier()
    deepspeed_options(config.deepspeed)
    known = [load_config(base) for base in bases]
    tokenizers = [_tokenizer(context, *each) for each in zip(bases, known, strict=True)]
    check_joinable(config, context.stage, known[0])
    if context.stage == "ppo":
        check_critic(config, tokenizers)
    roles = [_roles(context, base, ranks) for base in bases]
    cast = Cast(*zip(roles, tokenizers, strict=True))
    for stage, trained_on in context.bases.items():
        used = cast.reward_base if stage == "rm" else cast.policy_base
        check_base(config, stage, trained_on, used.base_digest)
    return ranks, cast


def _tokenizer(context: Context, base: Base, known: PretrainedConfig) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(base)
    check_fit(context.config, context.stage, base, known, tokenizer)
    apply_template(tokenizer, context.config.data)
    return tokenizer


def _roles(context: Context, base: Base, ranks: Ranks) -> Roles:
    context.tracker.note(f"loading the base {base.model} ({base.quantization})")
    model = load_base(base, ranks.device)
    return Roles(model, ranks.gather([base_digest(base, model)] if ranks.rank == 0 else [])[0])


def check_critic(config: Experiment, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
    """Values are of the tokens that the policy samples, so a critic has to know these.

    Raises:
        UserError: the critic would be on a base whose tokenizer is not the policy's.
    """
    if config.ppo.critic == "adapter" and not same_tokens(tokenizers[0], tokenizers[-1]):
        raise UserError(
            "ppo.critic: adapter puts the critic on rm.base, whose tokenizer makes other tokens than the "
            "policy's, so that it could not value these one by one. Set ppo.critic to shared, a head on the "
            "policy; no other stage has to run again for that."
        )


def check_base(config: Experiment, stage: Stage, trained_on: str, digest: str) -> None:
    """An adapter fits the one base that it was trained on, not another one of the same name.

    Raises:
        UserError: the base was `trained_on` in `stage` and is now `digest`.
    """
    if trained_on != digest:
        base = config.base_of(stage)
        then, now = ("+".join(part[:12] for part in each.split("+")) for each in (trained_on, digest))
        raise UserError(
            f"{base.key}.model: {base.model} is not what it was when stage {stage} was trained on it "
            f"({then} then, {now} now). Restore it, pin {base.key}.revision to what it was, or "
            f"train {stage} again."
        )


def read_examples(
    context: Context,
    kind: Kind,
    tokenize: Callable[..., tuple[list[Example], Counts]],
    tokenizer: PreTrainedTokenizerBase,
    stage: Stage | None = None,
) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples of `stage`, by default this one; what was cut or dropped is told."""
    data, stage = context.config.data, stage or context.stage
    rows = load_rows(getattr(data, stage), kind, context.tracker.note)
    parts = stage_split(data, stage, rows, context.config.seed)
    return tokenized(context, tokenize, tokenizer, parts)


def tokenized(
    context: Context,
    tokenize: Callable[..., tuple[list[Example], Counts]],
    tokenizer: PreTrainedTokenizerBase,
    parts: tuple[Any, Any],
) -> tuple[list[Example], list[Example]]:
    """Training and held-out rows as examples of token ids."""
    train, train_counts = tokenize(parts[0], tokenizer, context.config.data)
    context.tracker.note(f"training: {train_counts}")
    if not len(parts[1]):
        return train, []
    held_out, held_out_counts = tokenize(parts[1], tokenizer, context.config.data)
    context.tracker.note(f"held out: {held_out_counts}")
    return train, held_out


def save_role(
    context: Context, engine: Engine, role: str, tokenizer: PreTrainedTokenizerBase, name: str = "adapter"
) -> None:
    """Write the adapter of `role` (and its head) to the stage's folder `name`. Every rank must call."""
    tensors = engine.role_tensors(role)
    if engine.ranks.rank == 0:
        write_role(context, engine.roles, role, tokenizer, tensors, name)
    engine.ranks.barrier()


def write_role(
    context: Context,
    roles: Players,
    role: str,
    tokenizer: PreTrainedTokenizerBase,
    tensors: dict[str, Any],
    name: str = "adapter",
) -> None:
    """Write `tensors` of `role` to the stage's folder `name`, with tokenizer and model card."""
    save_adapter(
        context.folder / name,
        tensors,
        role,
        roles.peft_config(role),
        context.config.base_of(context.stage).model,
        tokenizer,
        _card(context, role),
    )


def _card(context: Context, role: str) -> str:
    config, base = context.config, context.config.base_of(context.stage)
    return f"""---
base_model: {base.model}
library_name: peft
tags: [lora, rlhf, {context.stage}]
---
# {config.name}: {role}

The `{role}` adapter of the {context.stage} stage of the experiment `{config.name}`: LoRA of rank
{config.adapter.r} over `{base.model}` (revision {base.revision or "default"}, trained on it in
{base.quantization}). Load it with `PeftModel.from_pretrained(base, folder)`. Its manifest, one folder up,
holds what it was trained on and what it scored.
"""
