"""The first step of every stage: load and check its bases and tokenizers."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from configs.regular_file import read_regular_file
from configs.schema import Base, Experiment, Stage
from data.batches.tokenize import apply_template
from stages.context import Context
from stages.distributed.ranks import Ranks
from stages.models.base import base_digest, load_base, load_config, load_tokenizer, model_folder
from stages.models.base_checks import check_base, check_fit
from stages.models.base_files import check_weights
from stages.models.loftq import take_up_rounding
from stages.models.role_models import RoleModels, check_critic
from stages.models.roles import Role, Roles
from stages.models.start_adapters import adapted_layers, add_reward_start, add_start
from stages.sampling.decoding_batch import check_joinable
from stages.sampling.vllm_checks import check_vllm, check_vllm_adapter
from stages.training.methods import MethodRoles, method_config
from stages.training.optimizer import deepspeed_options


def prepare(context: Context) -> RoleModels:
    """The stage's bases without roles, each with its tokenizer and the experiment's chat template.

    Raises:
        UserError: a base, tokenizer or vLLM is not usable, or an upstream stage was trained on another base.
    """
    config, ranks = context.config, context.ranks
    check_vllm(config, context.stage, ranks.device)
    bases = config.bases(context.stage)
    if ranks.rank == 0:
        for base in bases:
            load_tokenizer(base)  # rank 0 builds an embedded model for all
            check_weights(base, model_folder(base))  # and reads the weights: the cache tells the others
    ranks.barrier()
    deepspeed_options(config.deepspeed)
    model_configs = [load_config(base) for base in bases]
    pairs = zip(bases, model_configs, strict=True)
    tokenizers = [load_checked_tokenizer(config, context.stage, *pair) for pair in pairs]
    check_joinable(config, context.stage, model_configs[0])
    if context.stage == "ppo":
        check_critic(config, tokenizers)
    roles = [_roles(context, base, ranks) for base in bases]
    models = RoleModels(*zip(roles, tokenizers, strict=True))
    for folder in sampled_adapters(context):
        check_vllm_adapter(config, context.stage, models.policy_base.causal, folder)
    for stage, trained_on in context.bases.items():
        roles_of_stage = models.reward_base if stage == "rm" else models.policy_base
        check_base(config, stage, trained_on, roles_of_stage.base_digest)
    _note_template(context, models)
    return models


def _note_template(context: Context, models: RoleModels) -> None:
    """Note that the adapter of `STAGE.from` lies beside another chat template than the one that is used."""
    stage = context.stage
    if stage not in context.config.starts:
        return
    template = Path(context.config.starts[stage]) / "chat_template.jinja"
    if not template.is_file():
        return
    tokenizer = models.reward_tokenizer if stage == "rm" else models.tokenizer
    own = read_regular_file(template).decode(errors="replace")
    if tokenizer.chat_template is not None and own.strip() != str(tokenizer.chat_template).strip():
        context.tracker.note(
            f"{stage}.from: {template} is not the chat template of this run, which is used. If the adapter "
            "was trained with it, set data.chat_template to it."
        )


def sampled_adapters(context: Context) -> list[Path | None]:
    """Folders of the adapters that the stage samples from; None for that of SFT, where SFT has none yet."""
    start = context.config.ppo.start if context.stage == "ppo" else None
    return [context.inputs.get("sft"), *([Path(start)] if start else [])]


def add_given(context: Context, roles: Roles, role: Role) -> None:
    """Give `role` the adapter in `STAGE.from`, to train it further, and note which layers it adapts.

    Of a reward model, all members are given.

    Raises:
        UserError: see `add_start` and `add_reward_start`.
    """
    key, folder = f"{context.stage}.from", context.config.starts[context.stage]
    if role == Role.REWARD:
        add_reward_start(roles, context.config.rm, Path(folder))
    else:
        add_start(roles, role, key, Path(folder))
    layers = adapted_layers(roles, role)
    unused = "adapter.target_modules is not used"
    if context.config.adapter.init != "zero":
        unused = "adapter.target_modules and adapter.init are not used"
    context.tracker.note(f"{key}: {folder} adapts {layers}; {unused}")


def add_fresh(context: Context, roles: Roles, role: str) -> None:
    """Give `role` a new adapter that starts as `adapter.init` says, or what `sft.method` trains in its place.

    Seed before: the start is random.

    Raises:
        UserError: see `Roles.add_new` and `take_up_rounding`.
    """
    adapter, base = context.config.adapter, context.config.base_of(context.stage)
    roles.add_new(role, adapter)
    if _by_method(context):
        trained = sum(parameter.numel() for parameter in roles.role_parameters(role).values())
        context.tracker.note(f"sft.method: {context.config.sft.method}: {trained:,} parameters train")
    if adapter.init == "loftq" and base.quantization != "none":
        context.tracker.note(f"adapter.init: loftq: {take_up_rounding(roles, role, base)}")


def load_checked_tokenizer(
    config: Experiment, stage: Stage, base: Base, model_config: PretrainedConfig
) -> PreTrainedTokenizerBase:
    """The tokenizer of a stage's base, with the experiment's chat template.

    Raises:
        UserError: tokenizer or template is not usable, or they do not fit the base's `model_config`.
    """
    tokenizer = load_tokenizer(base)
    check_fit(config, stage, base, model_config, tokenizer)
    apply_template(tokenizer, config.data)
    return tokenizer


def _roles(context: Context, base: Base, ranks: Ranks) -> Roles:
    context.tracker.note(f"loading the base {base.model} ({base.quantization})")
    model = load_base(base, ranks.device)
    digest = ranks.broadcast(base_digest(base, model) if ranks.rank == 0 else None)
    if not _by_method(context):
        return Roles(model, digest)
    method = method_config(context.config.sft, context.config.adapter, context.seed)
    return MethodRoles(model, digest, method)


def _by_method(context: Context) -> bool:
    """Whether the stage is SFT by another method than LoRA."""
    return context.stage == "sft" and context.config.sft.method != "lora"
