"""Open a round: continue the one in a folder, or make a new one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from apps.collect.tasks import PROMPTS_OF, Asked, Say, make_tasks, recorded_by_ppo
from configs.errors import UserError
from configs.schema import STAGES, Experiment
from data.people.adapters import FILE as ADAPTERS
from data.people.adapters import read_adapters
from data.people.round import MOST_RANKED, Round, Settings, create_round, has_round, read_round
from data.storage.source_digest import source_digest
from pipeline.state.manifest import output_digests, read_manifest
from pipeline.state.run_directory import RunDirectory, check_plain


def open_round(folder: Path, asked: Asked, config: Experiment, run: RunDirectory, say: Say) -> Round:
    """The round in `folder`; a new one if there is none.

    Raises:
        UserError: the round there asks something else, or a prompt, answer or policy cannot be used.
    """
    check_plain(folder)
    settings = _settings(asked, config, run)
    if has_round(folder):
        content = read_round(folder)
        _check_same(content, settings, asked)
    else:
        content = _new_round(folder, settings, asked, config, run, say)
    manifests = {stage: read_manifest(run.manifest(stage)) for stage in STAGES}
    if content.settings.is_stale(output_digests(manifests)):
        say(f"note: a stage was trained again since the answers in {folder} were sampled")
    return content


def _new_round(
    folder: Path, settings: Settings, asked: Asked, config: Experiment, run: RunDirectory, say: Say
) -> Round:
    if asked.answers and asked.prompts:
        raise UserError("--answers, --prompts: one of them: the file of answers has their prompts.")
    if asked.answers and asked.each:
        raise UserError("-k: the file of --answers says how many answers a prompt has. Leave -k out.")
    if asked.answers and asked.policies and read_adapters(asked.answers) is None:
        say(
            f"note: no {ADAPTERS} beside {asked.answers} tells which adapters gave these answers. They count "
            "as answers of the present ones."
        )
    tasks, equal = make_tasks(asked, settings.policies, settings.answers, config, run, say)
    if not tasks:
        raise UserError(f"collect {asked.kind}: there is nothing to ask. Give more prompts with --prompts.")
    continues = not config.data.chat and all(isinstance(task.prompt, str) for task in tasks)
    create_round(folder, settings.model_copy(update={"continues_text": continues, "equal": equal}), tasks)
    return read_round(folder)


def _settings(asked: Asked, config: Experiment, run: RunDirectory) -> Settings:
    """What the lead wants, with what the experiment says where the lead says nothing."""
    policies = asked.policies or (() if asked.answers else _policies(asked, run))
    if asked.kind != "pairs" and asked.answers and policies:
        raise UserError("--answers, --policy: one of them: the file has the answers.")
    if asked.kind == "pairs" and (policies or not asked.answers) and len(set(policies)) != 2:
        raise UserError("--policy: a pair has the answers of two policies. For example: --policy sft,ppo")
    if asked.kind in ("rankings", "ratings") and len(policies) > 1:
        raise UserError(f"--policy: {asked.kind} are of the answers of one policy.")
    each = asked.each or (config.rm.rankings.completions if asked.kind == "rankings" else 1)
    if asked.kind == "rankings" and not asked.answers and each > MOST_RANKED:
        raise UserError(
            f"rm.rankings.completions: {each} answers are more than {MOST_RANKED}: a person gives each its "
            f"rank by a digit. Ask for fewer: -k {MOST_RANKED}"
        )
    prompts = str(asked.prompts or f"data.{PROMPTS_OF[asked.kind]}")
    prompts = f"answers of {asked.answers}" if asked.answers else prompts
    return Settings(
        kind=asked.kind,
        run=config.name,
        answers=each,
        policies=policies,
        prompts=prompts if asked.number is None else f"{prompts}, the first {asked.number}",
        sources=_sources(asked, config),
        adapters=_adapters(asked, policies, run),
        seed=config.rm.seed if asked.kind == "rankings" and config.rm.seed is not None else config.seed,
        words=asked.words,
    )


def _adapters(asked: Asked, policies: Sequence[str], run: RunDirectory) -> dict[str, str]:
    """SHA-256 of the adapters behind the answers, by stage. Without a record, they are the present ones."""
    if asked.answers and (recorded := read_adapters(asked.answers)) is not None:
        return {stage: digest for policy in policies for stage, digest in recorded.get(policy, {}).items()}
    manifests = {stage: read_manifest(run.manifest(stage)) for stage in STAGES if stage in policies}
    adapters = output_digests(manifests)
    if recorded_by_ppo(asked, policies) and (ppo := manifests["ppo"]) and "sft" in ppo.inputs:
        adapters["sft"] = ppo.inputs["sft"].sha256  # of which PPO's evaluation has the answers
    return adapters


def _sources(asked: Asked, config: Experiment) -> dict[str, str]:
    """The digests of the local files that prompts and answers are read from, by path."""
    stage = PROMPTS_OF[asked.kind]
    named = asked.answers or asked.prompts
    paths = [str(named)] if named else [source.path for source in config.data.sources(stage)]
    digests = {os.path.abspath(path): source_digest(Path(path)) for path in paths}
    return {path: digest for path, digest in digests.items() if digest is not None}


def _policies(asked: Asked, run: RunDirectory) -> tuple[str, ...]:
    if asked.kind == "pairs":
        return ("sft", "ppo")
    if asked.kind == "demonstrations" and not asked.draft:
        return ()
    ppo = read_manifest(run.manifest("ppo"))
    newest = "ppo" if ppo and ppo.status == "finished" else "sft"
    return ("sft" if asked.kind == "rankings" else newest,)


def _check_same(content: Round, wanted: Settings, asked: Asked) -> None:
    """Raise UserError if the round asks something else than the lead says, or its prompts have changed.

    The rest may differ.
    """
    said = {
        "kind": True,
        "answers": asked.each is not None,
        "policies": bool(asked.policies or asked.draft),
        "prompts": bool(asked.prompts or asked.answers or asked.number),
    }
    for name in (name for name, is_said in said.items() if is_said):
        have, want = getattr(content.settings, name), getattr(wanted, name)
        if have != want:
            raise UserError(
                f"{content.folder}: the round there has {name} {_shown(have)}, not {_shown(want)}. Leave the "
                "option out to continue it, or name another folder with --out."
            )

    if changed := content.settings.changed_sources():
        raise UserError(
            f"{content.folder}: {changed[0]} changed since the round there began, and people would answer to "
            "what it said before. Restore the file, name another folder with --out, or move that folder away."
        )


def _shown(value: object) -> str:
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value)
