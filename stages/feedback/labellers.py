"""Stand-ins for people: functions that score answers. They rank samples, or judge the end result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stages.distributed.ranks import Ranks
from stages.feedback.judgements import Judgement, as_judgements
from stages.feedback.sentiment import sentiment
from stages.feedback.user_functions import load_function
from stages.feedback.warm_ending import judge_endings
from stages.maths.statistics import repeated_bigrams

Labeller = Callable[[Sequence[str], Sequence[str]], list[Judgement]]  # of prompts' and answers' texts
REPETITION_WEIGHT = 3.0


def warmth(text: str) -> float:
    """Sentiment in [-1, 1] (VADER's compound score, Hutto and Gilbert 2014) less repetition.

    Sentiment alone would be highest for a collapsed policy that repeats one happy phrase.
    """
    return sentiment(text) - REPETITION_WEIGHT * repeated_bigrams(text)


LABELLERS: dict[str, Labeller] = {
    "warmth": lambda prompts, answers: [Judgement(warmth(answer)) for answer in answers],
    "warm_ending": judge_endings,
}


def labeller(name: str, key: str, ranks: Ranks, draw: str = "function") -> Labeller:
    """The labeller that the config key `key` names: a built-in one, or the user's `module:function`.

    Every rank must call the labeller. Only rank 0 runs the function, because it may be slow or random.

    Args:
        draw: another one has other random numbers for the same answers; see `load_function`.

    Raises:
        UserError: there is no such function. The labeller raises it, too, if the function does not return
            one finite number per answer, or one mapping of such numbers (see `as_judgements`).
    """
    function = LABELLERS[name] if name in LABELLERS else load_function(name, key, as_judgements, draw)
    return lambda prompts, answers: ranks.from_rank_0(lambda: function(prompts, answers))
