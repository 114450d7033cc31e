"""The program `tristage`: its commands run, sweep, plan, status and report, and those of other modules."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer

from configs.errors import UserError
from configs.load import dump_experiment
from configs.schema import MAX_NAME, STAGES, Experiment, Stage
from launch import checking, collecting, evaluating, first_steps, rounds, uses
from launch.arguments import (
    EXPERIMENT,
    Commands,
    ExperimentOptions,
    RequestOptions,
    command,
    exit_status,
)
from launch.deepspeed_command import Launch, guess_accelerators, visible_devices
from launch.given_run import given_run
from launch.refusals import check_runnable, read_request
from launch.stage_sequence import run_all
from launch.sweep import Run, check_different, run_sweep, runs_of, seeds_of, split_axes
from launch.sweep_plan import plan_runs, settings_of
from launch.worker_pool import WorkerPool
from pipeline.planning.batches import check_batches
from pipeline.planning.machine import machine_in_words, machine_warnings, made_for
from pipeline.planning.machine_memory import rank_here
from pipeline.planning.plan import StagePlan, plan_stages, stages_between
from pipeline.planning.request import RUN_STAGE, Request
from pipeline.planning.stage_checks import check_all
from pipeline.processes import logs, parent_watch
from pipeline.processes.interruption import end_in_one_line
from pipeline.processes.signals import handled_by
from pipeline.processes.streams import protect_streams, say
from pipeline.state.manifest import library_versions, read_manifest
from pipeline.state.results import sweep_runs
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.console import SafeConsole
from pipeline.terminal.memory_table import print_memory
from pipeline.terminal.show import (
    print_batches,
    print_decisions,
    print_heading,
    print_lines,
    print_runs,
    print_status,
)

TRISTAGE = [sys.executable, "-P", "-m", "launch.cli"]  # -P: ignore a folder `launch` in the working directory
TrainedStage = Literal["sft", "rm", "ppo"]
SIGNALS = 128  # a status from here on: a signal ended the stage, and whoever sent it waits
RANGE, MACHINE, SWEEP = "Stages", "Machine", "Sweep"  # groups of options in --help
TRAIN, SEE, BEGIN, USE, PEOPLE = "Train", "See", "First steps", "Use the result", "People"  # of commands

app = typer.Typer(
    cls=Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Shell completion: tristage --install-completion, then restart the shell.\n\n"
    "Example: tristage run configs/demo.yaml ppo.kl_coef=0.1",
)


def main() -> int:
    """Returns the exit status: 0 done, 2 the user must fix something, else that of the failing stage."""
    logs.silence()
    protect_streams()
    parent_watch.follow_starter()
    with handled_by(end_in_one_line):
        return exit_status(app, "tristage")


def _print_version(show: bool) -> None:
    if show:
        say(f"tristage {library_versions().get('tristage', 'is not installed')}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """RLHF in three stages over one quantized base."""


@dataclass(frozen=True, kw_only=True)
class StartOptions(RequestOptions):
    """A request, and the devices that its stages run on."""

    num_accelerators: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="devices per machine (default: all; 1 on CPU)",
            rich_help_panel=MACHINE,
        ),
    ] = None
    hostfile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="machines of a multi-node run", rich_help_panel=MACHINE),
    ] = None

    def launch(self) -> Launch:
        """How each stage starts."""
        words = [*self.switches(), *self.arguments()]
        return Launch(RUN_STAGE, words, self.num_accelerators, self.hostfile)

    def start_arguments(self) -> list[str]:
        """These options as words of a `tristage run` command line."""
        number = [f"--num-accelerators={self.num_accelerators}"] if self.num_accelerators else []
        hostfile = [f"--hostfile={self.hostfile}"] if self.hostfile else []
        return [*self.switches(), *number, *hostfile, *self.arguments()]


@dataclass(frozen=True, kw_only=True)
class RunOptions(StartOptions):
    """A request for some of the stages."""

    first: Annotated[TrainedStage, typer.Option("--from", help="first stage", rich_help_panel=RANGE)] = "sft"
    until: Annotated[TrainedStage, typer.Option(help="last stage", rich_help_panel=RANGE)] = "ppo"

    def stages(self) -> list[Stage]:
        """Raises UserError: no stage lies between the first and the last one."""
        stages = stages_between(self.first, self.until)
        if not stages:
            raise UserError(f"--from {self.first} --until {self.until}: no stage lies between them.")
        return stages


@dataclass(frozen=True, kw_only=True)
class PlanOptions(RunOptions):
    """A request to show a plan."""

    show_config: Annotated[
        bool, typer.Option("--show-config", help="show every key with its value", rich_help_panel=EXPERIMENT)
    ] = False


@dataclass(frozen=True, kw_only=True)
class SweepOptions(StartOptions):
    """A request for several PPO runs."""

    last_word_counts: ClassVar = False

    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="seeds 0 to N-1 of each setting (default: 4)", rich_help_panel=SWEEP
        ),
    ] = None
    jobs: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="runs at a time; each gets its share of the devices",
            rich_help_panel=SWEEP,
        ),
    ] = 1
    plan: Annotated[
        bool, typer.Option("--plan", help="show what each run would do; start nothing", rich_help_panel=SWEEP)
    ] = False


@command(app, "tristage run configs/demo.yaml ppo.kl_coef=0.1", TRAIN)
def run(options: RunOptions) -> int:
    """Run the stages one after another, each under its own deepspeed launch; skip finished ones."""
    stages, launch = options.stages(), options.launch()
    request, faults = read_request(options, stages)
    plans = plan_stages(request, stages)
    check_runnable(request.config, plans, launch, faults)
    faults.refuse()
    status = run_all(request, launch, plans)
    if status:
        if status < SIGNALS:
            _report_so_far(request.run)
        return status
    judged = options.until != "ppo" or request.config.ppo.judge is not None
    if not judged and (request.run.stage("ppo") / "evaluation.jsonl").is_file():
        say(f"no judge is set (ppo.judge); people can judge: {request.collect_command('pairs')}")
    _report(request.run.path)
    if options.until != "ppo":
        say(f"next: {request.next_command(options.until)}")
    return 0


def _report_so_far(run: RunDirectory) -> None:
    """Write the report of a run that ends early, if a stage is finished. Why it ends stays its status."""
    manifests = [read_manifest(run.manifest(stage)) for stage in STAGES]
    if not any(manifest and manifest.status == "finished" for manifest in manifests):
        return
    try:
        _report(run.path)
    except UserError as error:
        say(f"no report: {error}", error=True)


@command(app, "tristage sweep --seeds 4 --jobs 2 ppo.kl_coef=0,0.05", TRAIN)
def sweep(options: SweepOptions) -> int:
    """Run PPO with several seeds and values of its settings, on one SFT policy and one reward model."""
    overrides, seeds = seeds_of(options.overrides, options.seeds)
    overrides, axes = split_axes(overrides)
    options = replace(options, overrides=overrides)
    request, faults = read_request(options, [*STAGES, "best"])
    launch = options.launch()
    runs = runs_of(request.run.path, axes, seeds)
    pool, ranks = _pool(options, launch, len(runs))
    commands, configs = zip(
        *(_run_command(options, run, request.config.name, ranks) for run in runs), strict=True
    )
    check_different(runs, configs)
    scored = any("rm" in config.upstream("ppo") for config in configs)
    shared = plan_stages(request, ["sft", "rm", "best"] if scored else ["sft"])
    of_runs = plan_runs(request, shared, runs, configs)
    for config, plans in settings_of(request.config, shared, configs, of_runs):
        check_all(config, plans, ranks, faults)
    faults.refuse()
    if options.plan:
        return _show_sweep(options, request, shared, runs, of_runs)
    status = run_sweep((request, launch, shared), list(zip(runs, commands, strict=True)), pool)
    if not any(sweep_runs(request.run.path)):
        return status  # a shared stage failed and has printed why
    from pipeline.reporting.sweep_report import write_sweep_report  # imports matplotlib

    say(f"report: {write_sweep_report(request.run.path)}")
    return status


def _show_sweep(
    options: SweepOptions,
    request: Request,
    shared: Sequence[StagePlan],
    runs: Sequence[Run],
    plans: Sequence[StagePlan],
) -> int:
    """Show what a sweep would do. Returns the exit status."""
    console = SafeConsole()
    _print_beginning(console, options, request)
    print_decisions(console, shared)
    print_runs(console, [run.path.name for run in runs], plans)
    return 2 if any(plan.action == "blocked" for plan in [*shared, *plans]) else 0


@command(app, "tristage plan configs/demo.yaml --from ppo ppo.kl_coef=0.1", TRAIN)
def plan(options: PlanOptions) -> int:
    """Show which stages would run, resume or be skipped, and why; start nothing."""
    stages, console = options.stages(), SafeConsole()
    request, faults = read_request(options, stages)
    plans = plan_stages(request, stages)
    world = _print_beginning(console, options, request)
    print_decisions(console, plans)
    remarks = check_all(request.config, plans, world, faults)
    faults.refuse()
    warnings = machine_warnings(request.config, guess_accelerators(), world, options.hostfile)
    if starting := [plan.stage for plan in plans if plan.starts]:
        print_lines(console, warnings, "yellow")
        print_batches(console, request.config, starting, world)
        print_memory(console, request, plans, rank_here(world, guess_accelerators()))
    print_lines(console, remarks)
    if options.show_config:
        print_lines(console, [dump_experiment(request.config)])
    print_decisions(console, plans, details=False)
    return 2 if any(plan.action == "blocked" for plan in plans) else 0


@command(app, "tristage status --run-dir runs/demo", SEE)
def status(options: ExperimentOptions) -> int:
    """Show which stages have run, with their results."""
    print_status(SafeConsole(), given_run(options, "tristage status"))
    return 0


@command(app, "tristage report --run-dir runs/demo", SEE)
def report(options: ExperimentOptions) -> int:
    """Write the report of a run."""
    return _report(given_run(options, "tristage report").path)


def _report(run_dir: Path) -> int:
    from pipeline.reporting.report import write_report  # imports matplotlib

    say(f"report: {write_report(run_dir)}")
    return 0


command(app, "tristage round --from runs/demo", TRAIN)(rounds.round)
command(app, "tristage init my.yaml", BEGIN)(first_steps.init)
command(app, "tristage explain ppo.kl_coef", BEGIN)(first_steps.explain)
command(app, "tristage preview configs/demo.yaml --stage sft -n 3", BEGIN)(first_steps.preview)
command(app, "tristage doctor", BEGIN)(first_steps.doctor)
command(app, "tristage export --stage ppo", USE)(uses.export)
app.add_typer(evaluating.app, name="evaluate", rich_help_panel=USE)
command(app, "tristage serve --port 8000", USE)(uses.serve)
command(app, "tristage chat --compare sft ppo", USE)(uses.chat)
app.add_typer(checking.app, name="check", rich_help_panel=SEE)
app.add_typer(collecting.app, name="collect", rich_help_panel=PEOPLE)
command(app, "tristage watch --run-dir runs/demo", SEE)(uses.watch)
command(app, "tristage compare runs/demo runs/demo-kl", SEE)(uses.compare)


def _print_beginning(console: SafeConsole, options: StartOptions, request: Request) -> int:
    """Print which experiment runs where, and for what it is made; returns the number of ranks."""
    found = guess_accelerators()
    world = Launch(RUN_STAGE, [], options.num_accelerators or max(1, found), options.hostfile).world()
    machine = machine_in_words(found, world, options.hostfile)
    hardware = made_for(options.file)
    lines = [f"this machine {machine}", *([f"hardware, by its YAML: {hardware}"] if hardware else [])]
    print_heading(console, request, lines)
    return world


def _run_command(options: SweepOptions, run: Run, name: str, ranks: int) -> tuple[Sequence[str], Experiment]:
    """The command of one run of the sweep of experiment `name`, and what it trains.

    Raises:
        UserError: the run's configuration is wrong, or its batches do not divide by `ranks`.
    """
    own_name = f"{name}-{run.name}"[:MAX_NAME].rstrip("-.")  # the run directory tells long ones apart
    given = [word for word in options.overrides if not word.startswith("name=")]
    overrides = [*given, *run.overrides, f"name={own_name}"]
    run_options = replace(options, overrides=overrides, run_dir=run.path)
    config, _ = run_options.experiment()
    if not config.tracking.group:
        run_options = replace(run_options, overrides=[*overrides, f"tracking.group={name}"])
    check_batches(config, "ppo", ranks)
    return [*TRISTAGE, "run", "--from", "ppo", *run_options.start_arguments()], config


def _pool(options: SweepOptions, launch: Launch, runs: int) -> tuple[WorkerPool, int]:
    """The workers that train the runs of a sweep, and the number of ranks of each run.

    Raises:
        UserError: this machine cannot give so many runs at a time what they need.
    """
    jobs, per_run = min(options.jobs, runs), options.num_accelerators
    if jobs == 1:
        return WorkerPool(), launch.world()
    if options.hostfile:
        raise UserError("--jobs: runs at a time share one machine; leave --hostfile or --jobs out.")
    pool = WorkerPool(jobs, visible_devices(), per_run or 1)
    if per_run and per_run > pool.share > 0:
        raise UserError(
            f"--num-accelerators: {per_run}, but of {jobs} runs at a time each has {pool.share}. "
            f"Set it to {pool.share} or less, or lower --jobs."
        )
    return pool, per_run or pool.share or 1
