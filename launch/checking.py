"""The command `tristage check rm`: train the reward model again on changed rankings, and compare."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from configs.identity import stage_hash
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
from pipeline.state.reward_check import (
    ALL,
    CURVE,
    FILE,
    FOLDER,
    UNSOUND,
    Checked,
    Interval,
    RewardCheck,
)
from pipeline.state.rows import ScoredRankingRow, read_rows
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.console import SafeConsole
from pipeline.terminal.summary import metric_with_interval

if TYPE_CHECKING:
    from apps.check_rm import Variant

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
    from apps.check_rm import prompts_in, rankings_of, some_prompts, variants, write_variant
    from apps.trained_run import open_run  # imports torch

    config, run = options.experiment_of_run()
    check_words(options.overrides, run, "tristage check rm", TRAINED_WITH)
    open_run(run.path).adapter("sft")  # refuses a run whose policy is not there, before anything is written
    train, held_out = rankings_of(run, config, say)
    prompts = prompts_in(train)
    train = some_prompts(train, options.rows, config.seed)
    found: dict[Variant, dict[str, float]] = {}
    for variant in variants(curve=options.curve):
        folder = run.path / FOLDER / _slug(variant.name)
        sources = write_variant(folder, variant, train, held_out, config.seed)
        say(f"check: {variant.name} rankings, in {folder}")
        status = _train(folder, _changed(config, sources), run)
        if status:
            return status
        manifest = read_manifest(RunDirectory(folder).manifest("rm"))
        assert manifest is not None
        found[variant] = manifest.metrics
    checked = RewardCheck(
        reward_model=_checked_model(config, run),
        prompts=prompts_in(train),
        prompts_of_run=prompts,
        variants={variant.name: _judged(variant, metrics) for variant, metrics in found.items()},
        gain=_gain(run) if options.curve else None,
    )
    _print_table(found, checked)
    file = run.path / FOLDER / FILE
    write_text(file, checked.model_dump_json(indent=1) + "\n")
    say(f"check: {file}; tristage report says what it means")
    return int(any(one.verdict.startswith(UNSOUND) for one in checked.variants.values()))


def _checked_model(config: Experiment, run: RunDirectory) -> str:
    """SHA-256 of the run's reward model; "" if it is not there, or was trained with other settings."""
    manifest = read_manifest(run.manifest("rm"))
    if manifest is None or manifest.output is None or manifest.config_hash != stage_hash(config, "rm"):
        return ""
    return manifest.output.sha256


def _judged(variant: Variant, metrics: Mapping[str, float]) -> Checked:
    from apps.check_rm import verdict
    from stages.maths.statistics import figure_of  # imports torch

    accuracy = figure_of(metrics, "accuracy")
    return Checked(accuracy=Interval(**accuracy), verdict=verdict(variant, accuracy))


def _gain(run: RunDirectory) -> Interval | None:
    """The gain of accuracy from a half of the rankings to all of them."""
    from apps.check_rm import gain_of

    half, whole = (
        read_rows(run.path / FOLDER / _slug(name) / "rm" / "evaluation.jsonl", ScoredRankingRow)
        for name in (CURVE[1], ALL)
    )
    gain = gain_of(whole, half)
    return Interval(**gain) if gain else None


def _print_table(found: Mapping[Variant, Mapping[str, float]], checked: RewardCheck) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("training rankings", "held-out accuracy", "should be", "is it?"):
        table.add_column(heading)
    for variant, metrics in found.items():
        shown, judged = metric_with_interval(metrics, "accuracy"), checked.variants[variant.name].verdict
        table.add_row(*map(Text, (variant.name, shown, variant.expected, judged)))
    SafeConsole(highlight=False).print(table)


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
