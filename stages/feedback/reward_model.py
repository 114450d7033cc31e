"""Scores of sampled responses by the reward model, in its own tokens if the two tokenizers differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from configs.schema import Data
from data.batches import tokenize
from data.batches.encoding import encoder_of
from data.batches.tokenize import Prompt
from data.sources.messages import Message, Text
from stages.distributed.ranks import Ranks
from stages.maths.ensembles import combined
from stages.models.adapter_files import Ending
from stages.models.queries import ScalarQuery
from stages.models.role_models import RoleModels
from stages.models.roles import Role
from stages.sampling.decoding import Response
from stages.sampling.response_batch import pooled, response_batch

Row = dict[str, Any]
Rows = Sequence[tuple[list[int], list[int]]]  # prompts and answers, in the reward model's own tokens
ANY_TOKEN = -1
EXCHANGE: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]


@torch.no_grad()
def member_scores(models: RoleModels, rows: Rows, device: torch.device) -> Tensor:
    """The score of each prompt and answer by each member of the reward model, in one batch: (M, B), fp32."""
    head = models.reward_base.head(Role.REWARD)  # all members read alike
    prompt_ids, answer_ids = zip(*((prompt, head.read(answer)) for prompt, answer in rows), strict=True)
    batch = response_batch(prompt_ids, answer_ids, models.reward_tokenizer.pad_token_id, device)
    query = ScalarQuery(Role.REWARD, batch.input_ids, batch.attention_mask, start=batch.start)
    return torch.stack([pooled(values, batch, head.pooling) for values in models.member_scalars(query)])


def score_tokens(models: RoleModels, rows: Rows, device: torch.device) -> Tensor:
    """The score of each prompt and answer, of an ensemble the mean, in one batch: (B,), fp32."""
    return combined(member_scores(models, rows, device), "mean")


def classifier_ending(tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> Ending | None:
    """What a sequence classifier reads in place of the end of a turn; None for that token.

    It reads its score at the last token that is not padding. A chat template may write more after the end of
    a turn, and the end of a turn may be the padding. TRL's trainer adds an end if the template writes none.
    """
    end, pad = tokenize.end_of_turn(tokenizer), tokenizer.pad_token_id
    ids = [ANY_TOKEN]
    if chat:
        (ids,) = encoder_of(tokenizer).conversations([(EXCHANGE, False)], "rm.from")
    ids = ids if end in ids[1:] else [*ids, end]
    last_end = len(ids) - 1 - ids[::-1].index(end)
    ending = ids[last_end:]
    while ending and ending[-1] == pad:
        ending.pop()
    return None if ending == [end] else Ending(end, tuple(ending))


class RewardModel:
    """Scores of responses by the reward model.

    If the tokenizers differ, prompt and response are encoded again from their text, with the chat template of
    the reward model's tokenizer. Of an ensemble, `how` and `coef` make one score (see `combined`).
    """

    def __init__(
        self, models: RoleModels, ranks: Ranks, data: Data, how: str = "mean", coef: float = 1.0
    ) -> None:
        self.models, self.ranks, self.data = models, ranks, data
        self.how, self.coef = how, coef

    @property
    def is_ensemble(self) -> bool:
        return len(self.models.reward_members) > 1

    def of_members(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> Tensor:
        """The score of each response by each member, in one batch of this rank: (M, B), fp32."""
        rows = [self._read(prompt, response.ids) for prompt, response in zip(prompts, responses, strict=True)]
        return member_scores(self.models, rows, self.ranks.device)

    def combine(self, scores: Tensor) -> Tensor:
        """One score of the members' scores, (M, B): (B,)."""
        return combined(scores, self.how, self.coef)

    def score_on_all_ranks(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], size: int
    ) -> list[float]:
        """Share the work among ranks, `size` at once on a rank: every rank gets all scores, in order."""
        rows = self.members_on_all_ranks(prompts, responses, size)
        scores: list[float] = self.combine(torch.tensor(rows).T).tolist() if rows else []
        return scores

    def members_on_all_ranks(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], size: int
    ) -> list[list[float]]:
        """As `score_on_all_ranks`, with the scores of all members for each response."""

        def score(pairs: list[tuple[Prompt, Response]]) -> list[list[float]]:
            return self.of_members(*zip(*pairs, strict=True)).T.tolist()

        return self.ranks.map_in_order(list(zip(prompts, responses, strict=True)), size, score)

    def rankings(self, rows: Sequence[Row]) -> list[Row]:
        """Collected rankings with `completion_ids` in the reward model's tokens instead of the policy's.

        Answers that no policy sampled have none. They are encoded as text.
        """
        if self.models.shares_tokens:
            return list(rows)
        return [
            row | {"completion_ids": [self._encode(row["prompt"], ids)[1] for ids in row["completion_ids"]]}
            if "completion_ids" in row
            else row
            for row in rows
        ]

    def _read(self, prompt: Prompt, ids: list[int]) -> tuple[list[int], list[int]]:
        """Prompt and response as the reward model reads them."""
        return (prompt.prompt_ids, ids) if self.models.shares_tokens else self._encode(prompt.prompt, ids)

    def _encode(self, prompt: Text, ids: list[int]) -> tuple[list[int], list[int]]:
        tokenizer = self.models.tokenizer
        text = tokenizer.decode(ids, skip_special_tokens=True)
        ended = ids[-1] == tokenizer.eos_token_id
        return tokenize.answer(prompt, text, ended, self.models.reward_tokenizer, self.data)
