"""Checks across sections: values that are valid by themselves and contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import (
    EMBEDDINGS,
    STAGES,
    VIRTUAL_TOKENS,
    VLLM_LORA_RANKS,
    Agreement,
    Base,
    Epochs,
    Experiment,
    Rm,
    Rollout,
    Sft,
    Stage,
)

Keys = tuple[str, ...]


def contradictions(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """Yield (keys, reason) for each contradiction: the key to change, and how."""
    yield from _packing(experiment)
    yield from _use_best(experiment)
    yield from _reward_base(experiment)
    yield from _loftq(experiment)
    yield from _dora(experiment)
    yield from _method(experiment)
    yield from _agreement(experiment)
    yield from _earlier(experiment)
    yield from _merge(experiment)
    yield from _ranking_loss(experiment)
    yield from _ensemble(experiment)
    yield from _response_lengths(experiment)
    yield from _shares(experiment)
    for key, rollout in dict(experiment.rollouts.values()).items():
        if rollout.engine == "vllm":
            yield from _vllm(experiment, tuple(key.split(".")), rollout)


def without_effect(experiment: Experiment, stage: Stage) -> Iterator[str]:
    """A line for each key of a stage that was set although another key makes it idle."""
    ppo, rankings = experiment.ppo, experiment.rm.rankings
    of_labellers = None if rankings.labeller != "file" else rankings.changed("completions")
    of_people = None if rankings.labeller == "people" else rankings.changed("complete")
    cases: tuple[tuple[Stage, str, str | None, str], ...] = (
        ("rm", "rm.rankings", of_labellers, "rm.rankings.labeller is file"),
        ("rm", "rm.rankings", of_people, "rm.rankings.labeller is not people"),
        ("ppo", "ppo", None if ppo.kl_target else ppo.changed("kl_horizon"), "ppo.kl_target is not set"),
        ("ppo", "ppo", None if ppo.ptx_coef else ppo.changed("ptx_batch_size"), "ppo.ptx_coef is 0"),
    )
    for of, section, key, why in cases:
        if of == stage and key:
            yield f"{section}.{key} is set, and has no effect: {why}"


def _packing(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    sections: tuple[tuple[str, Sft | Rm, Base], ...] = (
        ("sft", experiment.sft, experiment.base),
        ("rm", experiment.rm, experiment.rm.base or experiment.base),
    )
    for stage, section, base in sections:
        if section.packing and base.attention != "sdpa":
            yield (
                (stage, "packing"),
                f"packed examples are kept apart by a mask that {base.attention} attention does not support; "
                f"set {base.key}.attention to sdpa, or {stage}.packing to false",
            )
        if section.packing and section.group_by_length:
            yield (
                (stage, "group_by_length"),
                f"packed rows have about one length already; set this or {stage}.packing to false",
            )


def _use_best(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    epochs: dict[Stage, Epochs] = {"sft": experiment.sft, "rm": experiment.rm}
    for stage, section in epochs.items():
        if section.use_best and not any(source.held_out for source in experiment.data.sources(stage)):
            yield (
                (stage, "use_best"),
                f"nothing is held out to choose by; set data.{stage}.held_out, or set this to false",
            )


def _reward_base(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """Refuse the same base twice: memory would hold two copies, and RM training would not start from SFT."""
    identity = {"model", "revision", "quantization"}
    base, reward_base = experiment.base, experiment.rm.base
    if reward_base and reward_base.model_dump(include=identity) == base.model_dump(include=identity):
        yield (
            ("rm", "base"),
            "is the experiment's own base; leave rm.base out, so that the reward model starts from SFT",
        )


def _loftq(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    adapter, reward_base = experiment.adapter, experiment.rm.base
    bases = [experiment.base, *([reward_base] if reward_base else [])]
    if adapter.init == "loftq" and all(base.quantization == "none" for base in bases):
        yield (
            ("adapter", "init"),
            "loftq takes up what quantization changes, and no base is quantized; set base.quantization, or "
            "leave this out",
        )


def _dora(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    bases = [experiment.base, *([experiment.rm.base] if experiment.rm.base else [])]
    if experiment.adapter.dora and any(base.quantization == "int8" for base in bases):
        yield (
            ("adapter", "dora"),
            "does not train on an int8 base, whose weights it cannot read before their first use; set "
            "quantization to nf4 or none, or this to false",
        )


def _method(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """Refuse keys that `sft.method` has no use for, and bases that it cannot train."""
    sft, adapter, base, key = experiment.sft, experiment.adapter, experiment.base, ("sft", "method")
    virtual = sft.method in VIRTUAL_TOKENS
    if not virtual and sft.changed("virtual_tokens"):
        yield ("sft", "virtual_tokens"), f"sft.method: {sft.method} has none; leave it out"
    if sft.method == "lora":
        return
    for unused, is_set in {
        "sft.from": sft.start is not None,
        "adapter.dora": adapter.dora,
        "adapter.init": adapter.init != "zero",
    }.items():
        if is_set:
            yield key, f"{unused} is of LoRA, and {sft.method} has none; leave one of them out"
    if (virtual or sft.method == "ia3") and adapter.target_modules != "all-linear":
        yield key, f"{sft.method} has layers of its own; leave adapter.target_modules out"
    if sft.method != "adalora" and sft.lora_plus_ratio != 1:
        yield key, f"sft.lora_plus_ratio is of LoRA's B, and {sft.method} has none; leave one of them out"
    if sft.method == "adalora" and adapter.r < 2:
        yield ("adapter", "r"), "adalora takes half of the ranks away; set this to 2 or more"
    if virtual and sft.packing:
        yield key, f"{sft.method} puts vectors before each example; set sft.packing to false"
    if sft.method == "prefix" and base.gradient_checkpointing:
        yield key, "prefix keeps keys and values, which base.gradient_checkpointing drops; set that to false"
    if sft.method == "random_subset" and base.quantization != "none":
        yield (
            key,
            f"random_subset changes single weights, and those of an {base.quantization} base are packed; set "
            "base.quantization to none",
        )


def _agreement(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    labeller = experiment.rm.rankings.labeller
    if isinstance(labeller, Agreement) and len(set(labeller.agree)) < 2:
        yield (
            ("rm", "rankings", "labeller"),
            f"agree: names {labeller.agree[0]} twice, which always agrees with itself; name two labellers",
        )


def _earlier(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    if experiment.rm.rankings.earlier and experiment.rm.rankings.labeller == "file":
        yield (
            ("rm", "rankings", "earlier"),
            "is beside the rankings of a labeller, and rm.rankings.labeller is file; name a labeller, or "
            "put the rankings of all rounds into data.rm and set this to []",
        )


def _merge(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    rankings = experiment.rm.rankings
    if rankings.merge != "each" and rankings.labeller != "people":
        yield (
            ("rm", "rankings", "merge"),
            f"{rankings.merge} merges the rankings of several people, and rm.rankings.labeller is "
            f"{rankings.labelled_by}; set the labeller to people, or leave this out",
        )


def _ranking_loss(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """Refuse options of the reward model's loss that have no meaning together, or no effect."""
    loss, section = experiment.rm.loss, ("rm", "loss")
    pairwise = {
        "ties": "counts tied pairs",
        "margin": "sets a margin for pairs",
        "label_smoothing": "smooths the labels of pairs",
    }
    if loss.kind == "plackett_luce":
        for key in pairwise:
            if loss.changed(key):
                yield (
                    (*section, key),
                    f"{pairwise[key]}, but kind: plackett_luce has no pairs; leave it out, or set kind to "
                    "bradley_terry",
                )
    if loss.margin == "none" and loss.changed("margin_scale"):
        yield (
            (*section, "margin_scale"),
            "has no effect without a margin; set rm.loss.margin to scores, or leave this out",
        )
    if loss.margin == "scores" and loss.label_smoothing:
        yield (
            (*section, "label_smoothing"),
            "a label that may be wrong has no margin; set rm.loss.margin to none, or this to 0",
        )
    rankings = experiment.rm.rankings
    if loss.margin == "scores" and rankings.only_compares:
        yield (
            (*section, "margin"),
            f"needs scores, but rm.rankings.labeller ({rankings.labelled_by}) gives ranks only; set this to "
            "none, or name a labeller that scores",
        )
    if loss.ties == "half" and rankings.labeller != "file" and rankings.completions == 2:
        yield (
            (*section, "ties"),
            "has no effect on rankings of two answers, which are left out if both tie; set it to ignore, or "
            "raise rm.rankings.completions",
        )


