"""An OpenAI-compatible endpoint as judge of answers (Zheng et al. 2023): pair by pair, or all at once."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from string import ascii_uppercase as LETTERS
from typing import Any, NamedTuple

from configs.errors import UserError
from configs.judge_file import JudgeEndpoint
from configs.unique_keys import DuplicateKey, unique_keys
from data.batches.sampler import seed_from
from data.sources.messages import Text, dialogue, last_text
from stages.feedback.judge_modes import MODES, Shown
from stages.feedback.reward_endpoint import FAILURES, JsonService, Refused, failure_reason
from stages.feedback.threads import map_in_threads
from stages.feedback.verdict_cache import Reply, VerdictCache, question_key
from stages.maths.statistics import wins

FIELD = re.compile(r"\{(?:prompt|last|answers|a|b)\}")
LONGEST = 20_000  # characters of a reply that are read: its last ones; if it was cut, its first
MOST_TOKENS = 10**9  # of one reply; more can only be an error
MOST_UNREADABLE = 0.5  # share of the replies
TRIED = "Name a colour.", ("Blue.", "I do not know.")


class Question(NamedTuple):
    """One request: the answers that it shows, and its text."""

    shown: Shown
    text: str


class EndpointJudge:
    """Orders answers by the verdicts of an endpoint.

    Attributes:
        replies: to all questions so far, by key; those of an earlier attempt are among them.
        unreadable: keys of the replies that name no verdict. Each counts as a tie.
    """

    def __init__(
        self, config: JudgeEndpoint, key: str, cache: VerdictCache | None = None, seed: int = 0
    ) -> None:
        """Prepare requests.

        Args:
            key: of the configuration, or option, for messages.
            cache: where replies are kept; default: in memory.
            seed: of the order in which a ranking shows answers.

        Raises:
            UserError: the variable of the bearer token is not set, or holds no token.
        """
        self.config, self._key, self._seed = config, key, seed
        self._mode, self._cache = MODES[config.mode], VerdictCache() if cache is None else cache
        self._service = JsonService(
            key, config.url, config.timeout_seconds, config.retries, config.key_variable
        )
        self.replies: dict[str, Reply] = {}
        self.unreadable: set[str] = set()

    def rank(self, prompts: Sequence[Text], answers: Sequence[Sequence[str]]) -> list[list[int]]:
        """The ranks of the answers to each prompt: 0 is the best, and equal ranks tie.

        Equal texts tie without a question.

        Raises:
            UserError: the endpoint fails or answers in another form, more than half of all replies are
                unreadable, or there are more answers than letters.
        """
        different = [list(dict.fromkeys(texts)) for texts in answers]
        asked = [self._questions(*row) for row in zip(prompts, different, strict=True)]
        replies = self._ask([question for questions in asked for question in questions])
        ranks = []
        for texts, ranked, questions in zip(answers, different, asked, strict=True):
            verdicts = {shown: self._mode.read(replies[text], len(shown)) for shown, text in questions}
            of_text = dict(zip(ranked, self._mode.ranks(len(ranked), verdicts), strict=True))
            ranks.append([of_text[text] for text in texts])
        return ranks

    def prefer(self, prompts: Sequence[Text], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        """For each prompt 1 if our answer is better, 0 if it is worse, 1/2 for a tie; see `rank`."""
        ranks = self.rank(prompts, list(zip(ours, theirs, strict=True)))
        return wins([-mine for mine, _ in ranks], [-other for _, other in ranks])

    def try_once(self, answers: int) -> str:
        """Ask one question about made-up answers.

        Args:
            answers: K, the number of answers to each prompt that are to be ranked later.

        Returns:
            A remark: how many requests a prompt will take.

        Raises:
            UserError: see `rank`.
        """
        self._check_number(answers)
        self._ask(self._questions(*TRIED)[:1])
        requests = self.requests(answers)
        return f"{self._key}: requests to {self.config.model} for each prompt: at most {requests:,}"

    def requests(self, answers: int) -> int:
        """The most requests that the answers to one prompt take."""
        return self._mode.requests(answers)

    def usage(self) -> dict[str, float]:
        """Requests with a reply, how many of these are unreadable, their tokens, and their cost if known."""
        replies = self.replies.values()
        prompt_tokens = sum(reply.prompt_tokens or 0 for reply in replies)
        completion_tokens = sum(reply.completion_tokens or 0 for reply in replies)
        figures: dict[str, float] = {
            "judge_requests": len(replies),
            "judge_unreadable": len(self.unreadable),
            "judge_prompt_tokens": prompt_tokens,
            "judge_completion_tokens": completion_tokens,
        }
        if price := self.config.price:
            figures["judge_cost"] = (price.input * prompt_tokens + price.output * completion_tokens) / 1e6
        return figures

    @property
    def without_usage(self) -> int:
        """The number of replies of which the endpoint did not tell the tokens."""
        return sum(None in (reply.prompt_tokens, reply.completion_tokens) for reply in self.replies.values())

    def _check_number(self, answers: int) -> None:
        if answers > self._mode.most:
            raise UserError(
                f"{self._key}: mode: {self.config.mode} takes at most {self._mode.most} answers, one a "
                f"letter, and there are {answers}. Lower rm.rankings.completions, or set mode: pairs."
            )

    def _questions(self, prompt: Text, texts: Sequence[str]) -> list[Question]:
        """The questions about different answers to a prompt; none if there is only one."""
        self._check_number(len(texts))
        seed = seed_from(self._seed, "judge", dialogue(prompt), list(texts))
        return [
            Question(shown, self._text(prompt, [texts[i] for i in shown]))
            for shown in self._mode.shown(len(texts), seed)
        ]

    def _text(self, prompt: Text, texts: Sequence[str]) -> str:
        """The template with a prompt and at least two answers."""
        named = [f"Answer {letter}: {text}" for letter, text in zip(LETTERS, texts, strict=False)]
        first, second, *_ = texts
        parts = {
            "{prompt}": dialogue(prompt),
            "{last}": last_text(prompt),
            "{answers}": "\n\n".join(named),
            "{a}": first,
            "{b}": second,
        }
        # In one pass, so that braces within an answer stay what they are.
        return FIELD.sub(lambda match: parts[match[0]], self.config.question)

    def _ask(self, questions: Sequence[Question]) -> dict[str, Reply]:
        """The reply to each question by its text. Equal questions are asked once."""
        different = list({question.text: question for question in questions}.values())
        keyed = map_in_threads(self._reply, different, self.config.concurrency)
        for question, (key, reply) in zip(different, keyed, strict=True):
            self.replies[key] = reply
            if self._mode.read(reply, len(question.shown)) is None:
                self.unreadable.add(key)
        self._check_readable()
        return {question.text: reply for question, (_, reply) in zip(different, keyed, strict=True)}

    def _check_readable(self) -> None:
        if len(self.unreadable) > MOST_UNREADABLE * len(self.replies):
            example = self.replies[next(key for key in self.replies if key in self.unreadable)].text
            raise UserError(
                f"{self._key}: {len(self.unreadable)} of {len(self.replies)} replies of {self.config.model} "
                f"are unreadable, such as {example!r:.200}. A reply must be {self._mode.reply}. Correct "
                "template or max_tokens in the judge's file, or choose another model."
            )

    def _reply(self, question: Question) -> tuple[str, Reply]:
        """The key of a question, and its reply, which is asked for if it is not in the cache."""
        body = self.config.body(question.text)
        key = question_key(self.config.url, body)
        reply = self._cache.get(key)
        if reply is None:
            reply = self._request(body)
            self._cache.add(key, reply)
        return key, reply

    def _request(self, body: dict[str, Any]) -> Reply:
        try:
            return _reply_in(self._service.ask(body))
        except FAILURES as error:
            kept = f" {len(self._cache):,} replies are kept, and the same command resumes."
            raise UserError(
                f"{self._key}: {self.config.url} gave no verdict ({failure_reason(error)}). It must answer "
                "chat completions in OpenAI's form. Check url, model, parameters and key_variable in the "
                f"judge's file.{kept if self._cache.file else ''}"
            ) from error


def _reply_in(content: bytes) -> Reply:
    """The reply in a chat completion. What a model declines to answer has no text.

    Raises:
        Refused: the content is something else, or says that an error or a content filter ended the reply.
    """
    try:
        answer: Any = json.loads(content, object_pairs_hook=unique_keys)
        if fault := answer.get("error"):
            raise Refused(f"it says that there was an error: {fault!r:.100}")
        (choice,) = answer["choices"]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except DuplicateKey as error:
        raise Refused(f"in its answer, {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused(f"its answer is {content!r:.200}, not one choice") from None
    if not isinstance(text, str | None):
        raise Refused(f"its content is {text!r:.100}")
    if reason == "content_filter":
        raise Refused("its content filter ended a reply; choose a model without one")
    usage = answer.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    prompt_tokens, completion_tokens = map(_count, map(tokens.get, ("prompt_tokens", "completion_tokens")))
    cut, whole = reason == "length", text or ""
    read = whole[:LONGEST] if cut else whole[-LONGEST:]
    return Reply(read, prompt_tokens, completion_tokens, cut)


def _count(tokens: Any) -> int | None:
    """A number of tokens; None for anything else."""
    known = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens <= MOST_TOKENS
    return tokens if known else None
