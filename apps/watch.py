"""`tristage watch`: a live view of a run: its stages, the curves that matter, the last samples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from configs.safe_text import visible
from configs.schema import STAGES, Stage
from pipeline.planning.batches import batches
from pipeline.state import stage_state
from pipeline.state.manifest import Manifest, now
from pipeline.state.results import Results, read_results
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.format import SHOWN, show_number, show_seconds

SECONDS = 2.0  # between two looks
PATIENCE = 60.0  # seconds in which no stage runs: between two of them, the next one loads its libraries
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # letters of a curve
SAMPLES = 3
LETTERS = 160  # of a sample
HELD_OUT = {"eval/loss": "held-out loss", "eval/accuracy": "held-out accuracy", "eval/gold": "gold score"}
COLOURS = {"finished": "green", "running": "yellow", "failed": "red", "killed": "red"}


def watch(console: Console, run: RunDirectory, *, once: bool) -> None:
    """Show the run until it has finished or failed, until no stage has run for a while, or until Ctrl-C.

    Args:
        once: show it once and return, as for a pipe.

    Raises:
        UserError: `run` is no run directory, or a file in it is damaged.
    """
    if once or not console.is_terminal:
        console.print(view(read_results(run.path)))
        return
    idle = 0.0
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            results = read_results(run.path)
            live.update(view(results), refresh=True)
            states = [state_of(results, stage) for stage in STAGES]
            idle = 0.0 if "running" in states else idle + SECONDS
            if _has_ended(states) or idle > PATIENCE:
                return
            time.sleep(SECONDS)


def _has_ended(states: Sequence[str]) -> bool:
    """Whether nothing runs, and the last stage has finished or one has failed.

    While a finished run is made again, later stages still show how they ended before.
    """
    has_failed = "failed" in states or "killed" in states
    return "running" not in states and (has_failed or states[-1] == "finished")


def view(results: Results) -> RenderableType:
    """What is shown of a run."""
    stage = current_stage(results)
    parts: list[RenderableType] = [Text(str(results.run.path), style="bold"), _stages(results)]
    if stage:
        parts += [Text(), _curves(results, stage)]
        if samples := list(_samples(results)):
            parts.append(Panel(Text("\n").join(samples), title="last samples", title_align="left"))
    return Group(*parts)


def state_of(results: Results, stage: Stage) -> str:
    """`not run`, `running`, `finished`, `failed`, `interrupted`, or `killed`."""
    manifest = results.manifests.get(stage)
    return stage_state.state_of(manifest, results.run.is_locked) if manifest else "not run"


def current_stage(results: Results) -> Stage | None:
    """The stage that runs, or else the last one that has begun."""
    begun = [stage for stage in STAGES if stage in results.manifests]
    running = [stage for stage in begun if state_of(results, stage) == "running"]
    return next(reversed(running or begun), None)


def _stages(results: Results) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for stage in STAGES:
        state = state_of(results, stage)
        style = COLOURS.get(state, "dim")
        table.add_row(stage, Text(state, style=style), progress_of(results, stage))
    return table


def progress_of(results: Results, stage: Stage) -> str:
    """`step 12 of 75, 2:31, about 13:20 left`, as far as it is known."""
    manifest = results.manifests.get(stage)
    if manifest is None:
        return ""
    if manifest.status == "finished":
        return show_seconds(manifest.wall_seconds)
    steps = [row["step"] for row in results.metrics[stage]]
    done, total = max(steps, default=0), total_steps(results, manifest)
    if not total:
        return f"step {done}"
    parts = [f"step {done} of {total}"]
    if state_of(results, stage) == "running":
        elapsed = (now() - manifest.attempt_started).total_seconds()
        parts.append(show_seconds(elapsed))
        if done and manifest.started == manifest.attempt_started:
            parts.append(f"about {show_seconds(elapsed / done * max(0, total - done))} left")
    return ", ".join(parts)


def total_steps(results: Results, manifest: Manifest) -> int | None:
    """Steps of the stage (PPO: iterations); None if they are not known yet."""
    if manifest.stage == "ppo":
        return results.experiment.ppo.iterations
    return batches(results.experiment, manifest.stage, manifest.world_size).steps


def _curves(results: Results, stage: Stage) -> Table:
    """Each metric of the progress bar, and the held-out ones: a curve, its first and its last value."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, label in (SHOWN | HELD_OUT).items():
        _, values = results.curve(stage, name)
        if values:
            first_to_last = f"{show_number(values[0])} → {show_number(values[-1])}"
            table.add_row(label, Text(sparkline(values), style="cyan"), first_to_last)
    return table


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """A curve in letters: the values in `width` groups at most, each as the mean of its group."""
    finite = [value for value in values if value - value == 0]
    if not finite:
        return ""
    size = -(-len(finite) // width)
    means = [sum(group) / len(group) for group in (finite[i : i + size] for i in range(0, len(finite), size))]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def _samples(results: Results) -> Iterator[Text]:
    """The last samples of PPO, with their scores."""
    for row in results.samples[-SAMPLES:]:
        prompt, response = (visible(str(row[key]))[:LETTERS] for key in ("prompt", "response"))
        line = Text.assemble((prompt, "dim"), f" {response}")
        if row.get("score") is not None:
            line.append(f"  [{show_number(row['score'])}]", style="cyan")
        yield line
