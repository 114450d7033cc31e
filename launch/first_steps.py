"""The commands around a first run: `tristage init`, `explain`, `preview` and `doctor`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from configs.errors import UserError
from configs.recipes import recipe
from launch.arguments import ExperimentOptions
from pipeline.planning.request import RUN_STAGE
from pipeline.processes.streams import say
from pipeline.terminal.console import SafeConsole
from pipeline.terminal.explain import explain as print_explanation

OWN_DATA = "own-data"
PREVIEWED = 5  # rows
LEVELS = {"ok": "green", "note": "yellow", "problem": "bold red"}


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """A new experiment."""

    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", show_default=False, help="where to write it (default: RECIPE.yaml)"),
    ] = None
    recipe: Annotated[
        Literal["demo", "hh", "rm-hh", "rm-k-wise", "qwen3-8b"] | None,
        typer.Option(help="a shipped experiment; without it, one for data of your own"),
    ] = None


def init(options: InitOptions) -> int:
    """Write a commented experiment to edit; never overwrite a file."""
    file = options.file or Path(f"{options.recipe or OWN_DATA}.yaml")
    try:
        content = recipe(options.recipe, file).encode()
        with file.open("xb") as stream:
            stream.write(content)
    except FileExistsError:
        raise UserError(f"{file!s:.200}: exists, and is kept. Give the name of a new file.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{file!s:.200}: cannot be written: {reason}. Give another file.") from None
    say(f"wrote {file}")
    if options.recipe is None:
        say("edit it: the model, and the paths of your three data files")
    say(f"next: tristage plan {shlex.quote(str(file))}")
    return 0


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """A key of the configuration."""

    key: Annotated[
        str, typer.Argument(metavar="KEY", show_default=False, help="a key or section, e.g. ppo.kl_coef")
    ] = ""


def explain(options: ExplainOptions) -> int:
    """Show what a key does, its default and its allowed values; for a section, its keys."""
    print_explanation(SafeConsole(), options.key)
    return 0


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(ExperimentOptions):
    """Which rows of an experiment to show."""

    stage: Annotated[Literal["sft", "rm", "ppo"], typer.Option(help="the stage that reads them")]
    number: Annotated[
        int, typer.Option("-n", min=1, metavar="N", help="rows to show; the histograms are of all rows")
    ] = PREVIEWED


def preview(options: PreviewOptions) -> int:
    """Show the tokens that a stage sees: which are learned, scored or cut, and how long rows are."""
    config, _ = options.experiment_of_run() if options.run_dir else options.experiment()
    from data.preview import lengths, packed, preview, rows_of  # imports transformers
    from data.sources.mixture import first_of_each, label_of
    from pipeline.terminal.preview import ending, print_histogram, print_packed, print_previews
    from stages.preflight import main_source, tokenizer_of

    data_stage, kind, base = main_source(config, options.stage)
    tokenizer = tokenizer_of(config, options.stage, base)
    rows = rows_of(config, data_stage, kind, say)
    console = SafeConsole(highlight=False)
    some = first_of_each(rows, options.number, label_of)
    shown = [preview(row, kind, tokenizer, config.data) for row in some]
    print_previews(console, shown, tokenizer, ending(config, options.stage))
    for found in lengths(rows, kind, tokenizer, config.data):
        print_histogram(console, found)
    if options.stage == "sft" and config.sft.packing:
        sequences = packed(rows, tokenizer, config.data)
        print_packed(console, sequences, options.number, tokenizer, config.data.max_length)
    return 0


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """How thoroughly to examine the machine."""

    train: Annotated[
        bool,
        typer.Option("--train", help="also train a tiny model: each quantization, each ZeRO stage; minutes"),
    ] = False


def doctor(options: DoctorOptions) -> int:
    """Show whether this machine can run stages: versions, devices, compilers, services, disk."""
    from launch.trials import trials  # the libraries take seconds to import
    from pipeline.doctor import examine

    console, problems = SafeConsole(highlight=False), 0
    for finding in chain(examine(Path.cwd()), trials(RUN_STAGE) if options.train else ()):
        problems += finding.level == "problem"
        line = Text.assemble(
            (f"{finding.level:<8}", LEVELS[finding.level]), f" {finding.about}: {finding.text}"
        )
        console.print(line, soft_wrap=True)
    if not options.train:
        say("`tristage doctor --train` tries which quantization trains under which ZeRO stage here")
    return 1 if problems else 0
