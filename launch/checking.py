"""The command `tristage check rm`: train the reward model again on changed rankings, and compare."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from configs.load import dump_experiment, load_experiment
from configs.schema import STAGES, Data, Experiment, Rm, Source
from data.storage.files import write_text
from launch.arguments import Commands, ExperimentOptions, command
from launch.deepspeed_command import Launch
from launch.given_run import check_words
from launch.stage_sequence import run_all
from pipeline.planning.plan import plan_stages
from pipeline.planning.request import RUN_STAGE, Request
from pipeline.processes.streams import say
from pipeline.state.manifest import read_manifest
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.console import SafeConsole
from pipeline.terminal.summary import metric_with_interval

FOLDER = "check"  # of the run
# The settings of a reward model's training. The rankings are there, and nothing is tracked.
TRAINED_WITH = (
    *("adapter", "base", "deepspeed", "seed", "data.rm", "rm.rankings.labeller"),
    *(f"data.{key}" for key in Data.model_fields if key not in (*STAGES, "shares")),
    *(f"rm.{field.alias or key}" for key, field in Rm.model_fields.items() if key != "rankings"),
)

app = typer.Typer(
    cls=Commands,
    help="Find out whether a stage learns what it should.",
    rich_markup_mode="rich",
    epilog="Example: tristage check rm --run-dir runs/demo",
)


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ExperimentOptions):
    """Which run, and how much of it."""

    rows: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="the most training prompts (default: all)")
    ] = None
    curve: Annotated[
        bool, typer.Option("--curve", help="also train on a quarter and on a half of the rankings")
    ] = False


@command(app, "tristage check rm --run-dir runs/demo --rows 400 --curve")
def rm(options: CheckOptions) -> int:
    """Train the reward model on shuffled and on negated rankings; measure it on the true held-out ones."""
    from apps.check_rm import Variant, rankings_of, some_prompts, variants, verdict, write_variant
    from apps.trained_run import open_run  # imports torch

    config, run = options.experiment_of_run()
    check_words(options.overrides, run, "tristage check rm", TRAINED_WITH)
    open_run(run.path).adapter("sft")  # refuses a run whose policy is not there, before anything is written
    train, held_out = rankings_of(run, config, say)
    train = some_prompts(train, options.rows, config.seed)
    rows: list[tuple[Variant, dict[str, float]]] = []
    for variant in variants(curve=options.curve):
        folder = run.path / FOLDER / _slug(variant.name)
        sources = write_variant(folder, variant, train, held_out, config.seed)
        say(f"check: {variant.name} rankings, in {folder}")
        status = _train(folder, _changed(config, sources), run)
        if status:
            return status
        manifest = read_manifest(RunDirectory(folder).manifest("rm"))
        assert manifest is not None
        rows.append((variant, manifest.metrics))
    table = Table(box=None, pad_edge=False)
    for heading in ("training rankings", "held-out accuracy", "should be", "is it?"):
        table.add_column(heading)
    found: dict[str, Any] = {}
    for variant, metrics in rows:
        judged = verdict(variant, metrics["accuracy_low"], metrics["accuracy_high"])
        shown = metric_with_interval(metrics, "accuracy")
        table.add_row(*map(Text, (variant.name, shown, variant.expected, judged)))
        ends = ("", "_low", "_high", "_n")
        found[variant.name] = {f"accuracy{end}": metrics[f"accuracy{end}"] for end in ends}
        found[variant.name]["verdict"] = judged
    SafeConsole(highlight=False).print(table)
    file = run.path / FOLDER / "rm.json"
    write_text(file, json.dumps(found, indent=1) + "\n")
    say(f"check: {file}")
    return 0


def _changed(config: Experiment, rankings: list[Source]) -> Experiment:
    """The experiment with those rankings, and no W&B."""
    return config.model_copy(
        update={
            # They are split already. With `keep_apart`, sources that stages share would be split again.
            "data": config.data.model_copy(update={"rm": tuple(rankings), "keep_apart": False}),
            "rm": config.rm.model_copy(
                update={
                    "rankings": config.rm.rankings.model_copy(
                        update={"labeller": "file", "earlier": (), "merge": "each"}
                    )
                }
            ),
            "tracking": config.tracking.model_copy(update={"wandb": "disabled"}),
        }
    )


def _train(folder: Path, config: Experiment, run: RunDirectory) -> int:
    """Train stage rm in `folder`, on a copy of the run's SFT policy. Returns the exit status."""
    sft, manifest = folder / "sft", folder / "sft" / "manifest.json"
    if not manifest.is_file() or manifest.read_bytes() != run.manifest("sft").read_bytes():
        shutil.rmtree(sft, ignore_errors=True)
        shutil.copytree(run.adapter("sft"), sft / "adapter")
        shutil.copy(run.manifest("sft"), manifest)
    file = folder / "experiment.yaml"
    write_text(file, dump_experiment(config))
    words = ["--config", str(file), "--run-dir", str(folder)]
    request = Request(load_experiment(file), RunDirectory(folder), " ".join(words), caller="tristage")
    return run_all(request, Launch(RUN_STAGE, words), plan_stages(request, ["rm"]))


def _slug(name: str) -> str:
    return name.replace(" %", "-percent")
