"""What two sections of an experiment may not say together, though each may say it alone."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import STAGES, VLLM_LORA_RANKS, Epochs, Experiment, Rollout, Stage

Keys = tuple[str, ...]


def contradictions(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """Yield each contradiction with the key to blame, and what to change."""
    yield from _packing(experiment)
    yield from _best(experiment)
    yield from _reward_base(experiment)
    yield from _answers(experiment)
    yield from _shares(experiment)
    for key, rollout in dict(experiment.rollouts.values()).items():
        if rollout.engine == "vllm":
            yield from _vllm(experiment, tuple(key.split(".")), rollout)


def _packing(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    attention = experiment.base.attention
    if experiment.sft.packing and attention != "sdpa":
        yield (
            ("sft", "packing"),
            f"packed examples are kept apart by a mask that {attention} attention does not take; set "
            "base.attention to sdpa, or sft.packing to false",
        )


def _best(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    epochs: dict[Stage, Epochs] = {"sft": experiment.sft, "rm": experiment.rm}
    for stage, section in epochs.items():
        if section.use_best and experiment.data.source(stage).held_out == 0:
            yield (
                (stage, "use_best"),
                f"nothing is held out to choose by; set data.{stage}.held_out, or false",
            )


def _reward_base(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """One base twice in memory, and a reward model that does not start from SFT, is hardly meant."""
    base, own = experiment.base, experiment.rm.base
    same = ("model", "revision", "quantization")
    if own is not None and all(getattr(own, name) == getattr(base, name) for name in same):
        yield (
            ("rm", "base"),
            "the experiment's own base; leave rm.base out, and the reward model starts from the SFT adapter",
        )


def _answers(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """A prompt of the longest kind and its sampled answer must stay within `max_length`."""
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
                f"more than data.max_length ({data.max_length}); lower one of the two, or raise max_length",
            )


def _shares(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """A stage whose source others read, too, needs a share of it."""
    data = experiment.data
    for stage in STAGES:
        same = data.source(stage).identity
        others = [f"data.{each}" for each in STAGES if each != stage and data.source(each).identity == same]
        if others and data.shares.of(stage) == 0:
            yield (
                ("data", "shares", stage),
                f"0, but data.{stage} reads the same source as {' and '.join(others)}; give it a share, or a "
                "source of its own",
            )


def _vllm(experiment: Experiment, section: Keys, rollout: Rollout) -> Iterator[tuple[Keys, str]]:
    """What vLLM cannot do, or would not do as the model that trains does it."""
    base, largest = experiment.base, VLLM_LORA_RANKS[-1]
    engine, temperature, top_p = ((*section, key) for key in ("engine", "temperature", "top_p"))
    if base.quantization == "int8":
        yield engine, "vllm loads no int8 base; set base.quantization to nf4 or none, or choose auto"
    if base.compute_dtype == "float32":
        yield engine, "vllm's LoRA computes in bf16; set base.compute_dtype to auto, or choose auto"
    if base.trust_remote_code:
        yield engine, "vllm does not run the code that base.trust_remote_code trusts; choose auto"
    if experiment.adapter.r > largest:
        yield engine, f"vllm takes adapters up to rank {largest}; lower adapter.r, or choose auto"
    if rollout.temperature < 0.01:
        yield temperature, "vllm takes whatever is below 0.01 for 0.01; raise it, or choose engine auto"
    if rollout.top_p < 1 and rollout.top_k is None:
        reason = "vllm tells which tokens it could sample only where top_k bounds them; set top_k, too"
        yield top_p, f"{reason}, or choose engine auto"
