"""The policy on held-out prompts: reward, KL, and a gold judge that PPO never sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from data.batches import tokenize
from data.batches.sampler import seed_from
from data.sources.messages import recorded
from data.storage.files import write_json_lines
from stages.context import Context
from stages.feedback.judgements import Judgement, by_name
from stages.feedback.labellers import labeller
from stages.feedback.reward_model import RewardModel
from stages.feedback.rewards import Rewards
from stages.maths.ensembles import deviation
from stages.maths.statistics import mean_with_interval, wins
from stages.models.roles import Role
from stages.sampling.decoding import Response
from stages.sampling.response_batch import response_kl
from stages.sampling.sampler import Sampler


@dataclass(frozen=True)
class Answers:
    """One role's answers to the held-out prompts.

    Attributes:
        terms: of each answer, the terms of the reward by label.
        kl: to the reference, in nats.
        lengths: in tokens.
        disagreement: of each answer, the deviation between members of the reward model; empty if it is one.
    """

    texts: list[str]
    terms: dict[str, list[float]]
    kl: list[float]
    lengths: list[int]
    disagreement: list[float] = field(default_factory=list)


def answer(
    context: Context,
    sampler: Sampler,
    reward_model: RewardModel,
    rewards: Rewards,
    role: str,
    prompts: Sequence[tokenize.Prompt],
) -> Answers:
    """Sample one answer of `role` to each prompt. The noise is the same for every role and at every step."""
    roles, ranks = sampler.roles, sampler.ranks
    ids = [prompt.prompt_ids for prompt in prompts]
    seeds = [seed_from(context.seed, "judgement", i, prompt) for i, prompt in enumerate(ids)]
    context.tracker.phase(f"ppo: answers of {role} to held-out prompts", len(ids))
    responses = sampler.respond_on_all_ranks(role, ids, seeds, context.tracker.advance)

    @torch.no_grad()
    def score_and_kl(pairs: list[tuple[tokenize.Prompt, Response]]) -> list[tuple[float, float, float]]:
        some, answers = zip(*pairs, strict=True)
        batch = sampler.response_batch([prompt.prompt_ids for prompt in some], answers)
        of_members = torch.zeros(1, len(some))
        if rewards.uses_reward_model:
            of_members = reward_model.of_members(some, answers)
        scores, apart = reward_model.combine(of_members), deviation(of_members)
        kl = response_kl(roles, role, Role.REFERENCE, batch)
        return list(zip(scores.tolist(), kl.tolist(), apart.tolist(), strict=True))

    pairs = list(zip(prompts, responses, strict=True))
    rows = ranks.map_in_order(pairs, context.config.ppo.micro_batch_size, score_and_kl)
    texts = sampler.decode([response.ids for response in responses])
    terms = {name: [score for score, *_ in rows] for name in rewards.of_reward_model}
    measured = rewards.uses_reward_model and reward_model.is_ensemble
    at_once = context.config.ppo.batch_size // ranks.world  # as in training
    asked = ranks.map_in_order(
        list(zip([prompt.text for prompt in prompts], texts, strict=True)), at_once, rewards.of_each
    )
    terms |= {name: [row[name] for row in asked] for name in rewards.asked}
    return Answers(
        texts=texts,
        terms=terms,
        kl=[kl for _, kl, _ in rows],
        lengths=[len(response.ids) for response in responses],
        disagreement=[apart for *_, apart in rows] if measured else [],
    )


class HeldOutEvaluation:
    """The reward, term by term, and the judge on answers to the held-out prompts; empty without any."""

    def __init__(
        self,
        context: Context,
        sampler: Sampler,
        reward_model: RewardModel,
        rewards: Rewards,
        prompts: Sequence[tokenize.Prompt],
    ) -> None:
        self.context, self.sampler, self.prompts = context, sampler, prompts
        self.reward_model, self.rewards = reward_model, rewards
        self._latest: Answers | None = None
        judge = context.config.ppo.judge
        self._judge = labeller(judge, "ppo.judge", sampler.ranks) if judge else None

    def evaluate_policy(self) -> dict[str, float]:
        """Mean `score` (the sum of all terms), `kl` and `length` of the current policy over `n` prompts.

        With several terms, also the mean of each, `rewards/LABEL`. With an ensemble, also the
        `disagreement` of its members. With a judge, also `gold`, and `gold_PART` if its scores have parts.
        """
        if not self.prompts:
            return {}
        answers = self._latest = self._answer(Role.POLICY)
        means: dict[str, Sequence[float]] = {
            "score": self._total(answers),
            "kl": answers.kl,
            "length": answers.lengths,
        }
        if answers.disagreement:
            means["disagreement"] = answers.disagreement
        if len(answers.terms) > 1:
            means |= {f"rewards/{name}": values for name, values in answers.terms.items()}
        means |= by_name("gold", self._judged(answers))
        return {name: sum(values) / len(values) for name, values in means.items()} | {"n": len(self.prompts)}

    def compare_policies(self) -> dict[str, float]:
        """Compare base, SFT policy and PPO policy, and write their answers to `evaluation.jsonl`.

        The policy's answers are those of the last `evaluate_policy`, so it must not have changed since.

        Returns:
            Means with 95 % intervals over prompts. `win_rate` is the share of prompts for which the judge
            prefers the PPO answer to the SFT answer. A tie counts one half. Parts of its scores
            have `gold_PART_base`, `gold_PART_sft` and `gold_PART_ppo`. Each term of the reward has its
            `LABEL_score_sft`, `LABEL_score_ppo` and `LABEL_win_rate`. Their weighted sum, if it is more than
            the only term, has `reward_total_sft`, `reward_total_ppo` and `reward_total_win_rate`. With top-k
            or top-p, `kl_sft` is the KL of the SFT policy's truncated sampling to its full distribution;
            `kl_from` is that of the policy in `ppo.from`, if that is the reference.
        """
        if not self.prompts:
            return {}
        reference = self.context.config.ppo.reference
        answers = {
            "base": self._answer(Role.BASE),
            "sft": self._answer(Role.REFERENCE if reference == "sft" else Role.SFT),
            "ppo": self._latest or self._answer(Role.POLICY),
        }
        sft, ppo = answers["sft"], answers["ppo"]
        metrics = {
            **self._compare(sft, ppo),
            **mean_with_interval("kl", ppo.kl),
            **mean_with_interval("mean_length", ppo.lengths),
        }
        if self.sampler.rollout.truncates:
            of_reference = sft if reference == "sft" else self._answer(Role.REFERENCE)
            metrics |= mean_with_interval(f"kl_{reference}", of_reference.kl)
        for role in ("sft", "ppo"):
            if apart := answers[role].disagreement:
                metrics |= mean_with_interval(f"disagreement_{role}", apart)
        gold = self._gold_columns(answers)
        for name, scores in gold.items():
            metrics |= mean_with_interval(name, scores)
        if gold:
            metrics |= mean_with_interval("win_rate", wins(gold["gold_ppo"], gold["gold_sft"]))
        if self.sampler.ranks.rank == 0:
            self._write(answers, gold)
        return metrics

    def _compare(self, sft: Answers, ppo: Answers) -> dict[str, float]:
        """Each term of the reward on the answers of both policies, and their sum if that is no term."""
        columns = {f"{name}_score": (sft.terms[name], ppo.terms[name]) for name in sft.terms}
        if (figure := self.context.config.ppo.reward_metric) not in columns:
            columns[figure] = (self._total(sft), self._total(ppo))
        metrics: dict[str, float] = {}
        for name, (before, after) in columns.items():
            metrics |= mean_with_interval(f"{name}_sft", before)
            metrics |= mean_with_interval(f"{name}_ppo", after)
            metrics |= mean_with_interval(f"{name.removesuffix('_score')}_win_rate", wins(after, before))
        return metrics

    def _total(self, answers: Answers) -> list[float]:
        """What PPO optimises of each answer: the weighted sum of the terms, without penalties."""
        terms = {name: torch.tensor(values, dtype=torch.float64) for name, values in answers.terms.items()}
        total: list[float] = self.rewards.total(terms).tolist()
        return total

    def _judged(self, answers: Answers) -> list[Judgement]:
        """What the judge says of each answer; empty without a judge."""
        return self._judge([prompt.text for prompt in self.prompts], answers.texts) if self._judge else []

    def _gold_columns(self, answers: dict[str, Answers]) -> dict[str, list[float]]:
        """The judge's scores of each role's answers as `gold_ROLE`, and their parts as `gold_PART_ROLE`."""
        return {
            f"{name}_{role}": values
            for role, of_role in answers.items()
            for name, values in by_name("gold", self._judged(of_role)).items()
        }

    def _answer(self, role: str) -> Answers:
        return answer(self.context, self.sampler, self.reward_model, self.rewards, role, self.prompts)

    def _write(self, answers: dict[str, Answers], gold: dict[str, list[float]]) -> None:
        columns: dict[str, Sequence] = {name: of_role.texts for name, of_role in answers.items()}
        columns |= {f"score_{name}": self._total(of_role) for name, of_role in answers.items()}
        if len(self.rewards.weights) > 1:
            for name, of_role in answers.items():
                columns |= {f"{term}_score_{name}": values for term, values in of_role.terms.items()}
        columns["kl"] = answers["ppo"].kl
        columns |= gold
        values = zip(*columns.values(), strict=True)
        rows = [
            recorded(prompt.prompt) | dict(zip(columns, row, strict=True))
            for prompt, row in zip(self.prompts, values, strict=True)
        ]
        write_json_lines(self.context.folder / "evaluation.jsonl", rows)
