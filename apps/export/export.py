"""`tristage export`: write one stage of a run in a format that other programs read, and check it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from apps.export.card import base_name, card
from apps.export.formats import STAGES_OF, WRITERS, Export, Format
from apps.trained_run import POLICY_STAGES, TrainedRun
from configs.errors import UserError
from configs.schema import Stage
from data.storage.sealed_folder import SealedFolder
from pipeline.reporting.folder import check_can_be_written, check_writable
from pipeline.state.manifest import now

# The formats for which each option means something; an adapter is copied byte for byte.
FORMATS_OF: dict[str, tuple[Format, ...]] = {
    "--dtype": ("merged", "reward", "gguf"),
    "--compare-16bit": ("merged", "gguf"),
    "--converter": ("gguf",),
}


def chosen_stage(run: TrainedRun, stage: Stage | None, format_: Format | None) -> Stage:
    """The stage to export: the one that is named, else the newest policy, or the reward model for `reward`.

    Raises:
        UserError: no stage that could be exported has finished.
    """
    if stage:
        return stage
    if format_ == "reward":
        return "rm"
    finished = [policy for policy in POLICY_STAGES if policy in run.manifests]
    if not finished:
        raise UserError(f"{run.run.path}: neither sft nor ppo has finished. Run one, or name another run.")
    return finished[-1]


def chosen_format(stage: Stage, format_: Format | None) -> Format:
    """The format to write: the one that is named, else `merged` for a policy and `reward` for a reward model.

    Raises:
        UserError: the format is not for this stage.
    """
    chosen: Format = format_ or ("reward" if stage == "rm" else "merged")
    if stage not in STAGES_OF[chosen]:
        others = ", ".join(name for name, stages in STAGES_OF.items() if stage in stages)
        raise UserError(f"--format {chosen}: not for stage {stage}. For {stage} there are: {others}.")
    return chosen


def check_options(format_: Format, given: Sequence[str]) -> None:
    """Raise UserError for an option that was given and means nothing for the format."""
    for option in given:
        if format_ not in FORMATS_OF[option]:
            others = ", ".join(FORMATS_OF[option])
            raise UserError(
                f"{option}: means nothing for --format {format_}, only for {others}. Leave it out."
            )


def write_export(export: Export, format_: Format, out: Path, *, overwrite: bool) -> Path:
    """Write the export with its card and `export.json`; the folder is whole or absent.

    Raises:
        UserError: `out` is there already or cannot be written, the stage has not finished, or the export is
            not exact.
    """
    export.run.require(export.stage)
    in_run = Path(os.path.abspath(out)).is_relative_to(export.run.run.path.absolute())
    (check_writable if in_run else check_can_be_written)(out.parent)
    if out.exists() and not (overwrite and (out / "export.json").is_file()):
        raise UserError(
            f"{out}: exists, and is kept. Give another --out"
            + (", or --overwrite." if (out / "export.json").is_file() else ".")
        )
    with SealedFolder(out) as folder:
        written = WRITERS[format_](export, folder)
        use = written.use.replace("FOLDER", out.name)
        text = card(export.run, export.stage, use, written.library, written.exactness)
        (folder / "README.md").write_text(text + "\n")
        base = export.run.require(export.stage).base
        record = {
            "stage": export.stage,
            "format": format_,
            "member": export.member,
            "base": base.model_dump() | {"model": base_name(export.run.config.base_of(export.stage))},
            "figures": written.figures,
            "written": now().isoformat(),
        }
        (folder / "export.json").write_text(json.dumps(record, indent=2) + "\n")
    return out
