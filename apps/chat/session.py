"""A conversation with one policy, or with two at a time on the same prompts and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from apps.answers.answer import Answer, Order
from apps.answers.decoder import Decoder
from apps.answers.prompts import Prompts, TooLong
from apps.answers.sampling import Sampling
from apps.answers.scores import Scorer
from apps.trained_run import LoadedPolicies, TrainedRun
from data.sources.messages import Message, Text

Answers = Mapping[str, Answer]  # by the name of the policy


@dataclass
class Settings:
    """What the commands of a chat change.

    Attributes:
        sampling: of every token.
        seed: of the next answer. Each answer raises it by 1.
    """

    sampling: Sampling
    seed: int = 0


class Session:
    """The turns so far, and the models that answer.

    Attributes:
        policies: names of those that answer.
        settings: of the next answer.
    """

    def __init__(self, run: TrainedRun, loaded: LoadedPolicies, policies: Sequence[str]) -> None:
        rollout = run.config.ppo.rollout
        self.policies, self.settings = list(policies), Settings(Sampling.of_run(rollout))
        self._loaded, self._most = loaded, rollout.max_new_tokens
        self._prompts, self._decoder = Prompts(run, loaded), Decoder(loaded)
        self._scorer = Scorer(run, loaded) if loaded.reward else None
        self._turns: dict[str, list[Message]] = {}
        self.reset()

    @property
    def continues_text(self) -> bool:
        """Whether each line is a text to continue, by itself."""
        return self._prompts.continues_text

    def reset(self) -> None:
        """Forget all turns."""
        self._turns = {policy: [] for policy in self.policies}

    def answer(self, text: str, interrupted: Callable[[], bool]) -> Iterator[Answers]:
        """Let the policies answer `text`; what was said is then part of the conversation.

        Yields:
            The answers, after each step. One that was interrupted has no `finish`.

        Raises:
            UserError: no tokenizer can read the text, or the conversation is too long.
        """
        messages = {
            policy: [*turns, {"role": "user", "content": text}] for policy, turns in self._turns.items()
        }
        answers = {policy: self._decoder.answer(self._order(policy, messages[policy])) for policy in messages}
        self.settings.seed += 1
        for answer in answers.values():
            self._decoder.add(answer)
        while self._decoder.step():
            yield answers
            if interrupted():
                self._decoder.clear()
                break
        yield answers
        if not self.continues_text:
            for policy, answer in answers.items():
                said: Message = {"role": "assistant", "content": answer.text}
                self._turns[policy] = [*messages[policy], said]

    def score(self, policy: str, text: str, answer: Answer) -> float | None:
        """The reward model's score of the newest answer, to `text`; None without a reward model."""
        if self._scorer is None:
            return None
        prompt: Text = text if self.continues_text else self._turns[policy][:-1]
        return self._scorer.score([self._scorer.encode(prompt, answer.text, ended=answer.finish == "stop")])[
            0
        ]

    def _order(self, policy: str, messages: Sequence[Message]) -> Order:
        try:
            prompt_ids = self._prompts.of_messages(messages)
        except TooLong as error:
            if len(messages) == 1:
                raise
            raise TooLong(f"{str(error).removesuffix('Shorten it.')}Type /reset to begin again.") from error
        return Order(
            self._loaded.roles[policy],
            prompt_ids,
            self.settings.sampling,
            self.settings.seed,
            min(self._most, self._prompts.window - len(prompt_ids)),
            joins=self.continues_text,
        )
