"""The console script `tristage`: run, sweep, plan, status and report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from configs.errors import UserError
from configs.schema import STAGES, Stage
from launch.arguments import ROOT, add_experiment_arguments, experiment, repeat, run_directory, words
from launch.deepspeed_command import Launch, guess_accelerators, visible_devices
from launch.stage_sequence import run_all
from launch.worker_pool import WorkerPool
from pipeline.planning.batches import check_batches
from pipeline.planning.plan import plan_stages, stages_between
from pipeline.planning.preflight import check_files
from pipeline.planning.request import Request
from pipeline.processes import logs
from pipeline.state.results import found_runs
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.show import print_plan, print_status

RUN_STAGE = ROOT / "launch" / "run_stage.py"
TRISTAGE = [sys.executable, "-P", "-m", "launch.cli"]  # -P: a folder `launch` where it is called is not ours


def main() -> int:
    """Returns the exit status: 0 done, 2 the user has to mend something, else that of the failing stage."""
    logs.silence()
    arguments = _parser().parse_intermixed_args()
    try:
        status: int = COMMANDS[arguments.command](arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


def run(arguments: argparse.Namespace) -> int:
    request, launch = _job(arguments)
    plans = plan_stages(request, _stages(arguments))
    check_files(request.config, plans)
    status = run_all(request, launch, plans)
    if status == 0 and arguments.until == "ppo":
        return report(arguments)
    return status


def sweep(arguments: argparse.Namespace) -> int:
    from launch import sweep as sweeping

    arguments.overrides, axes = sweeping.split_axes(arguments.overrides)
    request, launch = _job(arguments)
    config = request.config
    runs = sweeping.runs_of(request.run.path, axes, arguments.seeds)
    pool, ranks = _pool(arguments, launch, len(runs))
    commands = []
    for run in runs:  # what is wrong with one is found before anything starts
        own = [*arguments.overrides, *run.overrides, f"name={config.name}-{run.name}"]
        own += [] if config.tracking.group else [f"tracking.group={config.name}"]
        asked = argparse.Namespace(**vars(arguments) | {"overrides": own, "run_dir": run.path})
        check_batches(experiment(asked)[0], "ppo", ranks)
        commands.append([*TRISTAGE, "run", "--from", "ppo", *_launching(asked), *words(asked)])
    plans = plan_stages(request, [*STAGES, "best"])
    check_files(config, plans)
    shared = [plan for plan in plans if plan.stage != "ppo"]
    status = sweeping.sweep((request, launch, shared), list(zip(runs, commands, strict=True)), pool)
    if not any(found_runs(request.run.path)):
        return status  # a shared stage has said what is wrong
    from pipeline.reporting.sweep_report import write_sweep_report  # imports matplotlib

    print(f"report: {write_sweep_report(request.run.path)}")
    return status


def plan(arguments: argparse.Namespace) -> int:
    request = _request(arguments)
    world = Launch(
        RUN_STAGE, [], arguments.num_accelerators or max(1, guess_accelerators()), arguments.hostfile
    ).world()
    plans = plan_stages(request, _stages(arguments))
    good = print_plan(Console(), request, plans, world)
    check_files(request.config, plans)
    return 0 if good else 2


def status(arguments: argparse.Namespace) -> int:
    print_status(Console(), RunDirectory(run_directory(arguments)))
    return 0


def report(arguments: argparse.Namespace) -> int:
    from pipeline.reporting.report import write_report  # imports matplotlib

    print(f"report: {write_report(run_directory(arguments))}")
    return 0


COMMANDS = {"run": run, "sweep": sweep, "plan": plan, "status": status, "report": report}
HELP = {
    "run": "run every stage, each under its own deepspeed launch; finished ones are skipped",
    "sweep": "run PPO with several seeds, and values such as ppo.kl_coef=0,0.05, on one SFT and reward model",
    "plan": "show what would run, resume or be skipped, and why; nothing is started",
    "status": "show what has run, and with which result",
    "report": "write the report of a run",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tristage", description="RLHF in three stages over one quantized base."
    )
    parser.add_argument(
        "command", choices=COMMANDS, help="; ".join(f"{name}: {text}" for name, text in HELP.items())
    )
    add_experiment_arguments(parser)
    group = parser.add_argument_group("sweep")
    group.add_argument(
        "--seeds", type=_count, default=4, metavar="N", help="runs of each setting (default: 4)"
    )
    group.add_argument(
        "--jobs",
        type=_count,
        default=1,
        metavar="N",
        help="runs at a time, each on its share of the machine (default: 1)",
    )
    group = parser.add_argument_group("run, sweep and plan")
    group.add_argument(
        "--from", dest="first", choices=STAGES, default="sft", help="first stage (default: sft)"
    )
    group.add_argument("--until", choices=STAGES, default="ppo", help="last stage (default: ppo)")
    group.add_argument(
        "--num-accelerators",
        type=_count,
        metavar="N",
        help="per machine, or run of a sweep (default: all; 1 on CPU)",
    )
    group.add_argument("--hostfile", type=Path, metavar="FILE", help="machines of a multi-node run")
    group.add_argument("--force", action="store_true", help="run finished stages again")
    group.add_argument("--fresh", action="store_true", help="start interrupted stages over")
    return parser


def _job(arguments: argparse.Namespace) -> tuple[Request, Launch]:
    """What is asked for, and how its stages are started."""
    words_of_stage = [*_switches(arguments), *words(arguments)]
    launch = Launch(RUN_STAGE, words_of_stage, arguments.num_accelerators, arguments.hostfile)
    return _request(arguments), launch


def _pool(arguments: argparse.Namespace, launch: Launch, runs: int) -> tuple[WorkerPool, int]:
    """Who trains the runs of a sweep, and the number of ranks of each.

    Raises:
        UserError: so many at a time cannot have what is asked for.
    """
    jobs, asked = min(arguments.jobs, runs), arguments.num_accelerators
    if jobs == 1:
        return WorkerPool(), launch.world()
    if arguments.hostfile:
        raise UserError("--jobs: runs at a time share one machine; leave --hostfile or --jobs out.")
    pool = WorkerPool(jobs, visible_devices(), asked or 1)
    if asked and asked > pool.share > 0:
        raise UserError(
            f"--num-accelerators: {asked}, but of {jobs} runs at a time each has {pool.share}. "
            f"Ask for {pool.share} at most, or for fewer --jobs."
        )
    return pool, asked or pool.share or 1


def _launching(arguments: argparse.Namespace) -> list[str]:
    """How a run is started, to be passed on to `tristage run`."""
    options = {"--num-accelerators": arguments.num_accelerators, "--hostfile": arguments.hostfile}
    return [
        *_switches(arguments),
        *(f"{name}={value}" for name, value in options.items() if value is not None),
    ]


def _switches(arguments: argparse.Namespace) -> list[str]:
    return [switch for switch in ("--force", "--fresh") if vars(arguments)[switch[2:]]]


def _request(arguments: argparse.Namespace) -> Request:
    config, run_dir = experiment(arguments)
    return Request(config, RunDirectory(run_dir), repeat(arguments), arguments.force, arguments.fresh)


def _stages(arguments: argparse.Namespace) -> list[Stage]:
    stages = stages_between(arguments.first, arguments.until)
    if not stages:
        raise UserError(f"--from {arguments.first} --until {arguments.until}: no stage lies between them.")
    return stages


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
