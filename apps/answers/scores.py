"""The reward model's score of an answer to a prompt, both given as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from apps.answers.prompts import as_prompt, window
from apps.trained_run import LoadedPolicies, TrainedRun
from configs.errors import UserError
from data.batches import tokenize
from data.sources.bad_rows import BadRow
from data.sources.messages import Text
from stages.feedback.reward_model import score_tokens


class Pair(NamedTuple):
    """Token ids of a prompt and of its answer."""

    prompt_ids: list[int]
    answer_ids: list[int]


class Scorer:
    """Scores answers. What is longer than the window is cut, as `data.overlong: truncate` does.

    Then at most half of the window is for the prompt's end.
    """

    def __init__(self, run: TrainedRun, loaded: LoadedPolicies) -> None:
        self._models = loaded.models
        self._tokenizer = loaded.models.reward_tokenizer
        self._longest = longest = window(loaded.models.reward_base)
        data = run.config.data.model_copy(update={"chat": run.chat})
        self._whole = data.model_copy(update={"max_length": 2 * longest, "max_prompt_length": longest})
        self._cut = data.model_copy(update={"max_length": longest, "max_prompt_length": longest // 2})

    def encode(self, prompt: Text, answer: str, *, ended: bool = True) -> Pair:
        """Tokens of a prompt and its answer.

        Args:
            ended: the answer ended its turn. If not, it has no end-of-turn token, as in PPO.

        Raises:
            UserError: no tokenizer can read them, or the prompt is empty.
        """
        try:
            prompt = as_prompt(prompt, "prompt")
        except BadRow as error:
            raise UserError(f"{error}.") from error
        pair = Pair(*tokenize.answer(prompt, answer, ended, self._tokenizer, self._whole))
        if sum(map(len, pair)) <= self._longest:
            return pair
        return Pair(*tokenize.answer(prompt, answer, ended, self._tokenizer, self._cut))

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """The score of each answer, in one batch. Of the SFT policy, the mean is 0 and the deviation 1."""
        device = self._models.reward_base.causal.device
        scores: list[float] = score_tokens(self._models, pairs, device).tolist()
        return scores
