"""What `tristage plan` and `tristage status` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import ALL_STAGES, STAGES, Experiment, Stage
from data.people.round import rounds
from pipeline.planning.batches import Batches, batches
from pipeline.planning.plan import Action, StagePlan
from pipeline.planning.request import Request
from pipeline.state.manifest import Manifest, read_manifest
from pipeline.state.run_directory import RunDirectory
from pipeline.state.stage_state import state_of
from pipeline.terminal.format import show_seconds
from pipeline.terminal.summary import figures_of_few_steps, key_metrics

COLORS: dict[Action, str] = {
    "run": "green",
    "resume": "yellow",
    "skip": "dim",
    "wait": "cyan",
    "blocked": "red",
}

MOST_RUNS = 24  # of a sweep that are shown


def print_heading(console: Console, request: Request, lines: Sequence[str]) -> None:
    """Print which experiment goes where, and more `lines`."""
    print_lines(console, [f"experiment {request.config.name}, in {request.run.path}", *lines])


def print_decisions(console: Console, plans: Sequence[StagePlan], *, details: bool = True) -> None:
    """Print what each stage would do, and why; with `details`, remedies and notes, too."""
    for plan in plans:
        line = Text(f"{plan.stage:<5}")
        line.append(f"{plan.action:<9}", style=COLORS[plan.action])
        line.append(plan.why)
        console.print(line, soft_wrap=True)
        for detail in _details(plan) if details else ():
            console.print(Text(" " * 14 + detail), soft_wrap=True)
    console.print()


def _details(plan: StagePlan) -> list[str]:
    aside = f"the old folder is kept as {plan.set_aside}" if plan.set_aside else ""
    return list(filter(None, [plan.remedy, *(f"note: {note}" for note in plan.notes), aside]))


def print_batches(console: Console, config: Experiment, stages: Sequence[Stage], world: int) -> None:
    """Print a table of batch sizes, which `check_batches` must have passed."""
    ranks = "1 rank" if world == 1 else f"{world} ranks"
    table = Table(title=f"per optimizer step, on {ranks}", title_justify="left", box=None, pad_edge=False)
    for heading in ("stage", "steps", "sequences", "micro-batches per rank", "tokens in one, at most"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    all_sizes = [batches(config, stage, world) for stage in stages]
    for sizes in all_sizes:
        table.add_row(*_row(sizes))
    console.print(table)
    for sizes in all_sizes:
        if sizes.note:
            console.print(Text(f"{sizes.stage}: {sizes.note}"), soft_wrap=True)
    for line in _few_steps(config, all_sizes):
        console.print(Text(line, style="yellow"), soft_wrap=True)
    console.print()


def _few_steps(config: Experiment, all_sizes: Sequence[Batches]) -> Iterator[str]:
    """A warning for each stage whose result would show little, as its report would say."""
    for sizes in all_sizes:
        stage = sizes.stage
        steps = config.ppo.iterations if stage == "ppo" else sizes.steps
        if steps is not None and (few := figures_of_few_steps(stage, steps)):
            less = f"Give it more data, raise {few['key']}, or lower {stage}.batch_size."
            remedy = f"Raise {few['key']}." if stage == "ppo" else less
            yield (
                f"warning: stage {stage} will make about {few['steps']} {few['kind']}: its result will show "
                f"little. {remedy}"
            )


def print_runs(console: Console, names: Sequence[str], plans: Sequence[StagePlan]) -> None:
    """Print the number of runs of a sweep by action, and what the first MOST_RUNS would do."""
    counts = Counter(plan.action for plan in plans)
    how_many = ", ".join(f"{action} {counts[action]}" for action in COLORS if counts[action])
    console.print(Text(f"{len(plans)} runs of ppo: {how_many}"), soft_wrap=True)
    width = max(map(len, names[:MOST_RUNS]), default=0) + 2
    for name, plan in zip(names[:MOST_RUNS], plans, strict=False):
        line = Text(name.ljust(width))
        line.append(f"{plan.action:<9}", style=COLORS[plan.action])
        line.append(f"{plan.why}. {plan.remedy}" if plan.remedy else plan.why)
        console.print(line, soft_wrap=True)
    if len(names) > MOST_RUNS:
        console.print(Text(f"and {len(names) - MOST_RUNS} more"))


def print_lines(console: Console, lines: Iterable[str], style: str = "") -> None:
    """Print each line, then an empty one; nothing without lines."""
    shown = list(lines)
    for line in shown:
        console.print(Text(line, style=style), soft_wrap=True)
    if shown:
        console.print()


def _row(sizes: Batches) -> list[str]:
    steps = "not known yet" if sizes.steps is None else f"{'about ' if sizes.about else ''}{sizes.steps}"
    passes = f"{sizes.micro_batches} of {sizes.micro_batch}"
    return [sizes.stage, steps, str(sizes.sequences), passes, str(sizes.tokens)]


def print_status(console: Console, run: RunDirectory) -> None:
    """Print the status and the results of each stage in a run directory.

    Raises:
        UserError: no stage has run there, or a manifest cannot be read.
    """
    if not any(read_manifest(run.manifest(stage)) for stage in ALL_STAGES):
        raise UserError(f"{run.path}: no stage has run there. Run one first, or give another --run-dir.")
    console.print(Text(str(run.path)), soft_wrap=True)
    if words := _lineage(run):
        console.print(Text(words), soft_wrap=True)
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
    if words := _swept(run.path / "sweep"):
        console.print(Text(words), soft_wrap=True)
    for content in rounds(run.path):
        done = len(content.tasks) - len(content.unlabelled)
        line = f"people: {content.folder.name}, {done} of {len(content.tasks)} tasks done"
        console.print(Text(line), soft_wrap=True)


def _swept(folder: Path) -> str:
    """How many runs of PPO a sweep has made, by their state; "" without a sweep."""
    runs = [RunDirectory(path) for path in folder.iterdir()] if folder.is_dir() else []
    states: Counter[str] = Counter()
    for run in runs:
        with suppress(UserError):  # a damaged manifest: `status` of that run says how
            if manifest := read_manifest(run.manifest("ppo")):
                states[state_of(manifest, run.is_locked)] += 1
    counts = ", ".join(f"{state} {number}" for state, number in states.most_common())
    return f"sweep: runs of ppo in {folder}: {counts}" if counts else ""


def _lineage(run: RunDirectory) -> str | None:
    """Which round the run is; None for a first one, or if its config cannot be read."""
    with suppress(UserError):
        return load_experiment(run.config_file).lineage.words if run.config_file.is_file() else None
    return None


def _state(run: RunDirectory, manifest: Manifest) -> str:
    state = state_of(manifest, run.is_locked)
    if state == "running":
        return f"running ({manifest.process})"
    return f"{state} {manifest.finished:%Y-%m-%d %H:%M} UTC" if manifest.finished else state
