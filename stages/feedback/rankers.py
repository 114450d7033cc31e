"""Who ranks answers to a prompt: a labeller that scores them, a judge that compares them, or two of these.

Every rank calls a ranker, and gets the same ranks. Only rank 0 asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from configs.errors import UserError
from configs.judge_file import judge_digest, read_judge
from configs.schema import labeller_kind
from data.people.agreement import ordered_agreement, pairwise_agreement
from data.sources.messages import Text, last_text
from stages.context import Context, Tracker
from stages.distributed.ranks import Ranks
from stages.feedback.endpoint_judge import EndpointJudge
from stages.feedback.labellers import Labeller, labeller
from stages.feedback.verdict_cache import VerdictCache
from stages.maths.orders import common_order, ranks_of
from stages.maths.statistics import mean_with_interval

CACHE = "judge-cache.jsonl"
ASKED_AGAIN = 50  # training prompts, and held-out ones, about which a function is asked twice
ROUNDS = 16  # requests of each thread between two messages to the other ranks, which wait


class Label(NamedTuple):
    """What a ranker says of the K answers to a prompt.

    Attributes:
        ranks: (K,) 0 is the best, and equal ranks tie; None if the answer is left out.
        scores: (K,) more is better; None if the ranker only compares.
    """

    ranks: Sequence[int | None]
    scores: Sequence[float] | None = None


class Ranker(Protocol):
    """Ranks answers."""

    def rank(self, prompts: Sequence[Text], answers: Sequence[Sequence[str]]) -> list[Label]:
        """A label for the answers to each prompt.

        Raises:
            UserError: the labeller fails, or gives something else.
        """

    def metrics(self) -> dict[str, float]:
        """Final metrics of all labels so far, on rank 0."""

    def notes(self) -> list[str]:
        """Lines for the log about all labels so far, on rank 0."""


def open_ranker(context: Context) -> Ranker:
    """The ranker that `rm.rankings.labeller` names.

    Raises:
        UserError: a function cannot be imported; a judge's file cannot be read, or changed since the plan; or
            the judge's cache is damaged.
    """
    cache = VerdictCache(context.folder / CACHE) if context.ranks.rank == 0 else VerdictCache()
    names = context.config.rm.rankings.labellers
    rankers = [_open(context, key, name, cache, len(names) == 1) for key, name in names.items()]
    return AgreeingRankers(*rankers) if len(rankers) > 1 else rankers[0]


def _open(context: Context, key: str, name: str, cache: VerdictCache, is_alone: bool) -> Ranker:
    kind = labeller_kind(name)
    if kind != "endpoint":
        is_random = kind == "function" and is_alone  # perhaps; what ships is not
        again = labeller(name, key, context.ranks, "asked again") if is_random else None
        return ScoringRanker(labeller(name, key, context.ranks), again)
    file = Path(name)
    judge = EndpointJudge(read_judge(file, key), key, cache, context.seed)
    if judge_digest(file) != context.sources.get(key, judge_digest(file)):
        raise UserError(f"{key}: {file} changed while the stage was starting. Start the stage again.")
    return JudgeRanker(judge, file.name, context.ranks, context.tracker)


class ScoringRanker:
    """Ranks by the scores of a labeller, which may be random.

    Args:
        again: the labeller with other random numbers, asked about the first `ASKED_AGAIN` prompts of each
            call. The scores of `label` count.
    """

    def __init__(self, label: Labeller, again: Labeller | None = None) -> None:
        self._label, self._again = label, again
        self._agreement: list[float] = []  # of each prompt asked again that has a pair which both orders have

    def rank(self, prompts: Sequence[Text], answers: Sequence[Sequence[str]]) -> list[Label]:
        """See `Ranker`. The labeller gets all answers in one call, each with the last message before it."""
        scores = _scores(self._label, prompts, answers)
        if self._again is not None:
            again = _scores(self._again, prompts[:ASKED_AGAIN], answers[:ASKED_AGAIN])
            shares = map(ordered_agreement, scores, again)
            self._agreement += [share for share in shares if share is not None]
        return [Label(ranks_of(of_prompt), of_prompt) for of_prompt in scores]

    def metrics(self) -> dict[str, float]:
        """`ordered_agreement` of both times that it was asked, with interval, if it was asked again."""
        return mean_with_interval("label_self_agreement", self._agreement) if self._agreement else {}

    def notes(self) -> list[str]:
        """How far it agrees with itself, if not wholly."""
        if not self._agreement or min(self._agreement) == 1:
            return []
        figures = mean_with_interval("share", self._agreement)
        return [
            "asked twice, the labeller orders {share:.3f} [{share_low:.3f}, {share_high:.3f}] of the pairs "
            "of a prompt alike (n = {share_n})".format_map(figures)
        ]


def _scores(label: Labeller, prompts: Sequence[Text], answers: Sequence[Sequence[str]]) -> list[list[float]]:
    asked = [last_text(prompt) for prompt, texts in zip(prompts, answers, strict=True) for _ in texts]
    judgements = iter(label(asked, [text for texts in answers for text in texts]))
    return [[next(judgements).score for _ in texts] for texts in answers]


class JudgeRanker:
    """Ranks by an endpoint that compares."""

    def __init__(self, judge: EndpointJudge, name: str, ranks: Ranks, tracker: Tracker) -> None:
        self._judge, self._name, self._ranks, self._tracker = judge, name, ranks, tracker

    def rank(self, prompts: Sequence[Text], answers: Sequence[Sequence[str]]) -> list[Label]:
        """See `Ranker`. Rank 0 asks, and tells the others after each part."""
        self._tracker.phase(f"rm: {self._name} ranks answers", len(prompts))
        parts = self._parts(prompts, answers)
        labels: list[Label] = []
        while (part := self._ranks.from_rank_0(lambda: next(parts, None))) is not None:
            labels += [Label(ranks) for ranks in part]
            self._tracker.advance(len(part))
        return labels

    def _parts(self, prompts: Sequence[Text], answers: Sequence[Sequence[str]]) -> Iterator[list[list[int]]]:
        """The ranks of some prompts' answers at a time."""
        requests = self._judge.requests(max(map(len, answers), default=2))
        size = max(1, ROUNDS * self._judge.config.concurrency // requests)
        for start in range(0, len(prompts), size):
            yield self._judge.rank(prompts[start : start + size], answers[start : start + size])

    def metrics(self) -> dict[str, float]:
        """Requests, tokens and cost; see `EndpointJudge.usage`."""
        return self._judge.usage()

    def notes(self) -> list[str]:
        """What the verdicts took."""
        usage = self._judge.usage()
        cost = f", cost {usage['judge_cost']:.4g}" if "judge_cost" in usage else ""
        notes = [
            f"{self._name}: {usage['judge_requests']:,} requests, {usage['judge_prompt_tokens']:,} prompt "
            f"tokens, {usage['judge_completion_tokens']:,} completion tokens{cost}; "
            f"{usage['judge_unreadable']:,} replies were unreadable and count as ties"
        ]
        if unknown := self._judge.without_usage:
            bound = "replies did not tell their tokens, so tokens and cost are lower bounds"
            notes.append(f"{self._name}: {unknown:,} {bound}")
        return notes


class AgreeingRankers:
    """Keeps the largest set of answers to a prompt that two rankers order alike."""

    def __init__(self, first: Ranker, second: Ranker) -> None:
        self._rankers = first, second
        self._agreement: list[float] = []  # of each prompt with two different answers
        self._kept: list[tuple[int, int]] = []  # of each prompt, answers kept and answers in all

    def rank(self, prompts: Sequence[Text], answers: Sequence[Sequence[str]]) -> list[Label]:
        """See `Ranker`. A prompt of which no two answers of different rank are left keeps none."""
        first, second = (ranker.rank(prompts, answers) for ranker in self._rankers)
        return [self._common(*row) for row in zip(answers, first, second, strict=True)]

    def _common(self, texts: Sequence[str], first: Label, second: Label) -> Label:
        ranks, others = ([rank for rank in label.ranks if rank is not None] for label in (first, second))
        different = [
            texts.index(text) for text in dict.fromkeys(texts)
        ]  # equal texts tie, which says nothing
        if len(different) > 1:
            both = ([order[i] for i in different] for order in (ranks, others))
            self._agreement.append(pairwise_agreement(*both))
        common = common_order(ranks, others)
        left = sorted({ranks[i] for i in common})
        kept = set(common) if len(left) > 1 else set()
        self._kept.append((len(kept), len(texts)))
        return Label([left.index(rank) if i in kept else None for i, rank in enumerate(ranks)])

    def metrics(self) -> dict[str, float]:
        """`pairwise_agreement` with interval, what was left out, and both rankers' own metrics."""
        metrics = mean_with_interval("label_agreement", self._agreement) if self._agreement else {}
        metrics["label_prompts_dropped"] = sum(not kept for kept, _ in self._kept)
        metrics["label_answers_dropped"] = sum(of - kept for kept, of in self._kept)
        for ranker in self._rankers:
            for name, value in ranker.metrics().items():
                metrics[name] = metrics.get(name, 0) + value
        return metrics

    def notes(self) -> list[str]:
        """How far the two agree, and what is kept."""
        alike = ""
        if self._agreement:
            figures = mean_with_interval("share", self._agreement)
            alike = (
                "the two labellers order {share:.3f} [{share_low:.3f}, {share_high:.3f}] of the pairs of a "
                "prompt alike (n = {share_n}); "
            ).format_map(figures)
        answers, of = map(sum, zip(*self._kept, strict=True))
        prompts = sum(kept > 0 for kept, _ in self._kept)
        kept = f"kept {answers:,} of {of:,} answers and {prompts:,} of {len(self._kept):,} prompts"
        return [alike + kept, *(note for ranker in self._rankers for note in ranker.notes())]
