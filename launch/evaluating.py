"""The commands `tristage evaluate`: policies side by side, which is what it does by itself, and `rm`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from configs.errors import UserError
from launch.arguments import Commands, ExperimentOptions, check_installed, command
from launch.given_run import given_run
from launch.preference_options import PreferenceOptions
from pipeline.processes.logs import hide_loading
from pipeline.processes.streams import say
from pipeline.reporting.folder import check_writable

POLICIES, EVALUATE, MODEL = "policies", "Evaluation", "Reward model"


class Evaluations(Commands):
    """A group whose first command needs no name: `tristage evaluate --policies sft,ppo`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named else [POLICIES, *args])


app = typer.Typer(
    cls=Evaluations,
    help="Compare policies on the same prompts, or (rm) measure a reward model on any preferences.",
    rich_markup_mode="rich",
    epilog="Without the word policies or rm, it compares policies. "
    "Its options: tristage evaluate policies --help.\n\n"
    "Example: tristage evaluate --policies sft,sft@4,ppo",
)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ExperimentOptions):
    """What to compare, on what, and who judges."""

    policies: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="base, sft, ppo, an adapter's folder; sft@4: its best of 4 answers; sft~5: the answer that "
            "most of 5 give; base+4: the base with 4 demonstrations in its prompt (or base+4-nearest, "
            "base+4-shuffled); base+cot: after reasoning; default: all of the run",
            rich_help_panel=EVALUATE,
        ),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="prompts, in any format that PPO reads (default: those the run keeps from training)",
            rich_help_panel=EVALUATE,
        ),
    ] = None
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            min=2,
            metavar="N",
            help="the most prompts, and the most examples of a benchmark (default: all)",
            rich_help_panel=EVALUATE,
        ),
    ] = None
    judges: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="gold (ppo.judge), rm, warmth, warm_ending, module:function, an endpoint's YAML file, or "
            "people; default: gold and rm, as far as the run has them",
            rich_help_panel=EVALUATE,
        ),
    ] = None
    instructions: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="also the base with the best of N instructions that it proposes itself",
            rich_help_panel=EVALUATE,
        ),
    ] = 0
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="in place of all this: accuracy on labelled tasks: FILE.yaml, FILE.yaml:NAME or POOL=DATA",
            rich_help_panel=EVALUATE,
        ),
    ] = None
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="also measure the perplexity of this text", rich_help_panel=EVALUATE
        ),
    ] = None
    benchmarks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="also run these benchmarks of lm-eval, such as hellaswag",
            rich_help_panel=EVALUATE,
        ),
    ] = None
    benchmarks_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="a folder with YAML files of your own benchmarks", rich_help_panel=EVALUATE
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="folder to write (default: RUN/evaluation)", rich_help_panel=EVALUATE
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RewardModelOptions(PreferenceOptions):
    """Which reward model, on which preferences."""

    rm: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FOLDER|HUB",
            help="a run, an adapter with a head (ours or TRL's), or a sequence classifier with one label "
            "(default: the run's)",
            rich_help_panel=MODEL,
        ),
    ] = None
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="plain text is a turn of a chat (default: as the run; else if there is a chat template)",
            rich_help_panel=MODEL,
        ),
    ] = None
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="TOKENS",
            help="longer rows are left out (default: as the run; else the context window, at most 4096)",
            rich_help_panel=MODEL,
        ),
    ] = None
    quantization: Annotated[
        Literal["nf4", "int8", "none"] | None,
        typer.Option(
            help="of the base of an adapter that is in no run (default: nf4; none for TRL's)",
            rich_help_panel=MODEL,
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="folder to write (default: RUN/evaluation-rm, or ./evaluation-rm)"),
    ] = None


