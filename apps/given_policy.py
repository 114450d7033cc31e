"""A policy that is given by its folder: does it belong to the base of this run?"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from apps.stage_data import TEMPLATE
from configs.errors import UserError
from configs.regular_file import read_regular_file
from configs.schema import ALL_STAGES, Experiment
from pipeline.planning.start_adapters import policy_fault
from pipeline.state.manifest import BaseModelId, Manifest, damage, read_manifest


def check_given(config: Experiment, folder: Path) -> None:
    """Check what the files in `folder` say of the base and, if it is a stage's, what its manifest says.

    Raises:
        UserError: it is no policy, is damaged, or was trained on another base.
    """
    if fault := policy_fault(config, folder) or _stage_fault(config, folder):
        raise UserError(f"policy {folder}: {fault}")


def _stage_fault(config: Experiment, folder: Path) -> str | None:
    manifest = stage_manifest(folder)
    if manifest is None:
        return None
    if manifest.output is None:
        return f"stage {manifest.stage} has not finished there. Finish it first, or name another policy."
    if faults := damage(folder, manifest.output.files):
        return f"{faults[0]}. Restore it."
    own = BaseModelId.of(config.base)
    same = manifest.base == own or (manifest.base_digest and manifest.base.quantization == own.quantization)
    return None if same else _other_base(str(manifest.base), str(own))


def stage_manifest(folder: Path) -> Manifest | None:
    """The manifest of the stage of a run that wrote the adapter in `folder`; None if no stage did."""
    stage = folder.absolute().parent
    if folder.absolute().name != "adapter" or stage.name not in ALL_STAGES:
        return None
    return read_manifest(stage / "manifest.json")


def check_loaded_base(
    folder: Path, config: Experiment, digest: str, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Check the policy of a stage of another run against the base that is loaded.

    Args:
        digest: of the loaded base.
        tokenizer: with the chat template of this run; None if its policies continue texts.

    Raises:
        UserError: it was trained on another base, or with another chat template.
    """
    manifest = stage_manifest(folder)
    if manifest is None:
        return
    if manifest.base_digest not in (None, digest):
        then, now = (
            f"{manifest.base}, {manifest.base_digest:.12}",
            f"{BaseModelId.of(config.base)}, {digest:.12}",
        )
        raise UserError(f"policy {folder}: {_other_base(then, now)}")
    template = folder / TEMPLATE
    if tokenizer is None or not template.is_file():
        return
    own = read_regular_file(template).decode(errors="replace")
    if own.strip() != str(tokenizer.chat_template).strip():
        raise UserError(
            f"policy {folder}: it was trained with another chat template ({TEMPLATE}) than this run's. Use "
            "it with its own run: --run-dir."
        )


def _other_base(then: str, now: str) -> str:
    return (
        f"it was trained on another base ({then}) than that of this run ({now}). Use it with its own run: "
        "--run-dir."
    )
