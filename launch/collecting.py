"""The commands by which people label: tristage collect rankings, demonstrations, ratings, pairs, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from configs.errors import UserError
from configs.identity import different_values
from configs.load import load_experiment
from data.people.round import FOLDER, MOST_RANKED, Kind, has_round
from launch.arguments import Commands, ExperimentOptions, check_installed, command
from launch.given_run import given_run
from pipeline.processes.logs import hide_loading
from pipeline.processes.streams import say
from pipeline.state.run_directory import RunDirectory

ASKED, PEOPLE, SERVER = "What is asked", "People", "Server"  # groups of options in --help
# What a round is about, once it has begun. Other overrides are the stage's, and change nothing here.
SETTLED = ("base", "data", "rm.rankings.completions", "rm.rankings.rollout", "ppo.rollout", "rm.seed", "seed")
EXTRA = ("collect", "krippendorff", "starlette", "uvicorn")  # its name, and the modules in it

app = typer.Typer(
    cls=Commands,
    help="Have people rank, rate, compare or write answers on a local page.",
    rich_markup_mode="rich",
    epilog="Example: tristage collect rankings --run-dir runs/demo",
)


@dataclass(frozen=True, kw_only=True)
class CollectOptions(ExperimentOptions):
    """What people are asked, who may answer, and where the page is."""

    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="prompts, in any format that PPO reads (default: those of the stage that reads the labels)",
            rich_help_panel=ASKED,
        ),
    ] = None
    number: Annotated[
        int | None,
        typer.Option("-n", min=1, metavar="N", help="the most prompts (default: all)", rich_help_panel=ASKED),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="folder of the round (default: RUN/people/KIND)", rich_help_panel=ASKED
        ),
    ] = None
    prepare: Annotated[
        bool,
        typer.Option("--prepare", help="make the tasks, and serve no page yet", rich_help_panel=ASKED),
    ] = False
    labellers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="people who may label: a name and a token in each line (default: anybody on this machine)",
            rich_help_panel=PEOPLE,
        ),
    ] = None
    lease: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=10_000,
            metavar="MINUTES",
            help="after which a task that a person left open goes to another",
            rich_help_panel=PEOPLE,
        ),
    ] = 15.0
    instructions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="text that people read first", rich_help_panel=PEOPLE),
    ] = None
    host: Annotated[
        str,
        typer.Option(
            help="the address; one that other machines reach needs --labellers", rich_help_panel=SERVER
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 is any free port", rich_help_panel=SERVER)
    ] = 8001


Policy = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="whose answers: base, sft, ppo, or the folder of an adapter (see the default above)",
        rich_help_panel=ASKED,
    ),
]
Answers = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="prompts with answers to judge; then no policy answers", rich_help_panel=ASKED
    ),
]


@dataclass(frozen=True, kw_only=True)
class JudgingOptions(CollectOptions):
    """Of answers that are there, which several people judge, or one person twice."""

    policy: Policy = None
    answers: Answers = None
    overlap: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="share of the tasks that everyone gets, to measure agreement",
            rich_help_panel=PEOPLE,
        ),
    ] = 0.1
    again: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="share of a person's tasks that come to them a second time",
            rich_help_panel=PEOPLE,
        ),
    ] = 0.05


@dataclass(frozen=True, kw_only=True)
class RankingOptions(JudgingOptions):
    """Of rankings."""

    each: Annotated[
        int | None,
        typer.Option(
            "-k",
            min=2,
            max=MOST_RANKED,
            metavar="K",
            help="answers to each prompt (default: rm.rankings.completions)",
            rich_help_panel=ASKED,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RatingOptions(JudgingOptions):
    """Of ratings."""

    each: Annotated[
        int | None,
        typer.Option(
            "-k",
            min=1,
            max=64,
            metavar="K",
            help="answers to each prompt, each rated by itself (default: 1)",
            rich_help_panel=ASKED,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class WritingOptions(CollectOptions):
    """Of demonstrations."""

    policy: Policy = None
    draft: Annotated[
        bool, typer.Option("--draft", help="the policy writes a draft to start from", rich_help_panel=ASKED)
    ] = False


@dataclass(frozen=True, kw_only=True)
class ReportOptions(ExperimentOptions):
    """Which rounds."""

    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of one round (default: all of the run)")
    ] = None


@command(app, "tristage collect rankings --run-dir runs/demo -k 4 --labellers people.txt")
def rankings(options: RankingOptions) -> int:
    """People rank K answers of a policy (default: sft) from best to worst; stage rm trains on that."""
    return _collect("rankings", options, options.policy, options.answers, options.each)


@command(app, "tristage collect demonstrations --prompts prompts.jsonl")
def demonstrations(options: WritingOptions) -> int:
    """People write answers; stage sft trains on them. With --draft, they start from the newest policy's."""
    return _collect("demonstrations", options, options.policy, draft=options.draft)


