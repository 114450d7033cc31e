"""Signs of trouble in a run. Each function yields the figures of a warning for each time that it applies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from statistics import fmean

from configs.identity import differences
from configs.schema import Ppo
from pipeline.reporting.reward_words import reward_words
from pipeline.state.results import Results
from pipeline.terminal import summary
from pipeline.terminal.format import show_number
from pipeline.terminal.summary import metric_with_interval
from stages.maths.advantages import MIN_SIGNAL
from stages.maths.statistics import repeated_bigrams

Figures = dict[str, str]
Symptom = Callable[[Results], Iterable[Figures]]

MAX_KL = 15.0  # nats per response
MAX_TRUNCATED_SHARE = 0.25  # of responses
MAX_RATIO_DISTANCE = 0.1  # from 1
GOLD_MARGIN = 0.05
MIN_SAMPLES = 8
LAST_SHARE = 0.25  # of the iterations: the last quarter
MIN_ENTROPY_SHARE = 0.3  # of the first entropy
MIN_SUPPORT_SHARE = 0.5  # of the first number of tokens that top-k and top-p keep
MAX_CLIPPED_SHARE = 0.3  # of tokens
LENGTH_FACTOR = 2.0
MAX_MORE_REPETITION = 0.1  # of word pairs
MAX_HELD_SHARE = 0.5  # of the iterations
DISAGREEMENT_FACTOR = 1.5  # of the first disagreement of an ensemble
RUNAWAY_KL_FACTOR = 2.0
RUNAWAY_MIN_KL = 5.0  # nats per response


def loss_not_lower(results: Results) -> Iterator[Figures]:
    metrics = results.final_metrics("sft")
    before, after = metrics.get("eval_loss_before"), metrics.get("eval_loss")
    if metrics.get("steps") == 0:  # sft.max_steps: 0 trains nothing
        return
    if before is not None and after is not None and after >= before:
        yield {"before": show_number(before), "after": show_number(after)}


def accuracy_near_guessing(results: Results) -> Iterator[Figures]:
    metrics = results.final_metrics("rm")
    if metrics.get("accuracy_low", 1.0) <= 0.5:
        yield {"accuracy": metric_with_interval(metrics, "accuracy")}


def labellers_disagree(results: Results) -> Iterator[Figures]:
    metrics = results.final_metrics("rm")
    if metrics.get("label_agreement_low", 1.0) <= 0.5:
        yield {"agreement": metric_with_interval(metrics, "label_agreement")}


def gold_fell(results: Results) -> Iterator[Figures]:
    metrics = results.final_metrics("ppo")
    if _has_gold(metrics) and metrics["gold_ppo_high"] < metrics["gold_sft_low"]:
        yield _gold_figures(results, metrics)


def gold_overlaps(results: Results) -> Iterator[Figures]:
    metrics = results.final_metrics("ppo")
    if (
        _has_gold(metrics)
        and metrics["gold_ppo_low"] <= metrics["gold_sft_high"]
        and metrics["gold_ppo_high"] >= metrics["gold_sft_low"]
    ):
        yield _gold_figures(results, metrics)


def _has_gold(metrics: dict[str, float]) -> bool:
    return all(f"gold_{role}_{end}" in metrics for role in ("sft", "ppo") for end in ("low", "high"))


def _gold_figures(results: Results, metrics: dict[str, float]) -> Figures:
    scores = {role: metric_with_interval(metrics, f"gold_{role}") for role in ("sft", "ppo")}
    return scores | {"over_optimised": _over_optimised(metrics, results.experiment.ppo)}


def _over_optimised(metrics: dict[str, float], ppo: Ppo) -> str:
    """A sentence, after a blank, if the reward rose all the same."""
    reward = ppo.reward_metric
    low, high = metrics.get(f"{reward}_ppo_low"), metrics.get(f"{reward}_sft_high")
    if low is None or high is None or low <= high:
        return ""
    return f" Nevertheless {reward_words(ppo)} rose, so it is over-optimised."


def gold_falls_while_reward_rises(results: Results) -> Iterator[Figures]:
    """Compare the evaluations during PPO. The first one is of the policy that PPO starts from."""
    steps, golds = results.curve("ppo", "eval/gold")
    _, scores = results.curve("ppo", "eval/score")
    finished = "gold_ppo" in results.final_metrics("ppo")  # then the result itself is judged
    if finished or not golds or not scores or golds[-1] > golds[0] - GOLD_MARGIN or scores[-1] <= scores[0]:
        return
    figures = {"first_score": scores[0], "score": scores[-1], "first_gold": golds[0], "gold": golds[-1]}
    yield {name: show_number(value) for name, value in figures.items()} | {"step": str(steps[-1])}


def kl_high(results: Results) -> Iterator[Figures]:
    metrics = results.final_metrics("ppo")
    steps, values = results.curve("ppo", "objective/kl")
    if "kl" not in metrics and not steps:
        return
    truncation = f"kl_{results.experiment.ppo.reference}"
    kl = metrics.get("kl", values[-1] if values else 0.0) - metrics.get(truncation, 0.0)
    if kl > MAX_KL:
        yield {
            "reference": results.experiment.ppo.reference_name,
            "where": "on held-out prompts" if "kl" in metrics else f"of iteration {steps[-1]}",
            "kl": show_number(kl),
            "beyond": " beyond that of truncation alone" if truncation in metrics else "",
            "limit": f"{MAX_KL:.0f}",
        }


def kl_negative(results: Results) -> Iterator[Figures]:
    metrics = results.final_metrics("ppo")
    if metrics.get("kl_high", 0.0) < 0:
        yield {"where": "on held-out prompts", "kl": metric_with_interval(metrics, "kl")}


def kl_runs_away(results: Results) -> Iterator[Figures]:
    _, values = results.curve("ppo", "objective/kl")
    quarter = max(1, round(len(values) * LAST_SHARE))
    if len(values) < 2 * quarter:
        return
    before, late = fmean(values[-2 * quarter : -quarter]), fmean(values[-quarter:])
    if late > max(RUNAWAY_MIN_KL, RUNAWAY_KL_FACTOR * before):
        yield {"late": show_number(late), "before": show_number(before)}


def truncated(results: Results) -> Iterator[Figures]:
    share = _last_quarter(results, "completions/clipped_ratio")
    if share is not None and share > MAX_TRUNCATED_SHARE:
        yield {"share": f"{share:.0%}", "limit": str(results.experiment.ppo.rollout.max_new_tokens)}


def ratio_far_from_one(results: Results) -> Iterator[Figures]:
    steps, values = results.curve("ppo", "val/ratio")
    if not values:
        return
    value, step = max(zip(values, steps, strict=True), key=lambda pair: abs(pair[0] - 1))
    if abs(value - 1) > MAX_RATIO_DISTANCE:
        yield {"ratio": show_number(value), "step": str(step)}


def entropy_collapsed(results: Results) -> Iterator[Figures]:
    return _fell(results, "objective/entropy", MIN_ENTROPY_SHARE)


def support_collapsed(results: Results) -> Iterator[Figures]:
    return _fell(results, "rollout/support_size", MIN_SUPPORT_SHARE)


def _fell(results: Results, name: str, share: float) -> Iterator[Figures]:
    """The figures if the last quarter of a PPO metric is below `share` of its first value."""
    _, values = results.curve("ppo", name)
    late = _last_quarter(results, name)
    if late is not None and late < share * values[0]:
        yield {"first": show_number(values[0]), "late": show_number(late)}


def updates_clipped(results: Results) -> Iterator[Figures]:
    share = _last_quarter(results, "policy/clipfrac_avg")
    if share is not None and share > MAX_CLIPPED_SHARE:
        yield {"share": f"{share:.0%}"}


def length_changed(results: Results) -> Iterator[Figures]:
    _, lengths = results.curve("ppo", "completions/mean_length")
    _, scores = results.curve("ppo", "objective/scores")
    late = _last_quarter(results, "completions/mean_length")
    score = _last_quarter(results, "objective/scores")
    if late is None or score is None or score <= scores[0]:
        return
    if not lengths[0] / LENGTH_FACTOR <= late <= lengths[0] * LENGTH_FACTOR:
        yield {"first": show_number(lengths[0]), "late": show_number(late)}


def repetition(results: Results) -> Iterator[Figures]:
    if results.evaluation:
        kind = "held-out answers"
        sft, ppo = ([str(row[role]) for row in results.evaluation] for role in ("sft", "ppo"))
    else:  # PPO still runs: compare samples of training prompts from the first and the last iterations
        kind = "latest samples"
        texts = [str(row["response"]) for row in results.samples]
        quarter = round(len(texts) * LAST_SHARE)
        sft, ppo = texts[:quarter], texts[-quarter:]
        if quarter < MIN_SAMPLES:
            return
    before, after = (fmean(map(repeated_bigrams, texts)) for texts in (sft, ppo))
    if after > before + MAX_MORE_REPETITION:
        yield {"kind": kind, "after": f"{after:.0%}", "before": f"{before:.0%}"}


def ensemble_disagrees(results: Results) -> Iterator[Figures]:
    """The reward models agree less about what PPO's policy says than about what it said at first."""
    _, values = results.curve("ppo", "rewards/rm/disagreement")
    late = _last_quarter(results, "rewards/rm/disagreement")
    if late is not None and late > DISAGREEMENT_FACTOR * values[0]:
        yield {"first": show_number(values[0]), "late": show_number(late)}


