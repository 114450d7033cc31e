"""Continuous batching over several policies: their answers are decoded together, on one base.

A step adds a token to every running answer. Waiting answers take the rows of those that ended. Each prompt is
read with its policy's adapter. From then on, the rows of one batch use different adapters, if the base lets
them (see `Roles.can_mix`); if not, each policy has a batch, and these take turns.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from apps.answers.answer import Answer, Order
from apps.answers.sampling import sample_rows
from apps.trained_run import LoadedPolicies
from stages.models.roles import Roles
from stages.sampling.decoding_batch import DecodingBatch, supports_joining

ALL = "all"  # the batch of every policy


@dataclass(frozen=True)
class Room:
    """How much is decoded at a time.

    Attributes:
        rows: answers.
        cache_tokens: rows times the longest of them; the cache of keys and values grows with it.
        prefill_tokens: of the prompts that are read in one step; the running answers wait meanwhile.
    """

    rows: int = 32
    cache_tokens: int = 2**15
    prefill_tokens: int = 2**12


class Decoder:
    """Decodes answers of policies. All its methods belong to one thread."""

    def __init__(self, loaded: LoadedPolicies, room: Room | None = None) -> None:
        self._loaded = loaded
        self._room = room or Room()
        if loaded.base.is_int8:  # its outliers are found in the whole batch, so a row depends on the others
            self._room = Room(1, self._room.cache_tokens, self._room.prefill_tokens)
        self._joins = supports_joining(loaded.base.causal.config)
        self._mixes = self._joins and loaded.base.can_mix(list(loaded.roles.values()))
        self._lanes: dict[str, Lane] = {}

    def answer(self, order: Order) -> Answer:
        """A new answer to `order`, not yet decoded."""
        return Answer(order, self._loaded.tokenizer, self._loaded.base.causal.device)

    def add(self, answer: Answer) -> None:
        """Let `answer` wait for a row."""
        key = ALL if self._mixes else answer.order.role
        if key not in self._lanes:
            pad_id = self._loaded.tokenizer.pad_token_id
            self._lanes[key] = Lane(self._loaded.base, self._room, pad_id, self._joins)
        self._lanes[key].waiting.append(answer)

    @property
    def waiting(self) -> int:
        """The number of answers that have no row yet."""
        return sum(not answer.is_over for lane in self._lanes.values() for answer in lane.waiting)

    @property
    def running(self) -> int:
        """The number of answers that have a row."""
        return sum(len(lane.running) for lane in self._lanes.values())

    def step(self) -> bool:
        """Add a token to each running answer. Returns whether there is more to decode."""
        for lane in self._lanes.values():
            lane.step()
        return self.waiting + self.running > 0

    def clear(self) -> list[Answer]:
        """Forget all answers; returns them."""
        answers = [answer for lane in self._lanes.values() for answer in (*lane.running, *lane.waiting)]
        self._lanes.clear()
        return answers


class Lane:
    """Answers in one batch.

    Attributes:
        waiting: in the order in which they came.
        running: the answer of each row of the batch.
    """

    def __init__(self, roles: Roles, room: Room, pad_id: int, joins: bool) -> None:
        self._roles, self._room, self._joins = roles, room, joins
        self.waiting, self.running = deque[Answer](), list[Answer]()
        self._batch = DecodingBatch(roles.causal, pad_id)

    @torch.no_grad()
    def step(self) -> None:
        """Let waiting answers join; add a token to each answer; free the rows of those that are over."""
        self._prefill(self._joining())
        if not self.running:
            return
        orders = [answer.order for answer in self.running]
        tokens = sample_rows(
            self._batch.logits,
            [order.sampling for order in orders],
            [answer.noise for answer in self.running],
            [order.top_logprobs for order in orders],
        )
        for answer, token in zip(self.running, tokens, strict=True):
            answer.add(token)
        self._go_on([token.id for token in tokens])

    def _go_on(self, tokens: Sequence[int]) -> None:
        """Drop the rows that are over, and compute the logits after the tokens of the others."""
        kept = [row for row, answer in enumerate(self.running) if not answer.is_over]
        if len(kept) < len(self.running):
            self.running = [self.running[row] for row in kept]
            self._batch.keep(kept)
        if self.running:
            self._roles.activate_rows([answer.order.role for answer in self.running])
            last = torch.tensor([tokens[row] for row in kept], device=self._batch.mask.device)
            self._batch.decode_step(last)

    def _joining(self) -> list[Answer]:
        """The answers that get a row now. A batch that nothing can join takes them only while it is empty."""
        joining: list[Answer] = []
        if self.running and not self._joins:
            return joining
        longest = max((answer.order.longest for answer in self.running), default=0)
        read = 0
        while self.waiting:
            if self.waiting[0].is_over:
                self.waiting.popleft()
                continue
            order, rows = self.waiting[0].order, len(self.running) + len(joining) + 1
            longest, read = max(longest, order.longest), read + len(order.prompt_ids)
            fits = rows <= self._room.rows and rows * longest <= self._room.cache_tokens
            if rows > 1 and not (fits and (not joining or read <= self._room.prefill_tokens)):
                break
            joining.append(self.waiting.popleft())
        return joining

    def _prefill(self, joining: Sequence[Answer]) -> None:
        """Read the prompts of each role with its own adapter."""
        by_role: dict[str, list[Answer]] = defaultdict(list)
        for answer in joining:
            by_role[answer.order.role].append(answer)
        # Before they are read: `clear` must find them if that fails.
        self.running += [answer for answers in by_role.values() for answer in answers]
        for role, answers in by_role.items():
            self._roles.activate(role)
            self._batch.prefill([answer.order.prompt_ids for answer in answers])