def _ensemble(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """Refuse a way to combine scores where there is one, or none."""
    ppo = experiment.ppo
    if key := ppo.changed("ensemble", "ensemble_coef"):
        if experiment.rm.members == 1:
            yield ("ppo", key), "combines several reward models; raise rm.members, or leave this out"
        elif not ppo.uses_reward_model:
            yield ("ppo", key), "has no effect, as no term of ppo.rewards is rm; leave this out"
    if ppo.changed("ensemble_coef") and ppo.ensemble != "mean_minus_deviation":
        yield (
            ("ppo", "ensemble_coef"),
            "has no effect without a deviation; set ppo.ensemble to mean_minus_deviation, or leave this out",
        )


def _response_lengths(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """The longest prompt and its sampled response must fit into `max_length`."""
    data, rankings = experiment.data, experiment.rm.rankings
    sampled: dict[Keys, int] = {("ppo", "rollout"): experiment.ppo.rollout.max_new_tokens}
    if experiment.best.rollout is not None:
        sampled["best", "rollout"] = experiment.best.rollout.max_new_tokens
    if rankings.labeller != "file":
        sampled["rm", "rankings", "rollout"] = rankings.rollout.max_new_tokens
    for section, tokens in sampled.items():
        if data.max_prompt_length + tokens > data.max_length:
            yield (
                (*section, "max_new_tokens"),
                f"{tokens} tokens after a prompt of data.max_prompt_length ({data.max_prompt_length}) are "
                f"more than data.max_length ({data.max_length}); lower one of the first two, or raise "
                "max_length",
            )


def _shares(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """A stage that reads the same source as another stage needs a share of it."""
    data = experiment.data
    for stage in STAGES:
        if data.shares.of(stage):
            continue
        for key, _, source in data.parts(stage):
            if others := [other for other in data.readers(source) if other != stage]:
                names = " and ".join(f"data.{other}" for other in others)
                yield (
                    ("data", "shares", stage),
                    f"0, but {key} reads the same source as {names}; give it a share, or another source",
                )
                break


def _vllm(experiment: Experiment, section: Keys, rollout: Rollout) -> Iterator[tuple[Keys, str]]:
    """Refuse what vLLM does not support, or does differently from the model that trains."""
    base, max_rank = experiment.base, VLLM_LORA_RANKS[-1]
    engine, temperature, top_p = ((*section, key) for key in ("engine", "temperature", "top_p"))
    if base.quantization == "int8":
        yield engine, "vllm does not load an int8 base; set base.quantization to nf4 or none, or choose auto"
    if base.quantization == "nf4" and base.compute_dtype == "float32":
        reason = (
            "vllm computes in bf16 on an NF4 base; set base.compute_dtype to auto, or quantization to none"
        )
        yield engine, f"{reason}, or choose auto"
    if base.trust_remote_code:
        yield engine, "vllm does not run the code that base.trust_remote_code trusts; choose auto"
    if experiment.adapter.dora:
        yield engine, "vllm has no DoRA; set adapter.dora to false, or choose auto"
    if experiment.adapter.r > max_rank:
        yield engine, f"vllm takes adapters up to rank {max_rank}; lower adapter.r, or choose auto"
    named = [] if experiment.adapter.target_modules == "all-linear" else experiment.adapter.target_modules
    if embeddings := [name for name in named if name.rsplit(".", 1)[-1] in EMBEDDINGS]:
        reason = f"vllm takes no adapter on {embeddings[0]}; leave it out of adapter.target_modules"
        yield engine, f"{reason}, or choose auto"
    if rollout.temperature < 0.01:
        yield temperature, "vllm raises values below 0.01 to 0.01; raise it, or choose engine auto"
    if rollout.top_p < 1 and rollout.top_k is None:
        reason = "vllm reports which tokens it could sample only if top_k bounds them; set top_k as well"
        yield top_p, f"{reason}, or choose engine auto"
