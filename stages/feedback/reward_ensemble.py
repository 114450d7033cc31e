"""An ensemble of reward models that train side by side: a step is one of every member (Coste et al. 2023).

Members have heads and orders of their own. Their adapters share the base, one optimizer, one schedule and one
checkpoint. With one member, all of this is that member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from configs.schema import Epochs
from data.batches.sampler import Lengths, global_batch, seed_from
from data.batches.tokenize import Ranking
from data.sources.split import prompt_key
from stages.feedback.reward_loss import labels_of, reward_loss
from stages.feedback.reward_training import RewardModelTrainer
from stages.maths.ensembles import deviation, standardized
from stages.maths.statistics import Mean, add_means, mean_with_interval, means_by
from stages.training.metrics import reduce_means
from stages.training.padding import Batching, padding_metrics

Scores = list[list[float]]  # of each answer of each ranking
FIGURES = ("accuracy", "margin", "loss")


class RewardEnsemble:
    """Steps and evaluation of all members together.

    Args:
        members: trainers that share one engine. All count in the meter of the first one.
        batch_size: rankings of each member in a step, on all ranks together.
        seed: of the orders in which the other members see the rankings.
        lengths: of the training rankings in tokens, if batches are grouped by them.
    """

    def __init__(
        self,
        members: Sequence[RewardModelTrainer],
        batch_size: int,
        seed: int,
        lengths: Lengths | None = None,
    ) -> None:
        self.members, self.batch_size, self.seed, self.lengths = members, batch_size, seed, lengths
        self.engine, self.meter = members[0].engine, members[0].meter
        for member in members:
            member.meter = self.meter

    def step(self, step: int, train: Sequence[Ranking], picks: Sequence[int]) -> dict[str, float]:
        """Update every member, and return the metrics: means over prompts and members.

        Args:
            picks: the batch of the first member. The others draw theirs in orders of their own.
        """
        orders = [self._order(number, len(train), step) or picks for number in range(len(self.members))]
        return joint_step(self.members, [[train[i] for i in order] for order in orders])

    def padding_metrics(self, training: Epochs, seed: int, train: Sequence[Ranking]) -> dict[str, float]:
        """The share of padding in an epoch of the first member, and without grouping or packing."""
        first = self.members[0]
        used = Batching(train, first.padding, self.lengths)
        plain = Batching(train, first.plain_padding if first.packing else first.padding)
        return padding_metrics(training, seed, used, plain)

    def _order(self, number: int, size: int, step: int) -> list[int]:
        """The batch of member `number`; empty for the first one, which has the stage's own."""
        seed = seed_from(self.seed, "rm order", number)
        return global_batch(size, self.batch_size, seed, step, self.lengths) if number else []

    def evaluate(self, held_out: Sequence[Ranking]) -> dict[str, float]:
        """Accuracy, margin and loss on held-out rankings, with intervals over prompts.

        The score is the mean of the members. Several also have the accuracy of each, and `disagreement`: the
        deviation between members, each standardised over all answers.
        """
        if not held_out:
            return {}
        models = self.engine.models
        models.eval()
        of_members = [member.scores_of(held_out) for member in self.members]
        models.train()
        found = self._figures(held_out, mean_of(of_members), FIGURES)
        if len(of_members) == 1:
            return found
        for number, scores in enumerate(of_members, start=1):
            accuracy = self._figures(held_out, scores, ("accuracy",))
            found |= {
                name.replace("accuracy", f"accuracy_member_{number}"): v for name, v in accuracy.items()
            }
        return found | mean_with_interval("disagreement", disagreement(of_members))

    def scores_of(self, rankings: Sequence[Ranking]) -> Scores:
        """The score of each completion of each ranking, before normalisation: the mean of the members."""
        return mean_of([member.scores_of(rankings) for member in self.members])

    def _figures(self, held_out: Sequence[Ranking], scores: Scores, names: Sequence[str]) -> dict[str, float]:
        rows = [
            reward_loss(
                self.members[0].loss,
                torch.tensor([of_one]),
                torch.tensor([one.ranks]),
                labels_of([one], torch.device("cpu")),
                1,
            )[1]
            for one, of_one in zip(held_out, scores, strict=True)
        ]
        return figures_by_prompt(held_out, [{name: row[name].value for name in names} for row in rows], names)


def joint_step(
    members: Sequence[RewardModelTrainer], batches: Sequence[Sequence[Ranking]]
) -> dict[str, float]:
    """Update every member on its global batch. Returns the metrics: means over prompts and members."""
    pairs, engine = [*zip(members, batches, strict=True)], members[0].engine
    means = add_means(member.accumulate(batch) for member, batch in pairs)
    padding = sum((member.padding(batch) for member, batch in pairs), Mean(0, 0))
    learning_rate = engine.learning_rate(members[0].role)
    engine.step()
    rates = {"learning_rate": learning_rate, "grad_norm": engine.grad_norm}
    return reduce_means(means, engine.ranks) | rates | {"padding": padding.value}


def figures_by_prompt(
    rankings: Sequence[Ranking], rows: Sequence[Mapping[str, float]], names: Sequence[str]
) -> dict[str, float]:
    """Means over prompts, with intervals: several rankings of a prompt count as one."""
    prompts = [prompt_key(ranking.prompt) for ranking in rankings]
    found: dict[str, float] = {}
    for name in names:
        found |= mean_with_interval(name, means_by(prompts, [row[name] for row in rows]))
    return found


def mean_of(of_members: Sequence[Scores]) -> Scores:
    """The mean of the members' scores of each answer; of one member, its own.

    Members count alike, as they do for PPO: each is brought to the mean of their deviations over all answers.
    """
    if len(of_members) == 1:
        return of_members[0]
    scores = flat(of_members)
    common = scores.std(1, correction=0).mean() * standardized(scores).mean(0) + scores.mean()
    return [part.tolist() for part in common.split([len(row) for row in of_members[0]])]


def flat(of_members: Sequence[Scores]) -> Tensor:
    """The members' scores of the answers to all prompts, one after another: (M, B)."""
    return torch.tensor([[value for row in rows for value in row] for rows in of_members])


def disagreement(of_members: Sequence[Scores]) -> list[float]:
    """Of each ranking, the mean deviation between members over its answers, on a common scale."""
    scores = flat(of_members)
    counts = [len(row) for row in of_members[0]]
    return [float(part.mean()) for part in deviation(standardized(scores)).split(counts)]
