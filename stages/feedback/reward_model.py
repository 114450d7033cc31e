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
from stages.models.adapter_files import Ending
from stages.models.role_models import RoleModels
from stages.models.roles import Role
from stages.sampling.decoding import Response
from stages.sampling.response_batch import response_batch, sequence_scores

Row = dict[str, Any]
ANY_TOKEN = -1
EXCHANGE: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]


@torch.no_grad()
def score_tokens(
    models: RoleModels, rows: Sequence[tuple[list[int], list[int]]], device: torch.device
) -> Tensor:
    """The score of each prompt and answer, in the reward model's own tokens, in one batch: (B,), fp32."""
    head = models.reward_base.head(Role.REWARD)
    prompt_ids, answer_ids = zip(*((prompt, head.read(answer)) for prompt, answer in rows), strict=True)
    batch = response_batch(prompt_ids, answer_ids, models.reward_tokenizer.pad_token_id, device)
    return sequence_scores(models, Role.REWARD, batch)


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
    the reward model's tokenizer.
    """

    def __init__(self, models: RoleModels, ranks: Ranks, data: Data) -> None:
        self.models, self.ranks, self.data = models, ranks, data

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> Tensor:
        """The score of each response in one batch of this rank: (B,), fp32."""
        rows = [self._read(prompt, response.ids) for prompt, response in zip(prompts, responses, strict=True)]
        return score_tokens(self.models, rows, self.ranks.device)

    def score_on_all_ranks(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], size: int
    ) -> list[float]:
        """Share the work among ranks, `size` at once on a rank: every rank gets all scores, in order."""

        def score(pairs: list[tuple[Prompt, Response]]) -> list[float]:
            return self(*zip(*pairs, strict=True)).tolist()

        return self.ranks.map_in_order(list(zip(prompts, responses, strict=True)), size, score)

    def rankings(self, rows: Sequence[Row]) -> list[Row]:
        """Collected rankings with `completion_ids` in the reward model's tokens instead of the policy's."""
        if self.models.shares_tokens:
            return list(rows)
        return [
            row | {"completion_ids": [self._encode(row["prompt"], ids)[1] for ids in row["completion_ids"]]}
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
