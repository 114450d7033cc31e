"""What a reader should know before believing a run: signs of trouble, by fixed rules, and what is missing."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from configs.identity import differences
from configs.schema import STAGES, Stage
from pipeline.state.results import Results
from pipeline.terminal.format import show_number
from pipeline.terminal.summary import figure_with_interval
from stages.maths.statistics import repeated_bigrams

KL_LIMIT = 15.0
CUT_LIMIT = 0.25
RATIO_LIMIT = 0.1
GOLD_MARGIN = 0.05
FEW_PROMPTS = 20
FEW_SAMPLES = 8
LATE_SHARE = 0.25
ENTROPY_SHARE = 0.3
CLIPPED_LIMIT = 0.3
LENGTH_FACTOR = 2.0
REPEATED_LIMIT = 0.1
RUNAWAY_FACTOR = 2.0
RUNAWAY_FLOOR = 5.0

RULES = (
    "Held-out loss did not fall in SFT.",
    "The interval of the reward model's held-out accuracy touches 0.5, which is guessing.",
    "The gold intervals of PPO and SFT overlap, or PPO's lies below.",
    "While PPO runs, the reward model's score of held-out answers rose and the gold score fell by more than "
    f"{GOLD_MARGIN:g}.",
    f"The KL to the SFT policy is above {KL_LIMIT:.0f} nats per response, or below 0 by more than noise.",
    f"In the last quarter of PPO, over {CUT_LIMIT:.0%} of the responses ran into the length limit.",
    f"The mean probability ratio of an iteration is more than {RATIO_LIMIT:g} away from 1.",
    f"In the last quarter of PPO, the KL is over {RUNAWAY_FACTOR:g} times that of the quarter before, and "
    f"above {RUNAWAY_FLOOR:g} nats.",
    f"In the last quarter of PPO, the entropy is below {ENTROPY_SHARE:.0%} of what it was at first.",
    f"In the last quarter of PPO, over {CLIPPED_LIMIT:.0%} of the tokens' ratios were clipped.",
    f"The score rose in PPO while responses became over {LENGTH_FACTOR:g} times as long, or as short.",
    f"PPO's held-out answers repeat over {REPEATED_LIMIT:.0%} more of their word pairs than SFT's; while PPO "
    "runs, the last quarter of its samples than the first.",
    "In the last quarter of PPO, the critic explains less than none of the variance of the returns.",
    "A training metric was not a finite number.",
    f"Fewer than {FEW_PROMPTS} held-out prompts stand behind an interval.",
    "A stage was trained on another adapter, or with other settings, than the run directory holds now.",
    "A file of metrics, samples or answers is not what its stage wrote.",
)


def warnings(results: Results) -> list[str]:
    """A sentence for each rule that strikes; empty if nothing looks wrong."""
    found = [rule(results) for rule in OF_RUN]
    for stage in results.manifests:
        found += [_not_finite(results, stage), _settings(results, stage), *_lineage(results, stage)]
        found += results.manifests[stage].record_faults(results.run.stage(stage))
    return [sentence for sentence in found if sentence]


def _sft(results: Results) -> str | None:
    figures = results.figures("sft")
    before, after = figures.get("eval_loss_before"), figures.get("eval_loss")
    if before is None or after is None or after < before:
        return None
    return (
        f"SFT did not lower the held-out loss ({show_number(before)} before, {show_number(after)} after): "
        "nothing was learned, or the demonstrations were learned by heart."
    )


def _accuracy(results: Results) -> str | None:
    figures = results.figures("rm")
    if "accuracy_low" not in figures or figures["accuracy_low"] > 0.5:
        return None
    return (
        f"The reward model's accuracy on held-out rankings is {figure_with_interval(figures, 'accuracy')}, "
        "which is not clear of 0.5: it may be guessing, and PPO would optimise noise."
    )


def _gold(results: Results) -> str | None:
    figures = results.figures("ppo")
    needed = ("gold_sft_low", "gold_sft_high", "gold_ppo_low", "gold_ppo_high")
    if any(name not in figures for name in needed) or figures["gold_ppo_low"] > figures["gold_sft_high"]:
        return None
    sft, ppo = (figure_with_interval(figures, f"gold_{role}") for role in ("sft", "ppo"))
    if figures["gold_ppo_high"] < figures["gold_sft_low"]:
        sentence = f"The gold score fell from {sft} (SFT) to {ppo} (PPO): PPO made the answers worse."
    else:
        sentence = (
            f"The gold intervals of SFT, {sft}, and PPO, {ppo}, overlap: "
            "by this measure PPO is not clearly better than SFT."
        )
    return sentence + (_over_optimised(figures))


def _gold_meanwhile(results: Results) -> str | None:
    """Of the evaluations during PPO, the first of which is of the SFT policy; `_gold` is of the end."""
    steps, golds = results.curve("ppo", "eval/gold")
    _, scores = results.curve("ppo", "eval/score")
    over = "gold_ppo" in results.figures("ppo")
    if over or not golds or not scores or golds[-1] > golds[0] - GOLD_MARGIN or scores[-1] <= scores[0]:
        return None
    return (
        f"Up to iteration {steps[-1]} of PPO, the reward model's score of held-out answers rose from "
        f"{show_number(scores[0])} to {show_number(scores[-1])} while the gold score fell from "
        f"{show_number(golds[0])} to {show_number(golds[-1])}: it is being over-optimised. Raise ppo.kl_coef."
    )


def _over_optimised(figures: dict[str, float]) -> str:
    low, high = figures.get("rm_score_ppo_low"), figures.get("rm_score_sft_high")
    if low is None or high is None or low <= high:
        return ""
    return " The reward model's own score rose all the same, so it is being over-optimised."


def _kl(results: Results) -> str | None:
    figures = results.figures("ppo")
    steps, values = results.curve("ppo", "objective/kl")
    if "kl" not in figures and not steps:
        return None
    kl = figures.get("kl", values[-1] if values else 0.0)
    where = "on held-out prompts" if "kl" in figures else f"of iteration {steps[-1]}"
    if kl > KL_LIMIT:
        return (
            f"The KL {where} is {show_number(kl)} nats per response, above {KL_LIMIT:.0f}: the policy is far "
            "from the SFT policy, where the reward model has seen little. Raise ppo.kl_coef or stop earlier."
        )
    if figures.get("kl_high", 0.0) < 0:
        return (
            f"The KL {where} is {figure_with_interval(figures, 'kl')} nats per response. A KL cannot be "
            "negative: responses and log-probabilities do not come from the same policy."
        )
    return None


def _cut(results: Results) -> str | None:
    ratio = _late(results, "completions/clipped_ratio")
    if ratio is None or ratio <= CUT_LIMIT:
        return None
    limit = results.experiment.ppo.rollout.max_new_tokens
    return (
        f"In the last quarter of PPO, {ratio:.0%} of the responses ran into the limit of {limit} tokens "
        "without ending their turn: scores and lengths describe cut texts."
    )


def _ratio(results: Results) -> str | None:
    steps, values = results.curve("ppo", "val/ratio")
    if not values:
        return None
    value, step = max(zip(values, steps, strict=True), key=lambda pair: abs(pair[0] - 1))
    if abs(value - 1) <= RATIO_LIMIT:
        return None
    return (
        f"The mean probability ratio was {show_number(value)} at iteration {step}, far from 1: updates left "
        "the region that the samples describe. Lower ppo.learning_rate or ppo.epochs."
    )


def _critic(results: Results) -> str | None:
    variance = _late(results, "val/explained_variance")
    if variance is None or variance >= 0:
        return None
    return (
        f"In the last quarter of PPO the critic's explained variance is {show_number(variance)}, below 0: "
        "its values are worse than a constant, and advantages are noisy."
    )


def _runaway(results: Results) -> str | None:
    _, values = results.curve("ppo", "objective/kl")
    quarter = max(1, round(len(values) * LATE_SHARE))
    if len(values) < 2 * quarter:
        return None
    before, late = fmean(values[-2 * quarter : -quarter]), fmean(values[-quarter:])
    if late <= max(RUNAWAY_FLOOR, RUNAWAY_FACTOR * before):
        return None
    return (
        f"The KL is running away: {show_number(late)} nats per response in the last quarter of PPO, "
        f"{show_number(before)} in the quarter before. Raise ppo.kl_coef, or set ppo.kl_target or ppo.max_kl."
    )


def _entropy(results: Results) -> str | None:
    _, values = results.curve("ppo", "objective/entropy")
    late = _late(results, "objective/entropy")
    if late is None or late >= ENTROPY_SHARE * values[0]:
        return None
    return (
        f"The entropy has collapsed, from {show_number(values[0])} to {show_number(late)} nats per token: "
        "samples are nearly all the same, and PPO has little left to learn from. Raise ppo.kl_coef or "
        "ppo.entropy_coef, or lower ppo.learning_rate."
    )


def _clipped(results: Results) -> str | None:
    share = _late(results, "policy/clipfrac_avg")
    if share is None or share <= CLIPPED_LIMIT:
        return None
    return (
        f"In the last quarter of PPO, {share:.0%} of the tokens' ratios were clipped: updates are larger "
        "than the rollouts bear. Lower ppo.learning_rate or ppo.epochs."
    )


def _length(results: Results) -> str | None:
    _, lengths = results.curve("ppo", "completions/mean_length")
    _, scores = results.curve("ppo", "objective/scores")
    late, score = _late(results, "completions/mean_length"), _late(results, "objective/scores")
    if late is None or score is None or score <= scores[0]:
        return None
    if lengths[0] / LENGTH_FACTOR <= late <= lengths[0] * LENGTH_FACTOR:
        return None
    return (
        f"The score rose while responses went from {show_number(lengths[0])} to {show_number(late)} tokens: "
        "the reward model may be scoring length. Look at samples; ppo.length_penalty counters it."
    )


def _repetition(results: Results) -> str | None:
    if results.evaluation:
        kind = "held-out answers"
        sft, ppo = ([str(row[role]) for row in results.evaluation] for role in ("sft", "ppo"))
    else:  # it has not ended: the samples of the training prompts, from the first iterations and the last
        kind = "latest samples"
        texts = [str(row["response"]) for row in results.samples]
        quarter = round(len(texts) * LATE_SHARE)
        sft, ppo = texts[:quarter], texts[-quarter:]
        if quarter < FEW_SAMPLES:
            return None
    before, after = (fmean(map(repeated_bigrams, texts)) for texts in (sft, ppo))
    if after <= before + REPEATED_LIMIT:
        return None
    return (
        f"PPO's {kind} repeat themselves: {after:.0%} of their word pairs come again, {before:.0%} at "
        "first. That is a common way to please a reward model and nobody else."
    )


def _few_prompts(results: Results) -> str | None:
    count = len(results.evaluation)
    if not results.finished("ppo") or not 0 < count < FEW_PROMPTS:
        return None
    return f"Only {count} held-out prompts were judged: bootstrap intervals over so few are too narrow."


def _not_finite(results: Results, stage: Stage) -> str | None:
    """Training metrics only: an evaluation of nothing is NaN by right."""
    bad = [(row["step"], name) for row in results.metrics[stage] for name in row if row[name] is None]
    bad = [(step, name) for step, name in bad if not name.startswith("eval/")]
    if not bad:
        return None
    steps = len({step for step, _ in bad})
    return f"{bad[0][1]} of stage {stage} was not a finite number at step {bad[0][0]} ({steps} such steps)."


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
            sentences.append(f"Stage {stage} was trained on another {upstream} adapter than the present one.")
    return sentences


def _late(results: Results, name: str) -> float | None:
    """Mean of a PPO metric over the last quarter of the logged iterations."""
    _, values = results.curve("ppo", name)
    return fmean(values[-max(1, round(len(values) * LATE_SHARE)) :]) if values else None


OF_RUN = (
    *(
        _sft,
        _accuracy,
        _gold,
        _gold_meanwhile,
        _kl,
        _runaway,
        _cut,
        _ratio,
        _entropy,
        _clipped,
        _length,
        _repetition,
    ),
    *(_critic, _few_prompts),
)


def missing(results: Results) -> list[str]:
    """A sentence for each thing that the report would show if the run had it."""
    sentences = [sentence for stage in STAGES if (sentence := _unfinished(results, stage))]
    checks: tuple[Callable[[Results], str | None], ...] = (_no_held_out_loss, _no_accuracy, _no_judgement)
    return sentences + [sentence for check in checks if (sentence := check(results))]


def _unfinished(results: Results, stage: Stage) -> str | None:
    if results.finished(stage):
        return None
    if stage not in results.manifests:
        return f"Stage {stage} has not run."
    manifest = results.manifests[stage]
    if manifest.status == "running":
        state = "is still running" if results.run.is_locked(stage) else "was killed"
    else:
        state = "failed" if manifest.status == "failed" else f"was {manifest.status}"
    error = f" ({manifest.error})" if manifest.error else ""
    return f"Stage {stage} {state}{error}; its final figures are not there, its curves go as far as it got."


def _no_held_out_loss(results: Results) -> str | None:
    if not results.finished("sft") or "eval_loss" in results.figures("sft"):
        return None
    return "SFT has no held-out loss, because no demonstrations were held out (data.sft.held_out)."


def _no_accuracy(results: Results) -> str | None:
    if not results.finished("rm") or "accuracy" in results.figures("rm"):
        return None
    return "The reward model has no held-out accuracy, because no rankings were held out (data.rm.held_out)."


def _no_judgement(results: Results) -> str | None:
    if not results.finished("ppo"):
        return None
    if not results.evaluation:
        return "Base, SFT and PPO were not compared, because no prompts were held out (data.ppo.held_out)."
    if "gold_ppo" not in results.figures("ppo"):
        return (
            "There is no gold score, because no judge is set (ppo.judge). The reward model's score, which "
            "PPO optimised, cannot show whether the answers got better."
        )
    return None
