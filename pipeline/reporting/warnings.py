"""Warnings about a run: fixed rules that recognise common signs of trouble.

A rule is data: when it warns, what it says, and what to do. `symptoms` measures whether it applies.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.reporting import symptoms
from pipeline.reporting.symptoms import Symptom
from pipeline.state.results import Results
from pipeline.terminal.summary import FEW_PROMPTS, FEW_STEPS, MIN_PROMPTS, MIN_STEPS
from stages.maths.advantages import MIN_SIGNAL

LATE = "In the last quarter of PPO"


@dataclass(frozen=True)
class Rule:
    """One kind of warning.

    Attributes:
        name: short, for links.
        condition: when it warns, in words.
        message: what it says. Words in braces are figures of the symptom.
        remedy: what to do; may have such words, too.
        symptom: yields the figures for each time that the rule applies to a run.
    """

    name: str
    condition: str
    message: str
    remedy: str
    symptom: Symptom


def warnings(results: Results) -> list[str]:
    """One message for each time that a rule applies. Empty if nothing looks wrong."""
    return [
        f"{rule.message} {rule.remedy}".rstrip().format_map(figures)
        for rule in RULES
        for figures in rule.symptom(results)
    ]


RULES = (
    Rule(
        "sft-learned-nothing",
        "SFT did not lower the held-out loss.",
        "SFT did not lower the held-out loss ({before} before, {after} after): SFT learned nothing, or it "
        "memorised the demonstrations.",
        "Raise sft.learning_rate if the training loss is flat, or lower sft.epochs if it falls.",
        symptoms.loss_not_lower,
    ),
    Rule(
        "reward-model-guesses",
        "The interval of the reward model's held-out accuracy includes 0.5, which is guessing, or lies "
        "below.",
        "The reward model's accuracy on held-out rankings is {accuracy}, which is not clearly above 0.5. "
        "It may be guessing, and PPO would optimise noise.",
        "Give it more or cleaner rankings, or another labeller.",
        symptoms.accuracy_near_guessing,
    ),
    Rule(
        "labellers-disagree",
        "The interval of the agreement of two labellers includes 0.5, which is chance, or lies below.",
        "Two labellers agree on {agreement} of the pairs of answers, which is not clearly above 0.5. "
        "No reward model can learn what they do not agree about.",
        "Make the instructions for labellers clearer, let more prompts overlap, or drop ties.",
        symptoms.labellers_disagree,
    ),
    Rule(
        "gold-fell",
        "PPO's gold interval lies below SFT's.",
        "The gold score fell from {sft} (SFT) to {ppo} (PPO). PPO made the answers worse.{over_optimised}",
        "Raise ppo.kl_coef, stop earlier, or improve the reward.",
        symptoms.gold_fell,
    ),
    Rule(
        "gold-unclear",
        "The gold intervals of PPO and SFT overlap.",
        "The gold intervals of SFT, {sft}, and PPO, {ppo}, overlap. By this measure PPO is not clearly "
        "better than SFT.{over_optimised}",
        "Hold out more prompts. More ppo.iterations help only if eval/gold still rises.",
        symptoms.gold_overlaps,
    ),
    Rule(
        "over-optimised",
        "While PPO runs, the reward of held-out answers rose and the gold score fell by more than "
        f"{symptoms.GOLD_MARGIN:g}.",
        "Up to iteration {step} of PPO, the reward of held-out answers rose from {first_score} to {score} "
        "while the gold score fell from {first_gold} to {gold}. The reward is over-optimised.",
        "Raise ppo.kl_coef.",
        symptoms.gold_falls_while_reward_rises,
    ),
    Rule(
        "kl-high",
        f"The KL to the reference (by default SFT) is above {symptoms.MAX_KL:.0f} nats per response.",
        "The KL {where} is {kl} nats per response{beyond}, above {limit}. The policy is far from "
        "{reference}, where a reward model has little data.",
        "Raise ppo.kl_coef or stop earlier.",
        symptoms.kl_high,
    ),
    Rule(
        "kl-negative",
        "The KL to the reference is significantly below 0.",
        "The KL {where} is {kl} nats per response. A KL cannot be negative, so responses and "
        "log-probabilities do not come from the same policy.",
        "Look at rollout/logprob_difference, and set ppo.old_logprobs to recomputed.",
        symptoms.kl_negative,
    ),
    Rule(
        "kl-runs-away",
        f"{LATE}, the KL is over {symptoms.RUNAWAY_KL_FACTOR:g} times the KL of the quarter before, and "
        f"above {symptoms.RUNAWAY_MIN_KL:g} nats.",
        "The KL keeps rising fast: {late} nats per response in the last quarter of PPO, {before} in the "
        "quarter before.",
        "Raise ppo.kl_coef, or set ppo.kl_target or ppo.max_kl.",
        symptoms.kl_runs_away,
    ),
    Rule(
        "truncated",
        f"{LATE}, over {symptoms.MAX_TRUNCATED_SHARE:.0%} of the responses reached the length limit.",
        f"{LATE}, {{share}} of the responses reached the limit of {{limit}} tokens without ending their "
        "turn. Scores and lengths describe truncated texts.",
        "Raise ppo.rollout.max_new_tokens or ppo.missing_eos_penalty.",
        symptoms.truncated,
    ),
    Rule(
        "ratio-far-from-1",
        "The mean probability ratio of an iteration is more than "
        f"{symptoms.MAX_RATIO_DISTANCE:g} away from 1.",
        "The mean probability ratio was {ratio} at iteration {step}, far from 1. Updates left the region "
        "that the samples cover.",
        "Lower ppo.learning_rate or ppo.epochs.",
        symptoms.ratio_far_from_one,
    ),
    Rule(
        "entropy-collapsed",
        f"{LATE}, the entropy is below {symptoms.MIN_ENTROPY_SHARE:.0%} of its first value.",
        "The entropy has collapsed, from {first} to {late} nats per token. Samples are nearly all the "
        "same, so PPO has little to learn from.",
        "Raise ppo.kl_coef or ppo.entropy_coef, or lower ppo.learning_rate.",
        symptoms.entropy_collapsed,
    ),
    Rule(
        "support-collapsed",
        f"{LATE}, top-k and top-p keep fewer than {symptoms.MIN_SUPPORT_SHARE:.0%} of the tokens that they "
        "kept at first.",
        "Top-k and top-p keep {late} tokens to sample from, {first} at first. The policy explores little, "
        "and tokens outside get no gradient.",
        "Raise ppo.kl_coef, or sample with ppo.rollout.temperature in place of top_p.",
        symptoms.support_collapsed,
    ),
    Rule(
        "updates-clipped",
        f"{LATE}, over {symptoms.MAX_CLIPPED_SHARE:.0%} of the tokens' ratios were clipped.",
        f"{LATE}, {{share}} of the tokens' ratios were clipped. Updates are too large for the rollouts.",
        "Lower ppo.learning_rate or ppo.epochs.",
        symptoms.updates_clipped,
    ),
    Rule(
        "length-changed",
        "In PPO the score rose while the response length changed by a factor of over "
        f"{symptoms.LENGTH_FACTOR:g}.",
        "The score rose while responses went from {first} to {late} tokens. The reward may score length.",
        "Look at samples; ppo.length_penalty counters it.",
        symptoms.length_changed,
    ),
    Rule(
        "repetition",
        f"PPO's held-out answers repeat over {symptoms.MAX_MORE_REPETITION:.0%} more of their word pairs "
        "than SFT's. While PPO runs, the last quarter of its samples is compared with the first.",
        "PPO's {kind} repeat themselves: {after} of their word pairs are repetitions, {before} at first. "
        "Repetition often pleases a reward model and nobody else.",
        "Raise ppo.kl_coef, or punish repetition by a term in ppo.rewards.",
        symptoms.repetition,
    ),
    Rule(
        "ensemble-disagrees",
        f"{LATE}, the deviation between the members of the reward model is over "
        f"{symptoms.DISAGREEMENT_FACTOR:g} times its first value.",
        "The reward models of the ensemble agree less about the policy's answers than at first: their scores "
        "deviate by {late} in the last quarter of PPO, by {first} at first. The answers are unlike those "
        "that the reward models learned from.",
        "Raise ppo.kl_coef, stop earlier, or set ppo.ensemble to min or mean_minus_deviation.",
        symptoms.ensemble_disagrees,
    ),
    Rule(
        "critic-useless",
        f"{LATE}, the critic's explained variance is below 0.",
        f"{LATE} the critic's explained variance is {{variance}}, below 0. Its values are worse than a "
        "constant, so advantages are noisy.",
        "Raise ppo.critic_warmup or ppo.critic_learning_rate.",
        symptoms.critic_useless,
    ),
    Rule(
        "no-signal",
        f"In over {symptoms.MAX_HELD_SHARE:.0%} of PPO's iterations, `objective/reward_signal` is below "
        f"{MIN_SIGNAL:g}, and `ppo.whiten_advantages` is true.",
        f"In {{held}} of PPO's iterations the rewards varied by less than {MIN_SIGNAL:g} times the "
        "advantages (on average {signal} times). Whitening sets such advantages to 0, so the policy did not "
        "learn there.",
        "If the rewards vary, set ppo.normalize_rewards to true or raise their weight. If they do not, give "
        "a reward that tells answers apart.",
        symptoms.policy_held,
    ),
    Rule(
        "not-finite",
        "A training metric was not a finite number.",
        "{metric} of stage {stage} was not a finite number at step {step} ({steps} such steps).",
        "Lower {stage}.learning_rate, or set base.compute_dtype to float32.",
        symptoms.not_finite,
    ),
    Rule(
        "other-settings",
        "A stage was trained with other settings than the run directory now holds.",
        "Stage {stage} was trained with other settings than config.yaml has: {changes}.",
        "Run it again, or restore them.",
        symptoms.other_settings,
    ),
    Rule(
        "other-upstream",
        "A stage was trained on another adapter than the run directory now holds.",
        "Stage {stage} was trained on another {upstream} adapter than the current one.",
        "Run it again.",
        symptoms.other_upstream,
    ),
    Rule(
        "few-steps",
        f"A stage made fewer than {MIN_STEPS} optimizer steps (PPO: iterations).",
        FEW_STEPS,
        "",
        symptoms.few_steps,
    ),
    Rule(
        "few-prompts",
        f"A held-out figure comes from fewer than {MIN_PROMPTS} prompts.",
        FEW_PROMPTS,
        "",
        symptoms.few_prompts,
    ),
    Rule(
        "record-changed",
        "A file of metrics, samples or answers differs from what its stage wrote.",
        "{fault}.",
        "Restore the file from a backup.",
        symptoms.record_changed,
    ),
)
