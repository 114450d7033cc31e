"""Warnings about a run: fixed rules that recognise common signs of trouble."""

from __future__ import annotations

from statistics import fmean

from configs.identity import differences
from configs.schema import Ppo, Stage
from pipeline.reporting.reward_words import reward_words
from pipeline.state.results import Results
from pipeline.terminal.format import show_number
from pipeline.terminal.summary import MIN_PROMPTS, MIN_STEPS, metric_with_interval, small_samples
from stages.maths.statistics import repeated_bigrams

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
RUNAWAY_KL_FACTOR = 2.0
RUNAWAY_MIN_KL = 5.0  # nats per response

RULES = (
    "SFT did not lower the held-out loss.",
    "The interval of the reward model's held-out accuracy includes 0.5, which is guessing, or lies below.",
    "The gold intervals of PPO and SFT overlap, or PPO's interval lies below.",
    "While PPO runs, the reward of held-out answers rose and the gold score fell by more than "
    f"{GOLD_MARGIN:g}.",
    f"The KL to the SFT policy is above {MAX_KL:.0f} nats per response, or significantly below 0.",
    f"In the last quarter of PPO, over {MAX_TRUNCATED_SHARE:.0%} of the responses reached the length limit.",
    f"The mean probability ratio of an iteration is more than {MAX_RATIO_DISTANCE:g} away from 1.",
    f"In the last quarter of PPO, the KL is over {RUNAWAY_KL_FACTOR:g} times the KL of the quarter before, "
    f"and above {RUNAWAY_MIN_KL:g} nats.",
    f"In the last quarter of PPO, the entropy is below {MIN_ENTROPY_SHARE:.0%} of its first value.",
    f"In the last quarter of PPO, top-k and top-p keep fewer than {MIN_SUPPORT_SHARE:.0%} of the tokens that "
    "they kept at first.",
    f"In the last quarter of PPO, over {MAX_CLIPPED_SHARE:.0%} of the tokens' ratios were clipped.",
    f"In PPO the score rose while the response length changed by a factor of over {LENGTH_FACTOR:g}.",
    f"PPO's held-out answers repeat over {MAX_MORE_REPETITION:.0%} more of their word pairs than SFT's. "
    "While PPO runs, the last quarter of its samples is compared with the first.",
    "In the last quarter of PPO, the critic's explained variance is below 0.",
    "A training metric was not a finite number.",
    f"A stage made fewer than {MIN_STEPS} optimizer steps (PPO: iterations).",
    f"A held-out figure comes from fewer than {MIN_PROMPTS} prompts.",
    "A stage was trained on another adapter, or with other settings, than the run directory now holds.",
    "A file of metrics, samples or answers differs from what its stage wrote.",
)


def warnings(results: Results) -> list[str]:
    """One message for each rule that applies. Empty if nothing looks wrong."""
    messages = [rule(results) for rule in OF_RUN]
    for stage in results.manifests:
        messages += [_not_finite(results, stage), _settings(results, stage), *_lineage(results, stage)]
        messages += small_samples(results.manifests[stage]) if results.finished(stage) else []
        messages += results.manifests[stage].record_faults(results.run.stage(stage))
    return [message for message in messages if message]


def _sft(results: Results) -> str | None:
    metrics = results.final_metrics("sft")
    before, after = metrics.get("eval_loss_before"), metrics.get("eval_loss")
    if before is None or after is None or after < before:
        return None
    return (
        f"SFT did not lower the held-out loss ({show_number(before)} before, {show_number(after)} after): "
        "SFT learned nothing, or it memorised the demonstrations."
    )


def _accuracy(results: Results) -> str | None:
    metrics = results.final_metrics("rm")
    if "accuracy_low" not in metrics or metrics["accuracy_low"] > 0.5:
        return None
    return (
        f"The reward model's accuracy on held-out rankings is {metric_with_interval(metrics, 'accuracy')}, "
        "which is not clearly above 0.5. It may be guessing, and PPO would optimise noise."
    )


def _gold(results: Results) -> str | None:
    metrics = results.final_metrics("ppo")
    needed = ("gold_sft_low", "gold_sft_high", "gold_ppo_low", "gold_ppo_high")
    if any(name not in metrics for name in needed) or metrics["gold_ppo_low"] > metrics["gold_sft_high"]:
        return None
    sft, ppo = (metric_with_interval(metrics, f"gold_{role}") for role in ("sft", "ppo"))
    if metrics["gold_ppo_high"] < metrics["gold_sft_low"]:
        sentence = f"The gold score fell from {sft} (SFT) to {ppo} (PPO). PPO made the answers worse."
    else:
        sentence = (
            f"The gold intervals of SFT, {sft}, and PPO, {ppo}, overlap. "
            "By this measure PPO is not clearly better than SFT."
        )
    return sentence + _over_optimised(metrics, results.experiment.ppo)


