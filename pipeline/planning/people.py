"""Whether the reward model's stage must wait until people have ranked its answers."""

from __future__ import annotations

from configs.errors import Waiting
from configs.schema import Stage
from data.people.round import FOLDER, has_round, read_round, read_settings
from pipeline.planning.request import Request
from pipeline.state.manifest import read_manifest

RANKINGS = "rankings.jsonl"  # in the stage's folder: what it trains on once it has begun


def waits_for_people(request: Request, stage: Stage, *, resumes: bool) -> str:
    """What people must still do before `stage` can start, in words; "" for nothing.

    Args:
        resumes: the stage has begun. It keeps the rankings that it began with.

    Raises:
        UserError: the labelling round is damaged.
    """
    rankings = request.config.rm.rankings
    if stage != "rm" or rankings.labeller != "people":
        return ""
    if resumes and (request.run.stage(stage) / RANKINGS).is_file():
        return ""
    folder = request.run.path / FOLDER / "rankings"
    if not has_round(folder):
        return "waits for people, who have not been asked yet"
    content = read_round(folder)
    missing = content.missing(rankings.complete)
    if not missing:
        return ""
    done = len(content.tasks) - len(content.unlabelled)
    few = content.uncompared
    shared = f"; still without a second ranking: {few} of those for everyone" if few else ""
    return (
        f"waits for people: {missing} more of {len(content.tasks)} prompts to rank ({done} are done{shared})"
    )


def stale_answers(request: Request, stage: Stage) -> tuple[str, ...]:
    """A line if SFT was trained again since the answers that people rank were sampled from it, and one if the
    prompts have changed since.
    """
    folder = request.run.path / FOLDER / "rankings"
    if stage != "rm" or request.config.rm.rankings.labeller != "people" or not has_round(folder):
        return ()
    settings, notes = read_settings(folder), []
    ranked = settings.adapters.get("sft")
    sft = read_manifest(request.run.manifest("sft"))
    if ranked is not None and not (sft and sft.output and sft.output.sha256 == ranked):
        notes.append(
            f"people rank answers of an earlier SFT policy than the present one ({folder}). To ask about the "
            "present one, move that folder away."
        )
    if changed := settings.changed_sources():
        notes.append(
            f"people rank answers to prompts as they were before {changed[0]} changed ({folder}). To ask "
            "about the present ones, move that folder away."
        )
    return tuple(notes)


def check_people(request: Request, stage: Stage, *, resumes: bool) -> None:
    """Raise Waiting if people must act before `stage` can start; see `waits_for_people`."""
    if why := waits_for_people(request, stage, resumes=resumes):
        raise Waiting(f"stage {stage} {why}. Ask them: {request.collect_command('rankings')}")
