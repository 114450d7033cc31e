"""The training of one reward model: gradients on ranked completions, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from configs.schema import RankingLoss
from data.batches import collate, tokenize
from data.batches.pack import level_rows
from data.batches.sampler import micro_batches, rank_share
from stages.feedback.reward_loss import labels_of, reward_loss
from stages.maths.statistics import Mean, Means, add_means
from stages.models.queries import ScalarQuery
from stages.models.role_models import RoleModels
from stages.models.roles import Role
from stages.sampling.response_batch import response_batch, sequence_scores
from stages.training.engine import Engine
from stages.training.padding import Rows, padding
from stages.training.throughput import Meter

DEFAULT_LOSS = RankingLoss()
Row = list[tokenize.Ranking]  # the rankings in one row of a forward


class RewardModelTrainer:
    """Gradients and scores of one reward model on ranked completions.

    With `share_prompts`, a prompt is forwarded once for all of its completions; the base must support block
    masks for that. Otherwise it is forwarded once per completion. With `packing` as well, short rankings of a
    batch share a row.
    """

    def __init__(
        self,
        engine: Engine,
        pad_id: int,
        micro_batch_size: int,
        share_prompts: bool,
        loss: RankingLoss = DEFAULT_LOSS,
        role: str = Role.REWARD,
        packing: bool = False,
    ) -> None:
        self.engine, self.pad_id, self.micro_batch_size = engine, pad_id, micro_batch_size
        self.share_prompts, self.loss, self.role = share_prompts, loss, role
        self.packing = packing
        self.meter = Meter()

    def padding(self, batch: Sequence[tokenize.Ranking]) -> Mean:
        """The share of padding in the forwards of one global batch, on all ranks."""
        return padding(chain.from_iterable(self._forwards(batch, self.packing)), self._sizes)

    def plain_padding(self, batch: Sequence[tokenize.Ranking]) -> Mean:
        """The same without packing."""
        return padding(chain.from_iterable(self._forwards(batch, packing=False)), self._sizes)

    def _sizes(self, row: Row) -> Rows:
        """Tokens on each side of where the rows of a forward are aligned, of each that `row` becomes."""
        if self.share_prompts:
            return [(sum(map(self.tokens, row)), 0)]
        return [(len(ranking.prompt_ids), len(ids)) for ranking in row for ids in ranking.completion_ids]

    def _forwards(self, batch: Sequence[tokenize.Ranking], packing: bool) -> list[list[list[Row]]]:
        """The forwards of each rank: their rows, and the rankings in each row. All ranks have as many."""
        world = self.engine.ranks.world
        shares = [rank_share(batch, rank, world) for rank in range(world)]
        rows = [[[ranking] for ranking in share] for share in shares]
        if packing:
            numbers = level_rows([[*map(self.tokens, share)] for share in shares])
            rows = [
                [[share[number] for number in row] for row in of_share]
                for share, of_share in zip(shares, numbers, strict=True)
            ]
        return [micro_batches(of_share, self._prompts_at_once(batch)) for of_share in rows]

    def accumulate(self, batch: Sequence[tokenize.Ranking]) -> Means:
        """Add the gradients of a global batch; returns the metrics of this rank's share."""
        forwards = self._forwards(batch, self.packing)[self.engine.ranks.rank]
        self.meter.add(sum(map(self.tokens, batch)))
        return add_means(self._backward(rows, len(batch)) for rows in forwards)

    def _backward(self, rows: Sequence[Row], rankings: int) -> Means:
        """Accumulate gradients on one forward of a batch of `rankings`."""
        scores, order = self._scores(self.engine, rows)
        labels = labels_of([*chain.from_iterable(rows)], self.engine.ranks.device)
        loss, means = reward_loss(self.loss, scores, order, labels, rankings)
        self.engine.backward(loss)
        return means

    @torch.no_grad()
    def scores_of(self, rankings: Sequence[tokenize.Ranking]) -> list[list[float]]:
        """The score of each completion of each ranking, as it is: before normalisation."""

        def score(some: Sequence[tokenize.Ranking]) -> list[list[float]]:
            scores, order = self._scores(self.engine.models, [[ranking] for ranking in some])
            return [row[places >= 0].tolist() for row, places in zip(scores, order, strict=True)]

        return self.engine.ranks.map_in_order(rankings, self._prompts_at_once(rankings), score)

    def _prompts_at_once(self, batch: Sequence[tokenize.Ranking]) -> int:
        return max(1, self.micro_batch_size // max(len(ranking.completion_ids) for ranking in batch))

    def _scores(self, model: Engine | RoleModels, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Scores and ranks of the completions of G rankings in rows, (G, K); rank -1 marks an empty slot."""
        rankings = [*chain.from_iterable(rows)]
        device, head = self.engine.ranks.device, self.engine.models.reward_base.head(self.role)
        ranks = [torch.tensor(ranking.ranks, device=device) for ranking in rankings]
        order = pad_sequence(ranks, batch_first=True, padding_value=-1)
        if self.share_prompts:
            items = [(ranking.prompt_ids, [*map(head.read, ranking.completion_ids)]) for ranking in rankings]
            numbers = iter(range(len(items)))
            batch = collate.rankings(items, self.pad_id, [[*islice(numbers, len(row))] for row in rows])
            batch = batch.to(device)
            query = ScalarQuery(self.role, batch.input_ids, batch.attention_mask, batch.position_ids)
            values = model(query)
            return batch.means(values) if head.pooling == "mean" else batch.at_last(values), order
        prompts = [ranking.prompt_ids for ranking in rankings for _ in ranking.completion_ids]
        completions = [head.read(ids) for ranking in rankings for ids in ranking.completion_ids]
        answers = response_batch(prompts, completions, self.pad_id, device)
        flat = sequence_scores(model, self.role, answers, head.pooling)
        scores = flat.split([len(ranking.completion_ids) for ranking in rankings])
        return pad_sequence(list(scores), batch_first=True), order

    def tokens(self, ranking: tokenize.Ranking) -> int:
        """Number of tokens to forward."""
        times = 1 if self.share_prompts else len(ranking.completion_ids)
        return times * len(ranking.prompt_ids) + sum(map(len, ranking.completion_ids))