def _gold_during_training(results: Results) -> str | None:
    """Compare the evaluations during PPO. The first one is of the SFT policy."""
    steps, golds = results.curve("ppo", "eval/gold")
    _, scores = results.curve("ppo", "eval/score")
    finished = "gold_ppo" in results.final_metrics("ppo")  # then `_gold` judges the result
    if finished or not golds or not scores or golds[-1] > golds[0] - GOLD_MARGIN or scores[-1] <= scores[0]:
        return None
    return (
        f"Up to iteration {steps[-1]} of PPO, the reward of held-out answers rose from "
        f"{show_number(scores[0])} to {show_number(scores[-1])} while the gold score fell from "
        f"{show_number(golds[0])} to {show_number(golds[-1])}. The reward is over-optimised. "
        "Raise ppo.kl_coef."
    )


def _over_optimised(metrics: dict[str, float], ppo: Ppo) -> str:
    reward = ppo.reward_metric
    low, high = metrics.get(f"{reward}_ppo_low"), metrics.get(f"{reward}_sft_high")
    if low is None or high is None or low <= high:
        return ""
    return f" Nevertheless {reward_words(ppo)} rose, so it is over-optimised."


def _kl(results: Results) -> str | None:
    metrics = results.final_metrics("ppo")
    steps, values = results.curve("ppo", "objective/kl")
    if "kl" not in metrics and not steps:
        return None
    kl = metrics.get("kl", values[-1] if values else 0.0) - metrics.get("kl_sft", 0.0)
    where = "on held-out prompts" if "kl" in metrics else f"of iteration {steps[-1]}"
    if kl > MAX_KL:
        above_truncation = " beyond that of truncation alone" if "kl_sft" in metrics else ""
        return (
            f"The KL {where} is {show_number(kl)} nats per response{above_truncation}, above {MAX_KL:.0f}. "
            "The policy is far from the SFT policy, where a reward model has little data. "
            "Raise ppo.kl_coef or stop earlier."
        )
    if metrics.get("kl_high", 0.0) < 0:
        return (
            f"The KL {where} is {metric_with_interval(metrics, 'kl')} nats per response. A KL cannot be "
            "negative, so responses and log-probabilities do not come from the same policy."
        )
    return None


def _truncated(results: Results) -> str | None:
    ratio = _last_quarter(results, "completions/clipped_ratio")
    if ratio is None or ratio <= MAX_TRUNCATED_SHARE:
        return None
    limit = results.experiment.ppo.rollout.max_new_tokens
    return (
        f"In the last quarter of PPO, {ratio:.0%} of the responses reached the limit of {limit} tokens "
        "without ending their turn. Scores and lengths describe truncated texts."
    )


def _ratio(results: Results) -> str | None:
    steps, values = results.curve("ppo", "val/ratio")
    if not values:
        return None
    value, step = max(zip(values, steps, strict=True), key=lambda pair: abs(pair[0] - 1))
    if abs(value - 1) <= MAX_RATIO_DISTANCE:
        return None
    return (
        f"The mean probability ratio was {show_number(value)} at iteration {step}, far from 1. Updates left "
        "the region that the samples cover. Lower ppo.learning_rate or ppo.epochs."
    )


def _critic(results: Results) -> str | None:
    variance = _last_quarter(results, "val/explained_variance")
    if variance is None or variance >= 0:
        return None
    return (
        f"In the last quarter of PPO the critic's explained variance is {show_number(variance)}, below 0. "
        "Its values are worse than a constant, so advantages are noisy."
    )


def _runaway_kl(results: Results) -> str | None:
    _, values = results.curve("ppo", "objective/kl")
    quarter = max(1, round(len(values) * LAST_SHARE))
    if len(values) < 2 * quarter:
        return None
    before, late = fmean(values[-2 * quarter : -quarter]), fmean(values[-quarter:])
    if late <= max(RUNAWAY_MIN_KL, RUNAWAY_KL_FACTOR * before):
        return None
    return (
        f"The KL keeps rising fast: {show_number(late)} nats per response in the last quarter of PPO, "
        f"{show_number(before)} in the quarter before. Raise ppo.kl_coef, or set ppo.kl_target or ppo.max_kl."
    )


