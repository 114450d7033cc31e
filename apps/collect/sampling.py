"""Sample the answers that people judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apps.collect.tasks import Say, Split, make_task
from apps.trained_run import chosen_adapters, load_policies, open_run, this_process
from configs.errors import UserError
from configs.schema import Experiment, Rollout
from data.batches import tokenize
from data.people.round import Kind, Task
from data.sources.formats import Row
from data.sources.split import prompt_key
from pipeline.state.run_directory import RunDirectory
from stages.feedback.rankings import NOISE
from stages.sampling.answers import sample_answers
from stages.sampling.sampler import open_sampler


def sampled_tasks(
    kind: Kind,
    policies: Sequence[str],
    each: int,
    config: Experiment,
    run: RunDirectory,
    prompts: Sequence[tuple[Split, Row]],
    say: Say,
) -> Iterator[Task]:
    """A task for each prompt, with `each` answers of every policy; of ratings, a task for each answer.

    Policies answer with the same noise. Rankings are of the samples that stage rm would have ranked.

    Raises:
        UserError: a policy is not there, or does not fit.
    """
    _check_room(kind, config)
    trained = open_run(run.path)
    say(f"loading {config.base.model} ({config.base.quantization}) and {', '.join(policies)}")
    loaded = load_policies(trained, chosen_adapters(trained, policies, reward=False), this_process())
    seed = config.seed if kind != "rankings" or config.rm.seed is None else config.rm.seed
    split_of = {prompt_key(row["prompt"]): split for split, row in prompts}
    encoded, counts = tokenize.prompts([row for _, row in prompts], loaded.tokenizer, config.data)
    say(f"prompts: {counts}")
    say(f"sampling {each} answers of {' and '.join(policies)} to {len(encoded)} prompts")
    with open_sampler(loaded.base, loaded.tokenizer, this_process(), _rollout(kind, config)) as sampler:
        answers = [
            sample_answers(config.data, sampler, loaded.roles[policy], encoded, each, (seed, NOISE))
            for policy in policies
        ]
    for of_prompt in zip(*answers, strict=True):
        prompt, prompt_source = of_prompt[0].prompt.prompt, of_prompt[0].prompt.source
        split = split_of[prompt_key(prompt)]
        completions = [text for one in of_prompt for text in one.completions]
        ids = [tokens for one in of_prompt for tokens in one.ids]
        sources = [policy for policy, one in zip(policies, of_prompt, strict=True) for _ in one.texts]
        if kind == "ratings":
            for text, tokens, source in zip(completions, ids, sources, strict=True):
                yield make_task(split, prompt, [text], [tokens], [source], prompt_source)
        else:
            yield make_task(split, prompt, completions, ids, sources, prompt_source)


def _rollout(kind: Kind, config: Experiment) -> Rollout:
    return config.rm.rankings.rollout if kind == "rankings" else config.ppo.rollout


def _check_room(kind: Kind, config: Experiment) -> None:
    """Raise UserError if a stage could not read the longest prompt with the longest answer."""
    key = "rm.rankings.rollout" if kind == "rankings" else "ppo.rollout"
    data, tokens = config.data, _rollout(kind, config).max_new_tokens
    if data.max_prompt_length + tokens > data.max_length:
        raise UserError(
            f"{key}.max_new_tokens: {tokens} tokens after a prompt of data.max_prompt_length "
            f"({data.max_prompt_length}) are more than data.max_length ({data.max_length}). Lower the first: "
            f"tristage collect {kind} ... {key}.max_new_tokens={data.max_length - data.max_prompt_length}"
        )