@command(app, "tristage evaluate rm --data allenai/reward-bench --split filtered --run-dir runs/demo")
def rm(options: RewardModelOptions) -> int:
    """Measure a reward model on any preferences: accuracy, calibration, baselines, mistakes."""
    from apps.evaluate.reward_models.measure import measure  # imports torch
    from apps.evaluate.reward_models.opening import HowRead, open_scorer, run_of
    from apps.evaluate.reward_models.output import print_measured, write_measured
    from apps.evaluate.reward_models.rows import read_preferences
    from pipeline.terminal.console import SafeConsole

    hide_loading()
    source = options.source()
    if options.rm is not None and (options.config or options.run_dir or options.overrides):
        raise UserError("--rm: it names the reward model. Leave the YAML, --run-dir and overrides out.")
    run_dir = given_run(options, "tristage evaluate rm").path if options.rm is None else None
    run = run_of(options.rm, run_dir)
    if run is not None and options.quantization:
        raise UserError("--quantization: a run's reward model is on its own base. Leave the option out.")
    folder = options.out or (run.run.path if run else Path()) / "evaluation-rm"
    check_writable(folder)
    preferences = read_preferences(source, options.by, run)
    how = HowRead(options.chat, options.max_length, options.quantization)
    scorer = open_scorer(options.rm, run, how)
    say(f"reward model: {scorer.name} ({scorer.about})")
    measured = measure(scorer, preferences, say)
    print_measured(SafeConsole(highlight=False), measured)
    page = write_measured(measured, folder, f"Reward model {scorer.name}", f"on {source.path}")
    say(f"evaluation: {page}")
    return 0


@command(app, "tristage evaluate --policies sft,sft@4,ppo")
def policies(options: EvaluateOptions) -> int:
    """Compare policies on the same prompts: judges, win rates, KL, variety and cost, with intervals."""
    if options.tasks is not None:
        return _evaluate_tasks(options)
    run_dir = given_run(options, "tristage evaluate", ["ppo.judge", "ppo.rollout"]).path
    if options.benchmarks:
        check_installed("evaluate", "lm_eval")
    from apps.evaluate.benchmarks import Benchmarks
    from apps.evaluate.candidates import parse_candidates  # imports torch
    from apps.evaluate.judges import open_judges
    from apps.evaluate.measure import Material, measure
    from apps.evaluate.output import print_comparison, write_answers, write_comparison
    from apps.trained_run import open_run
    from pipeline.terminal.console import SafeConsole

    hide_loading()
    run = open_run(run_dir, options.overrides)
    folder = _folder(options, run.run.path)
    candidates = parse_candidates(options.policies.split(",") if options.policies else run.policies)
    judges = open_judges(run, _names(options.judges) if options.judges else None, folder)
    benchmarks = None
    if options.benchmarks:
        benchmarks = Benchmarks(
            _names(options.benchmarks), options.benchmarks_folder, options.number, run.chat
        )
    elif options.benchmarks_folder:
        raise UserError("--benchmarks-folder: says where they are. Name those to run in --benchmarks.")
    material = Material(options.prompts, options.number, options.text, options.instructions, benchmarks)
    comparison = measure(
        run, candidates, judges, say, material, partial(write_answers, folder, run.manifests)
    )
    print_comparison(SafeConsole(highlight=False), comparison)
    say(f"evaluation: {write_comparison(comparison, folder, f'Policies of {run.config.name}')}")
    return 0


def _folder(options: EvaluateOptions, run: Path) -> Path:
    """The folder to write; raises UserError if it cannot be written."""
    folder = options.out or run / "evaluation"
    check_writable(folder)
    return folder


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",")]


def _evaluate_tasks(options: EvaluateOptions) -> int:
    """The accuracy of policies on labelled tasks, in RUN/evaluation/tasks.json and a page."""
    from apps.evaluate.task_output import print_tasks, write_tasks  # imports torch
    from apps.evaluate.tasks import measure_tasks, task_rows
    from apps.trained_run import open_run
    from pipeline.terminal.console import SafeConsole

    for key in ("prompts", "judges", "text", "instructions", "benchmarks", "benchmarks_folder"):
        if getattr(options, key):
            raise UserError(f"--{key.replace('_', '-')}: --tasks runs in its place. Give one of them.")
    hide_loading()
    run = open_run(given_run(options, "tristage evaluate --tasks", []).path)
    folder = _folder(options, run.run.path)
    names = _names(options.policies) if options.policies else list(run.policies)
    given = task_rows(run, _names(options.tasks or ""), options.number, say)
    results = measure_tasks(run, names, given, say)
    print_tasks(SafeConsole(highlight=False), results)
    say(f"evaluation: {write_tasks(results, folder, f'Tasks of {run.config.name}')}")
    return 0
