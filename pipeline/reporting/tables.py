"""The tables at the end of a report: final metrics, cost of each stage, lineage, versions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.schema import Stage, data_stage
from pipeline.reporting.figure_style import ROLE_NAMES
from pipeline.reporting.page import Cell, Paragraph, Section, Table
from pipeline.state.manifest import Manifest
from pipeline.state.results import Results
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.format import show_figure, show_number, show_seconds
from pipeline.terminal.summary import key_labels, metric_with_interval, term_label

STAGE_NAMES: dict[Stage, str] = {"sft": "SFT", "rm": "Reward model", "ppo": "PPO", "best": "Best of n"}
MORE_METRICS = {
    "rm_win_rate": "win rate against SFT, by the reward model",
    "accuracy_lead": "accuracy less that of the best judge without a prompt",
    "accuracy_when_shorter": "accuracy if the better answer is shorter",
    "accuracy_of_longer": "accuracy of “the longer is better”",
    "accuracy_of_shorter": "accuracy of “the shorter is better”",
    "accuracy_of_likelier": "accuracy of “what the base finds likelier is better”",
    "accuracy_of_words": "accuracy of a bag of words",
    "calibration_error": "calibration error",
    "brier": "Brier score",
    "temperature": "temperature that calibrates raw scores",
    "length_correlation": "correlation of reward and length within prompts",
    "people": "people who ranked",
    "prompts_skipped": "prompts that people skipped",
    "score_mean": "raw score of SFT samples, mean",
    "score_std": "raw score of SFT samples, standard deviation",
    "rows_read": "rows read",
    "rows_left_out": "rows left out: nothing to learn",
    "rows_unusable": "of them, empty or damaged",
    "rows_tied": "of them, rankings without a pair",
    "rows_unwanted": "of them, what the data reject",
    "rows_of_other_stages": "rows whose prompts belong to other stages",
    "rows_repeated": "rows dropped: another source has them",
    "rows_of_known_prompts": "rows with a prompt of an earlier source, and other answers",
    "rows_kept_apart": "rows dropped: their prompts are kept apart from other stages",
    "turns_kept_apart": "turns of conversations that are context only: the split",
    "near_duplicates": "held-out prompts that nearly repeat a training prompt",
    "padding": "share of padding",
    "padding_plain": "share of padding without grouping or packing",
    "examples": "training examples",
    "examples_held_out": "held-out examples",
    "examples_truncated": "examples truncated",
    "examples_too_long": "examples dropped: over-long",
    "examples_without_pair": "rankings dropped: completions are the same",
    "label_prompts_dropped": "prompts dropped: the two labellers disagree",
    "label_answers_dropped": "answers dropped: the two labellers disagree",
    "judge_requests": "requests to the judge",
    "judge_unreadable": "replies of the judge that are unreadable, so ties",
    "judge_prompt_tokens": "tokens of the judge's prompts",
    "judge_completion_tokens": "tokens of the judge's replies",
}
OF_SOURCES = {  # `sources/LABEL/NAME`
    "rows_read": "read",
    "rows_left_out": "left out",
    "rows_of_other_stages": "of other stages",
    "rows_repeated": "copies",
    "rows_kept_apart": "held out by another stage",
    "rows_train": "trained on",
    "rows_held_out": "held out",
    "examples_truncated": "truncated",
    "examples_too_long": "over-long",
    "examples_without_pair": "without a pair",
}
BY_SOURCE = {"eval_loss/": "held-out loss", "accuracy/": "held-out accuracy"}
COSTS = ("steps", "wall_seconds", "peak_memory_bytes", "tokens_per_second")
DIGITS = 12


def closing_sections(results: Results) -> list[Section]:
    """The tables that the run has data for."""
    if not results.manifests:
        return []
    sections = [*_sources(results), _stages(results), _lineage(results), _versions(results)]
    rows = [row for stage in results.manifests for row in _metrics(results, stage)]
    if rows:
        sections.insert(
            0, Section("Final metrics", [Table(["Stage", "Metric", "Value", "95 % interval", "n"], rows)])
        )
    return sections


def gold_parts(metrics: dict[str, float]) -> list[Table]:
    """The parts of the judge's score, a row each and a column for each policy; none if there are no parts.

    Args:
        metrics: the final metrics of PPO; `gold_PART_ROLE` is the mean of a part. A term of the reward may be
            called gold, too, but has no figure of the base.
    """
    parts = [match[1] for name in metrics if (match := re.fullmatch(r"gold_(\w+)_base", name))]
    rows = [
        [Cell(part), *(Cell(metric_with_interval(metrics, f"gold_{part}_{role}")) for role in ROLE_NAMES)]
        for part in parts
    ]
    return [Table(["Part of the gold score", "Base", "SFT", "PPO"], rows)] if rows else []


def show_interval(metrics: dict[str, float], key: str) -> str:
    """`0.711 to 0.811`, or "" if `key` has no interval."""
    return show_figure(metrics, key).bounds


def show_count(metrics: dict[str, float], key: str) -> str:
    """The number of held-out prompts behind `key`, or "" if it is of none."""
    return f"{metrics[f'{key}_n']:.0f}" if f"{key}_n" in metrics else ""


def _metrics(results: Results, stage: Stage) -> list[list[Cell]]:
    """All final metrics of `stage` except its costs."""
    metrics = results.final_metrics(stage)
    labels = (
        {name: term_label(name) for name in metrics} | key_labels(results.manifests[stage]) | MORE_METRICS
    )
    labels |= {name: of_source for name in metrics if (of_source := _by_source(name))}
    names = [
        name
        for name in metrics
        if name not in COSTS
        and not name.endswith(("_low", "_high", "_n"))
        and not name.startswith("sources/")
    ]
    return [
        [
            Cell(STAGE_NAMES[stage]),
            Cell(labels.get(name, name)),
            Cell(show_figure(metrics, name).value),
            Cell(show_interval(metrics, name)),
            Cell(show_count(metrics, name)),
        ]
        for name in names
    ]


def _by_source(name: str) -> str:
    """The label of a figure of one source; "" of other figures."""
    return next(
        (f"{label}, {name.removeprefix(key)}" for key, label in BY_SOURCE.items() if name.startswith(key)), ""
    )


def _sources(results: Results) -> list[Section]:
    """What became of the rows of each source, for the stages that read several."""
    rows = []
    for stage in results.manifests:
        metrics = results.final_metrics(stage)
        for source in dict.fromkeys(name.split("/")[1] for name in metrics if name.startswith("sources/")):
            counts = [metrics.get(f"sources/{source}/{name}", 0) for name in OF_SOURCES]
            rows.append([Cell(STAGE_NAMES[stage]), Cell(source), *(Cell(show_number(n)) for n in counts)])
    if not rows:
        return []
    text = "Rows of each source. Training rows count as often as the source's weight has them seen."
    return [
        Section("Data by source", [Paragraph(text), Table(["Stage", "Source", *OF_SOURCES.values()], rows)])
    ]


def _stages(results: Results) -> Section:
    """The cost of each stage, one column per stage."""
    lines: dict[str, Callable[[Manifest], str]] = {
        "status": lambda manifest: manifest.status,
        "steps": lambda manifest: _metric(manifest, "steps", show_number),
        "wall time": lambda manifest: show_seconds(manifest.wall_seconds),
        "peak memory, GiB per rank": lambda manifest: _metric(manifest, "peak_memory_bytes", _gibibytes),
        "tokens per second": lambda manifest: _metric(manifest, "tokens_per_second", show_number),
        "ranks": lambda manifest: str(manifest.world_size),
        "base": lambda manifest: str(manifest.base),
        "started": lambda manifest: f"{manifest.started:%Y-%m-%d %H:%M} UTC",
        "W&B run": lambda manifest: manifest.run_id,
    }
    manifests = list(results.manifests.values())
    texts = {label: [show(manifest) for manifest in manifests] for label, show in lines.items()}
    rows = [[Cell(label), *map(Cell, line)] for label, line in texts.items() if any(line)]
    return Section("Stages", [Table(["", *_names(manifests)], rows)])


def _metric(manifest: Manifest, name: str, show: Callable[[float], str]) -> str:
    return show(manifest.metrics[name]) if name in manifest.metrics else ""


def _gibibytes(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _lineage(results: Results) -> Section:
    """The adapters and data that each result was trained on."""
    text = (
        f"Each result has the first {DIGITS} digits of the SHA-256 of its content. A config hash covers the "
        "keys that influence a stage's result, without those that only change speed."
    )
    columns = ["Stage", "Trained on", "Data", "Config hash", "Result"]
    rows = [_lineage_row(results.run, manifest) for manifest in results.manifests.values()]
    return Section("Lineage", [Paragraph(text), Table(columns, rows, "prose")])


def _lineage_row(run: RunDirectory, manifest: Manifest) -> list[Cell]:
    inputs = [f"{used.path} {used.sha256[:DIGITS]}" for used in manifest.inputs.values()]
    inputs += [f"{key} {digest[:DIGITS]}" for key, digest in manifest.given_adapters.items()]
    output, path = manifest.output, run.output(manifest.stage).relative_to(run.path)
    result = f"{path} {output.sha256[:DIGITS]}" if output else "none yet"
    return [
        Cell(STAGE_NAMES[manifest.stage]),
        Cell("\n".join(inputs) or "only the base"),
        Cell(_source(manifest.config, manifest.stage)),
        Cell(manifest.config_hash[:DIGITS]),
        Cell(result),
    ]


def _source(config: dict[str, Any], stage: Stage) -> str:
    """The stage's data: hub ids, and the names of local files. `config` may have an older schema."""
    given = config.get("data", {}).get(data_stage(stage), {})
    paths = [str(source.get("path", "")) for source in (given if isinstance(given, list) else [given])]
    return ", ".join(Path(path).name if Path(path).is_absolute() else path for path in paths)


def _versions(results: Results) -> Section:
    manifests = list(results.manifests.values())
    libraries = sorted({name for manifest in manifests for name in manifest.versions})
    rows = [
        [Cell(name), *(Cell(manifest.versions.get(name, "")) for manifest in manifests)] for name in libraries
    ]
    return Section("Versions", [Table(["Library", *_names(manifests)], rows)])


def _names(manifests: list[Manifest]) -> list[str]:
    return [STAGE_NAMES[manifest.stage] for manifest in manifests]
