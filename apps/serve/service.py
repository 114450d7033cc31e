"""What the paths of the server do, without HTTP: models, answers and scores."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from apps.answers.answer import Order
from apps.answers.decoder import Decoder, Room
from apps.answers.prompts import Prompts
from apps.answers.sampling import Sampling
from apps.answers.scores import Pair, Scorer
from apps.serve.errors import too_slow, unusable
from apps.serve.formats import Json
from apps.serve.forms import ChatForm, Sampled, ScoreForm, TextForm
from apps.serve.generation import Generation
from apps.serve.limits import Limits
from apps.serve.scoring import answers_of
from apps.serve.worker import Closed, Worker
from apps.trained_run import LoadedPolicies, TrainedRun
from apps.web.errors import ApiError, busy, closing
from configs.errors import UserError

REWARD_MODEL = "rm"  # its name in a request
Result = TypeVar("Result")


class Service:
    """The policies and the reward model of a run.

    Its methods belong to the thread of the event loop. One more thread reads prompts, as a chat template may
    take seconds, and one uses the models.

    Attributes:
        worker: the thread that uses the models.
    """

    def __init__(
        self, run: TrainedRun, loaded: LoadedPolicies, limits: Limits | None = None, room: Room | None = None
    ) -> None:
        self._run, self._loaded, self._limits = run, loaded, limits or Limits()
        self._rollout, self._created = run.config.ppo.rollout, int(time.time())
        room = room or Room()
        self._decoder, self._most_open = Decoder(loaded, room), room.rows + self._limits.queue
        self._prompts = Prompts(run, loaded)
        self._scorer = Scorer(run, loaded) if loaded.reward else None
        self.worker = Worker(self._decoder)
        self._reader = ThreadPoolExecutor(1, "prompts")
        self._open = self._scoring = 0

    def close(self) -> None:
        """End the threads. Requests in progress get an error."""
        self.worker.close()
        self._reader.shutdown(cancel_futures=True)

    def models(self) -> list[Json]:
        """The policies, as /v1/models lists them."""
        return [self.model(name) for name in self._loaded.roles]

    def model(self, name: str) -> Json:
        """One policy.

        Raises:
            ApiError: there is none of this name.
        """
        self._role(name)
        return {"id": name, "object": "model", "created": self._created, "owned_by": "tristage"}

    def about(self) -> Json:
        """What a page has to know of the run."""
        sampling = Sampling.of_run(self._rollout)
        return {
            "name": self._run.config.name,
            "policies": list(self._loaded.roles),
            "continues_text": self._prompts.continues_text,
            "scores": self._scorer is not None,
            "window": self._prompts.window,
            "max_tokens": self._rollout.max_new_tokens,
            "sampling": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            },
        }

    async def chat(self, form: ChatForm) -> Generation:
        """Start the answers of a chat completion."""
        if form.top_logprobs and not form.logprobs:
            raise ApiError(400, "top_logprobs: it needs logprobs: true.", param="top_logprobs")
        messages = [message.plain() for message in form.messages]
        most = form.max_completion_tokens or form.max_tokens
        read = [lambda: self._prompts.of_messages(messages)]
        return await self._start(form, "messages", read, most, form.top_logprobs)

    async def complete(self, form: TextForm) -> Generation:
        """Start the answers of a text completion: `n` of each prompt, prompt by prompt."""
        read = [lambda prompt=prompt: self._prompts.of_text(prompt) for prompt in form.prompts]
        return await self._start(form, "prompt", read, form.max_tokens, form.logprobs or 0)

    async def score(self, form: ScoreForm) -> list[float]:
        """The score of each answer.

        Raises:
            ApiError: there is no such reward model, the form is incomplete, the server is busy, or it takes
                too long.
        """
        if self._scorer is None:
            raise ApiError(404, "This server has no reward model.", code="model_not_found")
        if form.model not in (None, REWARD_MODEL):
            raise _no_model(form.model, [REWARD_MODEL])
        if self._scoring >= self._limits.scorings:
            raise busy("Too many requests for scores are open")
        self._scoring += 1
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._scores(form)
        except TimeoutError:
            raise too_slow(self._limits.seconds) from None
        finally:
            self._scoring -= 1

    async def _scores(self, form: ScoreForm) -> list[float]:
        pairs = await self._read(lambda: self._pairs(form), "messages" if form.messages else "prompts")
        scores: list[float] = []
        for first in range(0, len(pairs), self._limits.pairs_at_once):
            scores += await self._score_batch(pairs[first : first + self._limits.pairs_at_once])
        return scores

    async def _score_batch(self, batch: Sequence[Pair]) -> list[float]:
        scorer = self._scorer
        assert scorer is not None
        try:
            return await asyncio.wrap_future(self.worker.call(lambda: scorer.score(batch)))
        except Closed:
            raise closing() from None

    def _pairs(self, form: ScoreForm) -> list[Pair]:
        assert self._scorer is not None
        texts = answers_of(form, self._prompts)
        if len(texts) > self._limits.pairs:
            raise ApiError(400, f"{len(texts):,} answers to score are more than {self._limits.pairs:,}.")
        return [self._scorer.encode(prompt, answer, ended=ended) for prompt, answer, ended in texts]

    async def _start(
        self,
        form: Sampled,
        param: str,
        read: Sequence[Callable[[], list[int]]],
        most: int | None,
        top_logprobs: int,
    ) -> Generation:
        """Read the prompts, and let the worker decode `n` answers to each."""
        role, count = self._role(form.model), form.n * len(read)
        if count > self._limits.choices:
            raise ApiError(400, f"{count} answers are more than {self._limits.choices}.", param="n")
        self._check_queue(count)
        prompts = await self._read(lambda: [each() for each in read], param)
        self._check_queue(count)
        first_seed = secrets.randbits(48) if form.seed is None else form.seed
        answers = [
            self._decoder.answer(self._order(form, role, prompt, first_seed + number, most, top_logprobs))
            for prompt in prompts
            for number in range(form.n)
        ]
        generation = Generation(answers, sum(map(len, prompts)), self._limits.seconds, self._release)
        self._open += count
        self.worker.add(answers)
        return generation

    def _release(self, count: int) -> None:
        self._open -= count

    def _check_queue(self, count: int) -> None:
        if self._open + count > self._most_open:
            raise busy("Too many answers are waiting")

    def _order(
        self, form: Sampled, role: str, prompt_ids: list[int], seed: int, most: int | None, top: int
    ) -> Order:
        room = self._prompts.window - len(prompt_ids)
        if most and most > room:
            raise ApiError(
                400,
                f"max_tokens: {most} tokens after a prompt of {len(prompt_ids)} are more than the window of "
                f"{self._prompts.window}.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        longest = most or min(self._rollout.max_new_tokens, room)
        joins = self._prompts.continues_text
        return Order(role, prompt_ids, self._sampling(form), seed, longest, form.stops, top, joins)

    def _sampling(self, form: Sampled) -> Sampling:
        """The run's sampling, with what the request changes."""
        run = Sampling.of_run(self._rollout)
        return Sampling(
            run.temperature if form.temperature is None else form.temperature,
            run.top_p if form.top_p is None else form.top_p,
            run.top_k if form.top_k is None else form.top_k or None,
        )

    def _role(self, name: str) -> str:
        if name not in self._loaded.roles:
            raise _no_model(name, list(self._loaded.roles))
        return self._loaded.roles[name]

    async def _read(self, function: Callable[[], Result], param: str) -> Result:
        """The result of a function that reads prompts, in the thread for that."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, function)
        except UserError as error:
            raise unusable(error, param) from error


def _no_model(name: str | None, known: Sequence[str]) -> ApiError:
    return ApiError(
        404,
        f"model: there is no {name!r:.100}; there are {', '.join(known)}.",
        param="model",
        code="model_not_found",
    )


def status(worker: Worker) -> dict[str, Any]:
    """What /health says."""
    return {"status": "ok", "running": worker.running, "waiting": worker.waiting}
