"""What `tristage plan` and `tristage status` print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.errors import UserError
from configs.load import dump_experiment
from configs.schema import ALL_STAGES, STAGES, Experiment, Stage
from pipeline.planning.batches import Batches, batches, check_batches
from pipeline.planning.plan import StagePlan
from pipeline.planning.request import Request
from pipeline.state.manifest import Manifest, read_manifest
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.format import show_seconds
from pipeline.terminal.summary import key_metrics

COLORS = {"run": "green", "resume": "yellow", "skip": "dim", "blocked": "red"}


def print_plan(console: Console, request: Request, plans: Sequence[StagePlan], world: int) -> bool:
    """Print what each stage would do, its batch sizes and the resolved configuration.

    Returns:
        False if a stage is blocked or its batches cannot be divided among the ranks.
    """
    console.print(Text(f"experiment {request.config.name}, in {request.run.path}"), soft_wrap=True)
    console.print()
    for plan in plans:
        _print_stage(console, plan)
    console.print()
    problems = _print_batches(console, request.config, [plan.stage for plan in plans], world)
    console.print()
    console.print(Text(dump_experiment(request.config)), soft_wrap=True)
    return not problems and all(plan.action != "blocked" for plan in plans)


def _print_stage(console: Console, plan: StagePlan) -> None:
    line = Text(f"{plan.stage:<5}")
    line.append(f"{plan.action:<9}", style=COLORS[plan.action])
    line.append(plan.why)
    console.print(line, soft_wrap=True)
    details = [plan.remedy, *(f"note: {note}" for note in plan.notes)]
    if plan.set_aside:
        details.append(f"the old folder is kept as {plan.set_aside}")
    for detail in filter(None, details):
        console.print(Text(" " * 14 + detail), soft_wrap=True)


def _print_batches(console: Console, config: Experiment, stages: Sequence[Stage], world: int) -> list[str]:
    """Print a table of batch sizes. Returns the errors of batches that cannot be divided."""
    ranks = "1 rank" if world == 1 else f"{world} ranks"
    table = Table(title=f"per optimizer step, on {ranks}", title_justify="left", box=None, pad_edge=False)
    for heading in ("stage", "steps", "sequences", "micro-batches per rank", "tokens in one, at most"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    notes, problems = [], []
    for stage in stages:
        try:
            check_batches(config, stage, world)
        except UserError as error:
            problems.append(str(error))
            continue
        sizes = batches(config, stage, world)
        table.add_row(*_row(sizes))
        notes += [f"{stage}: {sizes.note}"] if sizes.note else []
    console.print(table)
    for line in notes:
        console.print(Text(line), soft_wrap=True)
    for line in problems:
        console.print(Text(line, style="red"), soft_wrap=True)
    return problems


def _row(sizes: Batches) -> list[str]:
    steps = "not known yet" if sizes.steps is None else f"{'about ' if sizes.about else ''}{sizes.steps}"
    passes = f"{sizes.micro_batches} of {sizes.micro_batch}"
    return [sizes.stage, steps, str(sizes.sequences), passes, str(sizes.tokens)]


def print_status(console: Console, run: RunDirectory) -> None:
    """Print the status and the results of each stage in a run directory."""
    console.print(Text(str(run.path)), soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    for stage in ALL_STAGES:
        manifest = read_manifest(run.manifest(stage))
        if manifest is None:
            if stage in STAGES:
                table.add_row(stage, "not run", "")
            continue
        shown = key_metrics(manifest) or {"time": show_seconds(manifest.wall_seconds)}
        if manifest.error:
            shown["error"] = manifest.error
        for fault in manifest.record_faults(run.stage(stage)):
            shown["damaged"] = fault
        lines = Text("\n").join(Text(f"{label}: {value}") for label, value in shown.items())
        table.add_row(stage, Text(_state(run, manifest)), lines)
    console.print(table)


def _state(run: RunDirectory, manifest: Manifest) -> str:
    if manifest.status == "running":
        return f"running ({manifest.process})" if run.is_locked(manifest.stage) else "killed"
    when = f" {manifest.finished:%Y-%m-%d %H:%M} UTC" if manifest.finished else ""
    return f"{manifest.status}{when}"