def critic_useless(results: Results) -> Iterator[Figures]:
    variance = _last_quarter(results, "val/explained_variance")
    if variance is not None and variance < 0:
        yield {"variance": show_number(variance)}


def policy_held(results: Results) -> Iterator[Figures]:
    """Whitening has set the advantages of most iterations to 0."""
    _, signals = results.curve("ppo", "objective/reward_signal")
    held = [signal for signal in signals if signal < MIN_SIGNAL]
    if results.experiment.ppo.whiten_advantages and len(held) > MAX_HELD_SHARE * len(signals):
        yield {"held": f"{len(held) / len(signals):.0%}", "signal": show_number(fmean(signals))}


def not_finite(results: Results) -> Iterator[Figures]:
    """Training metrics only: an evaluation without held-out data is NaN."""
    for stage in results.manifests:
        nulls = [(row["step"], name) for row in results.metrics[stage] for name in row if row[name] is None]
        nulls = [(step, name) for step, name in nulls if not name.startswith("eval/")]
        if nulls:
            step, metric = nulls[0]
            steps = str(len({step for step, _ in nulls}))
            yield {"stage": stage, "metric": metric, "step": str(step), "steps": steps}


def other_settings(results: Results) -> Iterator[Figures]:
    for stage, manifest in results.manifests.items():
        if changes := differences(manifest.config, results.experiment, stage):
            yield {"stage": stage, "changes": "; ".join(changes)}


def other_upstream(results: Results) -> Iterator[Figures]:
    for stage, manifest in results.manifests.items():
        for upstream, used in manifest.inputs.items():
            source = results.manifests.get(upstream)
            if source is None or source.output is None or source.output.sha256 != used.sha256:
                yield {"stage": stage, "upstream": upstream}


def few_steps(results: Results) -> Iterator[Figures]:
    for stage, manifest in results.manifests.items():
        if results.finished(stage) and (figures := summary.few_steps(manifest)):
            yield figures


def few_prompts(results: Results) -> Iterator[Figures]:
    for stage, manifest in results.manifests.items():
        if results.finished(stage) and (figures := summary.few_prompts(manifest)):
            yield figures


def record_changed(results: Results) -> Iterator[Figures]:
    for stage, manifest in results.manifests.items():
        for fault in manifest.record_faults(results.run.stage(stage)):
            yield {"fault": fault}


def _last_quarter(results: Results, name: str) -> float | None:
    """Mean of a PPO metric over the last quarter of the logged iterations."""
    _, values = results.curve("ppo", name)
    return fmean(values[-max(1, round(len(values) * LAST_SHARE)) :]) if values else None
