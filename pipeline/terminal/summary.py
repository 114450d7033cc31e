"""Key metrics of a stage, shown when it ends and in `tristage status`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.schema import Stage, data_stage
from pipeline.state.manifest import Manifest
from pipeline.terminal.format import show_figure, show_number, show_seconds

KEY_METRICS: dict[Stage, dict[str, str]] = {
    "sft": {"eval_loss_before": "held-out loss before", "eval_loss": "held-out loss after"},
    "rm": {
        "accuracy": "held-out accuracy",
        "label_agreement": "agreement of two labellers",
        "judge_cost": "cost of the judge",
        "margin": "margin",
        "eval_loss": "held-out loss",
    },
    "ppo": {
        "gold_base": "gold score, base",
        "gold_sft": "gold score, SFT",
        "gold_ppo": "gold score, PPO",
        "win_rate": "win rate against SFT",
        "rm_score_sft": "reward score, SFT",
        "rm_score_ppo": "reward score, PPO",
        "reward_total_sft": "reward, sum of its terms, SFT",
        "reward_total_ppo": "reward, sum of its terms, PPO",
        "kl": "KL to SFT, nats per response",
        "kl_sft": "KL of truncation alone",
        "kl_from": "KL of truncation alone",
        "mean_length": "response length, tokens",
    },
    "best": {
        "demonstrations": "demonstrations",
        "rm_score_sft": "reward score, SFT",
        "rm_score_best": "reward score, best of n",
        "gold_sft": "gold score, SFT",
        "gold_best": "gold score, best of n",
        "kl": "KL to SFT, nats per response",
    },
}

MIN_STEPS = 8  # optimizer steps; PPO: iterations
MIN_PROMPTS = 20  # held out
FEW_STEPS = "Stage {stage} made only {steps} {kind}: its result shows little. Raise {key}."
FEW_PROMPTS = (
    "Stage {stage} was judged on only {prompts} held-out prompts. Bootstrap intervals over so few are too "
    "narrow. Raise {key}."
)
TERM_ENDS = ("_score_sft", "_score_ppo")


def key_metrics(manifest: Manifest) -> dict[str, str]:
    """Labels and values of the key metrics, with their intervals."""
    terms = [name for name in manifest.metrics if name.endswith(TERM_ENDS)]
    names = {name: term_label(name) for name in terms} | key_labels(manifest)
    shown = {
        label: metric_with_interval(manifest.metrics, key)
        for key, label in names.items()
        if key in manifest.metrics
    }
    return shown | _cost(manifest.metrics)


def key_labels(manifest: Manifest) -> dict[str, str]:
    """The labels of the key metrics of the manifest's stage. That of the KL names what it is to."""
    labels = KEY_METRICS[manifest.stage]
    if manifest.stage == "ppo" and manifest.config.get("ppo", {}).get("reference") == "from":
        return labels | {"kl": "KL to the starting policy, nats per response"}
    return labels


def term_label(name: str) -> str:
    """The label of a reward's final metric, such as `length_score_ppo`; other names stay."""
    for end, role in zip(TERM_ENDS, ("SFT", "PPO"), strict=True):
        if name.endswith(end):
            return f"reward {name.removesuffix(end)}, {role}"
    return name.replace("_win_rate", ": win rate against SFT")


def metric_with_interval(metrics: Mapping[str, float], key: str) -> str:
    """`0.740 [0.700, 0.780], n = 200`, as far as interval and n are known."""
    count = f", n = {metrics[f'{key}_n']:.0f}" if f"{key}_n" in metrics else ""
    return f"{show_figure(metrics, key)}{count}"


def small_samples(manifest: Manifest) -> list[str]:
    """A sentence if a stage made few steps, and one if it was judged on few held-out prompts."""
    found = {FEW_STEPS: few_steps(manifest), FEW_PROMPTS: few_prompts(manifest)}
    return [sentence.format_map(figures) for sentence, figures in found.items() if figures]


def few_steps(manifest: Manifest) -> dict[str, str] | None:
    """The figures of `FEW_STEPS`; None if the stage made enough steps, or was to make none (max_steps: 0)."""
    return figures_of_few_steps(manifest.stage, manifest.metrics.get("steps", MIN_STEPS))


def figures_of_few_steps(stage: Stage, steps: float) -> dict[str, str] | None:
    """The same of `steps` that a stage makes, or will make; in PPO, its iterations."""
    if stage == "best" or steps == 0 or steps >= MIN_STEPS:
        return None
    kind, key = ("iteration", "iterations") if stage == "ppo" else ("optimizer step", "epochs")
    counted = {"steps": f"{steps:.0f}", "kind": kind if steps == 1 else f"{kind}s"}
    return {"stage": stage, **counted, "key": f"{stage}.{key}"}


def few_prompts(manifest: Manifest) -> dict[str, str] | None:
    """The figures of `FEW_PROMPTS`; None if enough prompts were held out, or none."""
    stage, metrics = manifest.stage, manifest.metrics
    # Some figures of a reward model are of a part of the held-out prompts, or of the training prompts. Those
    # of one source (`eval_loss/SOURCE`) are of its own.
    of_all = [name for name in metrics if name.endswith("_n") and "/" not in name]
    names = ["accuracy_n"] if stage == "rm" else of_all
    counts = [metrics[name] for name in names if name in metrics]
    if not counts or min(counts) >= MIN_PROMPTS:
        return None
    return {"stage": stage, "prompts": f"{min(counts):.0f}", "key": f"data.{data_stage(stage)}.held_out"}


def print_summary(console: Console, manifest: Manifest, output: Path, next_command: str | None) -> None:
    """Print the end of a stage: its key metrics, the path of its output, the next command."""
    table = Table(title=f"stage {manifest.stage} finished", title_justify="left", show_header=False, box=None)
    for label, value in key_metrics(manifest).items():
        table.add_row(Text(label), Text(value, style="bold"))
    console.print(table)
    for sentence in small_samples(manifest):
        console.print(Text(f"warning: {sentence}", style="yellow"), soft_wrap=True)
    console.print(Text(f"{output.name}: {output}"), soft_wrap=True)
    if next_command:
        console.print(Text(f"next: {next_command}"), soft_wrap=True)


def _cost(metrics: Mapping[str, float]) -> dict[str, str]:
    shown = {}
    if "steps" in metrics:
        shown["steps"] = show_number(metrics["steps"])
    if "wall_seconds" in metrics:
        shown["time"] = show_seconds(metrics["wall_seconds"])
    if "peak_memory_bytes" in metrics:
        shown["peak memory"] = f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB"
    return shown
