"""The command `tristage round`: the run directory of the next round."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.arguments import readable
from pipeline.planning.next_round import experiment_of, make_round, rankings_left_out
from pipeline.processes.streams import say
from pipeline.state.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class RoundOptions:
    """A finished run, and what the next round changes."""

    overrides: Annotated[
        list[str],
        typer.Argument(
            metavar="key=value",
            show_default=False,
            help="overrides of this round, e.g. ppo.kl_coef=0.1",
        ),
    ] = field(default_factory=list)
    previous: Annotated[
        Path, typer.Option("--from", metavar="RUN", help="the finished run", show_default=False)
    ]
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="the new run directory (default: NAME-round-N beside RUN)"),
    ] = None
    stage: Annotated[
        Literal["sft", "ppo"],
        typer.Option(
            help="whose policy the round starts from: ppo collects rankings of it, retrains the reward model "
            "and runs PPO again; sft trains it on demonstrations"
        ),
    ] = "ppo"


def round(options: RoundOptions) -> int:
    """Make the run directory of the next round from a finished run; train nothing."""
    from pipeline.planning.round_prompts import prompts_trained_on  # imports datasets

    target = readable(options.to) if options.to else None
    previous = RunDirectory(readable(options.previous))
    run, config = make_round(previous, options.stage, options.overrides, target)
    say(f"wrote {run.path}: {config.lineage.words}")
    if options.stage == "ppo" and (note := rankings_left_out(experiment_of(previous), config)):
        say(f"note: {note}")
    if note := prompts_trained_on(run, config):
        say(f"note: {note}")
    words = ["tristage", "run", "--config", str(run.config_file), "--run-dir", str(run.path)]
    words += ["--until", "sft"] if options.stage == "sft" else []
    say(f"next: {shlex.join(words)}")
    return 0
