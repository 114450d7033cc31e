"""Checks across sections: values that are valid by themselves and contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import EMBEDDINGS, STAGES, VLLM_LORA_RANKS, Agreement, Epochs, Experiment, Rollout, Stage

Keys = tuple[str, ...]


def contradictions(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """Yield (keys, reason) for each contradiction: the key to change, and how."""
    yield from _packing(experiment)
    yield from _use_best(experiment)
    yield from _reward_base(experiment)
    yield from _agreement(experiment)
    yield from _ranking_loss(experiment)
    yield from _response_lengths(experiment)
    yield from _shares(experiment)
    for key, rollout in dict(experiment.rollouts.values()).items():
        if rollout.engine == "vllm":
            yield from _vllm(experiment, tuple(key.split(".")), rollout)


def without_effect(experiment: Experiment, stage: Stage) -> Iterator[str]:
    """A line for each key of a stage that was set although another key makes it idle."""
    ppo, rankings = experiment.ppo, experiment.rm.rankings
    of_labellers = None if rankings.labeller != "file" else rankings.changed("completions", "rollout")
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
    attention = experiment.base.attention
    if experiment.sft.packing and attention != "sdpa":
        yield (
            ("sft", "packing"),
            f"packed examples are kept apart by a mask that {attention} attention does not support; set "
            "base.attention to sdpa, or sft.packing to false",
        )
    if experiment.sft.packing and experiment.sft.group_by_length:
        yield (
            ("sft", "group_by_length"),
            "packed sequences have one length already; set this or sft.packing to false",
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


def _agreement(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    labeller = experiment.rm.rankings.labeller
    if isinstance(labeller, Agreement) and len(set(labeller.agree)) < 2:
        yield (
            ("rm", "rankings", "labeller"),
            f"agree: names {labeller.agree[0]} twice, which always agrees with itself; name two labellers",
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
