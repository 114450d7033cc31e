"""Run one stage: the target of `deepspeed`, `torchrun` or plain `python`, from any working directory.

deepspeed launch/run_stage.py --stage sft [--config FILE] [--run-dir DIR] [key=value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

# Launchers put this file's folder first on the path; the packages lie in its parent.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.processes import logs, parent_watch  # noqa: E402

logs.silence()
parent_watch.follow_launcher()

import argparse  # noqa: E402

from configs.errors import UserError  # noqa: E402
from configs.schema import STAGES  # noqa: E402
from launch.arguments import add_experiment_arguments, experiment, repeat  # noqa: E402
from pipeline.planning.request import Request  # noqa: E402
from pipeline.stage_process import run_stage  # noqa: E402
from pipeline.state.run_directory import RunDirectory  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="run_stage.py", description="Run one stage of an experiment.")
    parser.add_argument("--stage", required=True, choices=(*STAGES, "best"))
    add_experiment_arguments(parser)
    parser.add_argument("--force", action="store_true", help="run a finished stage again")
    parser.add_argument("--fresh", action="store_true", help="start an interrupted stage over")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # by launchers
    parser.add_argument("--no-hint", action="store_true", help=argparse.SUPPRESS)  # by `tristage run`
    arguments = parser.parse_intermixed_args()
    try:
        config, run_dir = experiment(arguments)
        request = Request(config, RunDirectory(run_dir), repeat(arguments), arguments.force, arguments.fresh)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run_stage(request, arguments.stage, hint=not arguments.no_hint)


if __name__ == "__main__":
    sys.exit(main())