@command(app, "tristage collect ratings --policy sft")
def ratings(options: RatingOptions) -> int:
    """People rate single answers from 1 to 7 (default: the newest policy's); see data.sft.min_rating."""
    return _collect("ratings", options, options.policy, options.answers, options.each)


@command(app, "tristage collect pairs --policy sft,ppo")
def pairs(options: JudgingOptions) -> int:
    """People choose between answers of two policies (default: sft,ppo); see evaluate --judges people."""
    return _collect("pairs", options, options.policy, options.answers)


@command(app, "tristage collect report --run-dir runs/demo")
def report(options: ReportOptions) -> int:
    """Show what people gave, and how well they agree; write it beside their labels."""
    check_installed(*EXTRA)
    from apps.collect.report import report as write_report
    from apps.collect.report import rounds_of
    from pipeline.terminal.console import SafeConsole

    for content in rounds_of(given_run(options, "tristage collect report"), options.out):
        say(f"report: {write_report(SafeConsole(highlight=False), content)}")
    return 0


def _collect(
    kind: Kind,
    options: CollectOptions,
    policy: str | None,
    answers: Path | None = None,
    each: int | None = None,
    draft: bool = False,
) -> int:
    """Open the round, and serve its page."""
    check_installed(*EXTRA)
    from apps.collect.assignment import Plan
    from apps.collect.prepare import open_round
    from apps.collect.serve import Desktop, serve
    from apps.collect.tasks import Asked

    hide_loading()
    config, run = options.experiment_of_run()
    asked = Asked(
        kind,
        tuple(policy.split(",")) if policy else (),
        options.prompts,
        answers,
        options.number,
        each,
        draft,
        tuple(options.overrides),
    )
    overlap = again = 0.0  # nobody writes what another has written
    if isinstance(options, JudgingOptions):
        overlap, again = options.overlap, options.again
    plan = Plan(overlap, again, 60 * options.lease)
    desktop = Desktop(options.host, options.port, options.labellers, options.instructions, plan)
    desktop.check()
    folder = options.out or run.path / FOLDER / kind
    continues = has_round(folder)
    content = open_round(folder, asked, config, run, say)
    if continues:
        _check_settled(options.overrides, content.settings.words, run, kind)
    if options.prepare:
        say(f"{len(content.tasks)} tasks in {content.folder}; the same command without --prepare serves them")
        return 0
    return serve(content.folder, desktop)


def _check_settled(overrides: Sequence[str], words: Sequence[str], run: RunDirectory, kind: Kind) -> None:
    """Raise UserError if an override would change what the round was begun with, which had `words`."""
    if not (overrides and run.config_file.is_file()):
        return
    begun = load_experiment(run.config_file, words)
    wanted = load_experiment(run.config_file, [*words, *(one for one in overrides if one not in words)])
    for key, (was, new) in different_values(begun, wanted).items():
        if any(f"{key}.".startswith(f"{section}.") for section in SETTLED):
            raise UserError(
                f"{key}={new!s:.100}: the round of {kind} began with {was!s:.100}. Leave the override out, "
                "or name the folder of another round with --out."
            )
