"""Prompts that a new round holds out although an earlier round trained on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import STAGES, Experiment, Stage
from data.examples import StageData, kind_of, ranked_by_people
from data.sources.formats import Row
from data.sources.split import prompt_key, row_key
from pipeline.state.manifest import read_manifest, source_hashes
from pipeline.state.run_directory import RunDirectory

CHAT_KEY = "data.chat_template"
REMEDY = (
    "Figures on them look better than they are. The same data and seed keep the split: name the earlier "
    "sources first and the new ones after them. Or hold out other prompts."
)
Keys = frozenset[str]


def prompts_trained_on(run: RunDirectory, config: Experiment) -> str | None:
    """What to tell of held-out prompts of the new round `run` that earlier rounds trained on; else None.

    Earlier rounds are split again, as they read their data. One whose data is not what it was, or is gone, is
    not compared, and the line says so. Rounds that read what this one reads have its split.
    """
    earlier: dict[str, tuple[Stage, Keys]] = {}
    unknown: dict[str, None] = {}  # each reason once
    for parent in config.lineage.parents:
        for stage in STAGES:
            try:
                if found := _trained(RunDirectory(Path(parent)), config, stage):
                    earlier[f"stage {stage} of {parent}"] = stage, found
            except UserError as error:
                reason = str(error).partition("\n")[0]
                unknown[f"Prompts that {parent} trained on were not compared: {reason}"] = None
    lines, faults = _compared(run, config, earlier)
    told = [f"{'; '.join(lines)}. {REMEDY}"] if lines else []
    return " ".join([*told, *faults, *unknown]) or None


def _trained(run: RunDirectory, new: Experiment, stage: Stage) -> Keys:
    """The prompts that a stage of an earlier round trained on; none if it did not, or splits as `new` does.

    Raises:
        UserError: the run or its data is not there, or the data is not what it was.
    """
    run.check()
    old, manifest = load_experiment(run.config_file), read_manifest(run.manifest(stage))
    if manifest is None or manifest.status != "finished" or not _learns(old, stage):
        return frozenset()
    if new.lineage.start == "sft" and stage == "ppo":  # its policy is not the one that goes on
        return frozenset()
    hashes = source_hashes(old, stage)
    rows = {key: digest for key, digest in hashes.items() if key.startswith("data.") and key != CHAT_KEY}
    if changed := manifest.changed_sources(rows):
        raise UserError(f"{changed[0]}.")
    missing = [key for key in manifest.sources if key.startswith("data.") and key not in hashes]
    if missing and missing != [CHAT_KEY]:
        raise UserError(f"{missing[0]}: the file is gone.")
    if _reads_alike(old, new):
        return frozenset()
    return _keys(_rows(run, old, stage)[0])


def _learns(config: Experiment, stage: Stage) -> bool:
    """Whether a stage of a round trains."""
    if stage == "rm":
        return config.rm.max_steps != 0 and "rm" in config.upstream("ppo")
    return stage == "ppo" or config.sft.max_steps != 0


def _reads_alike(old: Experiment, new: Experiment) -> bool:
    """Whether two rounds split their prompts alike."""
    kinds = (kind_of(old, "rm"), kind_of(new, "rm"))
    return old.data == new.data and old.seed == new.seed and kinds[0] == kinds[1]


def _rows(run: RunDirectory, config: Experiment, stage: Stage) -> tuple[list[Row], list[Row]]:
    """The rows that a stage trains on, and those that it holds out; raises UserError."""
    data = config.data.model_copy(update={"near_duplicates": None})  # takes long, and moves no prompt
    quick = config.model_copy(update={"data": data})
    ranked = ranked_by_people(config, stage, run.path)
    rows = StageData(quick, stage, lambda _: None, ranked=ranked).rows(kind_of(config, stage))
    return rows.train, rows.held_out


def _keys(rows: list[Row]) -> Keys:
    """The prompts of rows, and those of earlier turns that are learned, too."""
    turns = (prompt_key(row["prompt"][:place]) for row in rows for place in row.get("learned", ()))
    return frozenset(map(row_key, rows)).union(turns)


def _compared(
    run: RunDirectory, config: Experiment, earlier: dict[str, tuple[Stage, Keys]]
) -> tuple[list[str], list[str]]:
    """Counts of the held-out prompts that earlier stages trained on, and why a stage has none to compare."""
    lines: list[str] = []
    faults: list[str] = []
    for stage in STAGES if earlier else ():
        if not _learns(config, stage):
            continue
        try:
            held_out = frozenset(map(row_key, _rows(run, config, stage)[1]))
        except UserError as error:
            reason = str(error).partition("\n")[0]
            faults.append(f"The held-out prompts of data.{stage} were not compared: {reason}")
        else:
            lines += _counts(config, stage, held_out, earlier)
    return lines, faults


def _counts(
    config: Experiment, stage: Stage, held_out: Keys, earlier: dict[str, tuple[Stage, Keys]]
) -> Iterator[str]:
    """A line for each earlier stage that trained on held-out prompts.

    Without `data.keep_apart`, only the same stage of earlier rounds counts.
    """
    for name, (other, trained) in earlier.items():
        if (both := held_out & trained) and (config.data.keep_apart or other == stage):
            yield f"data.{stage}: {name} trained on {len(both):,} of the {len(held_out):,} held-out prompts"