def _entropy(results: Results) -> str | None:
    _, values = results.curve("ppo", "objective/entropy")
    late = _last_quarter(results, "objective/entropy")
    if late is None or late >= MIN_ENTROPY_SHARE * values[0]:
        return None
    return (
        f"The entropy has collapsed, from {show_number(values[0])} to {show_number(late)} nats per token. "
        "Samples are nearly all the same, so PPO has little to learn from. Raise ppo.kl_coef or "
        "ppo.entropy_coef, or lower ppo.learning_rate."
    )


def _support(results: Results) -> str | None:
    _, values = results.curve("ppo", "rollout/support_size")
    late = _last_quarter(results, "rollout/support_size")
    if late is None or late >= MIN_SUPPORT_SHARE * values[0]:
        return None
    return (
        f"Top-k and top-p keep {show_number(late)} tokens to sample from, {show_number(values[0])} at first. "
        "The policy explores little, and tokens outside get no gradient. Raise ppo.kl_coef, or sample with "
        "ppo.rollout.temperature in place of top_p."
    )


def _clipped(results: Results) -> str | None:
    share = _last_quarter(results, "policy/clipfrac_avg")
    if share is None or share <= MAX_CLIPPED_SHARE:
        return None
    return (
        f"In the last quarter of PPO, {share:.0%} of the tokens' ratios were clipped. Updates are too "
        "large for the rollouts. Lower ppo.learning_rate or ppo.epochs."
    )


def _length(results: Results) -> str | None:
    _, lengths = results.curve("ppo", "completions/mean_length")
    _, scores = results.curve("ppo", "objective/scores")
    late, score = (
        _last_quarter(results, "completions/mean_length"),
        _last_quarter(results, "objective/scores"),
    )
    if late is None or score is None or score <= scores[0]:
        return None
    if lengths[0] / LENGTH_FACTOR <= late <= lengths[0] * LENGTH_FACTOR:
        return None
    return (
        f"The score rose while responses went from {show_number(lengths[0])} to {show_number(late)} tokens. "
        "The reward may score length. Look at samples; ppo.length_penalty counters it."
    )


def _repetition(results: Results) -> str | None:
    if results.evaluation:
        kind = "held-out answers"
        sft, ppo = ([str(row[role]) for row in results.evaluation] for role in ("sft", "ppo"))
    else:  # PPO still runs: compare samples of training prompts from the first and the last iterations
        kind = "latest samples"
        texts = [str(row["response"]) for row in results.samples]
        quarter = round(len(texts) * LAST_SHARE)
        sft, ppo = texts[:quarter], texts[-quarter:]
        if quarter < MIN_SAMPLES:
            return None
    before, after = (fmean(map(repeated_bigrams, texts)) for texts in (sft, ppo))
    if after <= before + MAX_MORE_REPETITION:
        return None
    return (
        f"PPO's {kind} repeat themselves: {after:.0%} of their word pairs are repetitions, {before:.0%} at "
        "first. Repetition often pleases a reward model and nobody else."
    )


def _not_finite(results: Results, stage: Stage) -> str | None:
    """Training metrics only: an evaluation without held-out data is NaN."""
    nulls = [(row["step"], name) for row in results.metrics[stage] for name in row if row[name] is None]
    nulls = [(step, name) for step, name in nulls if not name.startswith("eval/")]
    if not nulls:
        return None
    steps = len({step for step, _ in nulls})
    return (
        f"{nulls[0][1]} of stage {stage} was not a finite number at step {nulls[0][0]} ({steps} such steps)."
    )


def _settings(results: Results, stage: Stage) -> str | None:
    changes = differences(results.manifests[stage].config, results.experiment, stage)
    if not changes:
        return None
    return f"Stage {stage} was trained with other settings than config.yaml has: {'; '.join(changes)}."


def _lineage(results: Results, stage: Stage) -> list[str]:
    sentences = []
    for upstream, used in results.manifests[stage].inputs.items():
        source = results.manifests.get(upstream)
        if source is None or source.output is None or source.output.sha256 != used.sha256:
            sentences.append(f"Stage {stage} was trained on another {upstream} adapter than the current one.")
    return sentences


def _last_quarter(results: Results, name: str) -> float | None:
    """Mean of a PPO metric over the last quarter of the logged iterations."""
    _, values = results.curve("ppo", name)
    return fmean(values[-max(1, round(len(values) * LAST_SHARE)) :]) if values else None


OF_RUN = (
    _sft,
    _accuracy,
    _gold,
    _gold_during_training,
    _kl,
    _runaway_kl,
    _truncated,
    _ratio,
    _entropy,
    _support,
    _clipped,
    _length,
    _repetition,
    _critic,
)
