"""Run one stage: the target of `deepspeed`, `torchrun` or plain `python`, from any working directory.

deepspeed launch/run_stage.py --stage sft [--config FILE] [--run-dir DIR] [key=value ...]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

# Launchers put this file's folder first on the path; the packages lie in its parent.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.processes import interruption  # noqa: E402

interruption.end_imports_in_one_line()

from pipeline.processes import logs, parent_watch, streams  # noqa: E402

logs.silence()
streams.protect_streams()
parent_watch.follow_launcher()

import typer  # noqa: E402

from configs.schema import Stage  # noqa: E402
from launch.arguments import RequestOptions, command, exit_status  # noqa: E402
from pipeline.stage_process import run_stage  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@dataclass(frozen=True, kw_only=True)
class StageOptions(RequestOptions):
    """A request for one stage, and what launchers add to the command line."""

    stage: Annotated[Stage, typer.Option(help="stage to run", rich_help_panel="Experiment")]
    local_rank: Annotated[int | None, typer.Option("--local_rank", "--local-rank", hidden=True)] = None
    caller: Annotated[str, typer.Option(hidden=True)] = ""  # `tristage run` passes its own name


@command(app, "deepspeed launch/run_stage.py --stage rm --config configs/demo.yaml rm.epochs=2")
def stage(options: StageOptions) -> int:
    """Run one stage of an experiment, or resume it."""
    return run_stage(options.request(options.caller or launcher_of(os.environ)), options.stage)


def launcher_of(environment: Mapping[str, str]) -> str:
    """The launcher that started this process, as the user called it, from the variables that it sets."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return f"torchrun --nproc-per-node {environment['LOCAL_WORLD_SIZE']}"
    return "deepspeed" if "RANK" in environment else "python"


def main() -> int:
    """Returns the exit status; see `run_stage`."""
    return exit_status(app, "run_stage.py")


if __name__ == "__main__":
    sys.exit(main())
