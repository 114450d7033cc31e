"""Sampling from a role. The noise of a sample is a function of its seed, never of its batch.

A rollout engine computes the tokens; see `rollout_engine.py` to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from configs.schema import Rollout
from stages.distributed.ranks import Ranks
from stages.models.roles import Roles
from stages.sampling.decoding import Response
from stages.sampling.response_batch import ResponseBatch, response_batch
from stages.sampling.rollout_engine import RolloutEngine, start_rollout_engine


@contextmanager
def open_sampler(
    roles: Roles, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, rollout: Rollout
) -> Iterator[Sampler]:
    """A sampler of `roles` on the engine that `rollout.engine` names. Every rank must call.

    The engine starts here and is closed at the end of the `with` block. At most one sampler of a process may
    be open at a time, because an engine may take most of the free memory.

    Raises:
        UserError: the engine cannot start (see `start_rollout_engine`).
    """
    with closing(start_rollout_engine(roles, tokenizer, ranks, rollout)) as engine:
        yield Sampler(roles, tokenizer, ranks, rollout, engine)


class Sampler:
    """Samples responses of roles. `open_sampler` makes one."""

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        ranks: Ranks,
        rollout: Rollout,
        engine: RolloutEngine,
    ) -> None:
        self.roles, self.tokenizer, self.ranks, self.rollout = roles, tokenizer, ranks, rollout
        self.engine = engine

    def respond(
        self,
        role: str,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[Response]:
        """Sample one response of `role` to each prompt of this rank; see `RolloutEngine.respond`."""
        return self.engine.respond(role, prompts, seeds, advance)

    def respond_on_all_ranks(
        self,
        role: str,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[Response]:
        """Share the work among ranks: every rank gets all responses, in the order of `prompts`."""

        def respond(pairs: Sequence[tuple[list[int], int]]) -> list[Response]:
            ids, its_seeds = zip(*pairs, strict=True)
            return self.respond(role, ids, its_seeds, lambda ended: advance(ended * self.ranks.world))

        share = max(1, -(-len(prompts) // self.ranks.world))
        return self.ranks.map_in_order(list(zip(prompts, seeds, strict=True)), share, respond)

    def response_batch(self, prompts: Sequence[list[int]], responses: Sequence[Response]) -> ResponseBatch:
        """One batch of prompts and the responses that were sampled to them."""
        ids = [response.ids for response in responses]
        batch = response_batch(prompts, ids, self.tokenizer.pad_token_id, self.ranks.device)
        allowed = [response.support for response in responses] if self.rollout.truncates else None
        return replace(
            batch, temperature=self.rollout.temperature, allowed=allowed, vocabulary=self.roles.vocabulary
        )

    def decode(self, responses: Sequence[list[int]]) -> list[str]:
        """Responses as text, without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(responses, skip_special_tokens=True)]
