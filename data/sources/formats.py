"""The accepted formats of rows: which keys tell each, which it uses, and how its texts are read.

docs/guides/datasets.md has an example of each. `normalise.py` converts rows to one form.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from configs.schema import FormatName
from data.sources.bad_rows import BadRow, UnusableRow
from data.sources.keys import REMEDY, Fields
from data.sources.messages import (
    Message,
    Text,
    as_messages,
    is_learned,
    read_prompt,
    read_text,
    without_weights,
)
from data.sources.order import PAIR_SCORES, RANKS, SCORES, ranks_of_completions, ranks_of_pair
from data.sources.published import (
    RankBy,
    is_reward_bench_2,
    is_ultrafeedback,
    llmbar,
    mt_bench,
    pandalm,
    reward_bench_2,
    ultrafeedback,
)
from data.sources.text import collapsed, is_blank, read_string

Kind = Literal["demonstrations", "rankings", "prompts"]
# prompt: Text; completion: Text, or completions: list[Text] and ranks: list[int]; where;
# learned: positions of earlier assistant turns in `prompt` that SFT learns, too, if there are any
Row = dict[str, Any]

ACCEPTED: dict[Kind, str] = {
    "demonstrations": "`prompt` and `completion`; `messages`; `instruction`, `input` and `output` (Alpaca); "
    "`conversations` (ShareGPT); `text`; any format of rankings, whose best completion is taken",
    "rankings": "`prompt`, `chosen` and `rejected`; `chosen` and `rejected` that begin alike (Anthropic HH's "
    "transcripts too); `conversations`, `chosen` and `rejected` (ShareGPT); `prompt` and `completions`, best "
    "first or with `ranks` or `scores`; UltraFeedback, PandaLM, LLMBar, MT-Bench and "
    "RewardBench. `rm.rankings.labeller` ranks rows that have only prompts",
    "prompts": "`prompt`; `messages`; any format of demonstrations or rankings, whose prompt is taken",
}


@dataclass(frozen=True)
class Format:
    """One form of a row, which its keys tell.

    Attributes:
        key: its name in the configuration.
        name: in messages.
        required: the keys that tell it.
        optional: the other keys that it uses.
        read: returns the prompt and the completions, in the order in which they stand.
        ranks: returns the rank of each completion, 0 for the best.
        learns_earlier_turns: SFT learns the assistant's turns in the prompt, too.
        fits: whether the values of the required keys are of this form.
        as_ranking: returns the fields of the ranking that a row of a published data set stands for.
    """

    key: FormatName
    name: str
    required: frozenset[str]
    optional: frozenset[str]
    read: Callable[[Fields], tuple[Text, list[Text]]]
    ranks: Callable[[Fields, int], list[int]] = lambda fields, count: list(range(count))
    learns_earlier_turns: bool = False
    fits: Callable[[Fields], bool] = lambda fields: True
    as_ranking: Callable[[Fields, RankBy], Fields] = lambda fields, rank_by: fields

    @property
    def used(self) -> frozenset[str]:
        return self.required | self.optional


def _ranking(fields: Fields) -> tuple[Text, list[Text]]:
    if not isinstance(fields["completions"], list) or not ("prompt" in fields or "messages" in fields):
        raise BadRow("`completions` must be a list, and the row must have a `prompt`")
    return _prompt(fields), [read_text(text, "completions") for text in fields["completions"]]


def _preference(fields: Fields) -> tuple[Text, list[Text]]:
    chosen, rejected = read_text(fields["chosen"], "chosen"), read_text(fields["rejected"], "rejected")
    alone = not (_includes_prompt(chosen) or _includes_prompt(rejected))
    if alone and ("prompt" in fields or "messages" in fields):
        return _prompt(fields), [chosen, rejected]
    _check_no_addition(fields)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not chosen or not rejected:
            raise UnusableRow("`chosen` or `rejected` is empty")
        end = _end_of_prompt(chosen, rejected)
        if end == 0:
            raise UnusableRow("`chosen` and `rejected` share no prompt, and the row has no `prompt`")
        return chosen[:end], [chosen[end:], rejected[end:]]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("`chosen` and `rejected` must both be text or both be messages")
    if not all(messages[-1]["role"] == "assistant" for messages in (chosen, rejected)):
        raise UnusableRow("the conversation does not end with an assistant turn")
    prompt, answer = without_weights(chosen[:-1]), chosen[-1:]
    # If `rejected` answers another prompt, it stays whole, and check_completion refuses it.
    other = rejected[-1:] if without_weights(rejected[:-1]) == prompt else rejected
    return prompt, [answer, other]


def _end_of_prompt(one: str, other: str) -> int:
    """Where two texts part: before the last blank that they share, so that no word is cut.

    Where letters are words, as in Chinese, there is no blank. A space belongs to the answer, as TRL has it.
    """
    apart = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    end = next(apart, min(len(one), len(other)))
    around = one[end - 1 : end + 1] + other[end : end + 1]
    if not any(unicodedata.east_asian_width(letter) in "WF" for letter in around):
        while end and not one[end - 1].isspace():
            end -= 1
    return end - one[:end].endswith(" ")


def _prompt_completion(fields: Fields) -> tuple[Text, list[Text]]:
    prompt, completion = _prompt(fields), read_text(fields["completion"], fields.name("completion"))
    _check_whole(fields)
    return prompt, [completion]


def _check_whole(fields: Fields) -> None:
    """Refuse a `text` that is not prompt and completion in one, as in Alpaca."""
    if "text" not in fields:
        return
    whole = collapsed(read_string(fields["text"], fields.name("text")))
    parts = (read_text(fields[key], key) for key in ("prompt", "input", "completion") if key in fields)
    said = (message["content"] for part in parts for message in as_messages(part, "user"))
    if not all(collapsed(text) in whole for text in said):
        raise BadRow(f"`{fields.name('text')}` says something else than prompt and completion; {REMEDY}")


def _conversation(fields: Fields) -> tuple[Text, list[Text]]:
    """Split a conversation before its last learned turn. What follows that turn has no influence."""
    name = fields.name("messages")
    messages = read_text(fields["messages"], name)
    if isinstance(messages, str):
        raise BadRow(f"`{name}` must be a list of messages, not text")
    if messages[-1]["role"] != "assistant":
        return messages, []
    learned = [position for position, message in enumerate(messages) if is_learned(message)]
    last = learned[-1] if learned else len(messages) - 1
    return messages[:last], [messages[last : last + 1]]


def _includes_prompt(completion: Text) -> bool:
    """Whether a completion holds the conversation before the answer, too."""
    return not isinstance(completion, str) and completion[0]["role"] != "assistant"


def _prompt(fields: Fields) -> Text:
    """The prompt of `prompt` or `messages`, with `input` below it and the turns of `history` before it."""
    key = "prompt" if "prompt" in fields else "messages"
    prompt = read_prompt(fields[key], fields.name(key))
    if not isinstance(prompt, str):
        _check_no_addition(fields)
        return prompt
    extra = read_string(fields.get("input", ""), fields.name("input"))
    question = prompt if is_blank(extra) else f"{prompt}\n{extra}"
    earlier = _history(fields.get("history", []))
    return [*earlier, {"role": "user", "content": question}] if earlier else question


def _check_no_addition(fields: Fields) -> None:
    """Refuse `input` and `history` where no text of `prompt` is there to take them."""
    for key in ("input", "history"):
        if key in fields:
            raise BadRow(f"`{fields.name(key)}` needs a `prompt` that is text; {REMEDY}")


def _history(history: Any) -> list[Message]:
    """LLaMA-Factory's `history` as messages."""
    if not isinstance(history, list) or not all(
        isinstance(turn, list) and len(turn) == 2 for turn in history
    ):
        raise BadRow("`history` must be a list of [question, answer] pairs")
    roles = ("user", "assistant")
    return [
        {"role": role, "content": read_string(text, "history[]")}
        for turn in history
        for role, text in zip(roles, turn, strict=True)
    ]


def _published(
    key: FormatName,
    name: str,
    required: Collection[str],
    as_ranking: Callable[[Fields, RankBy], Fields],
    fits: Callable[[Fields], bool] = lambda fields: True,
    optional: Collection[str] = (),
) -> Format:
    """The format of a public data set, which is read as a ranking."""
    listed_keys = ", ".join(f"`{each}`" for each in sorted(required))
    return Format(
        key,
        f"a row of {name} ({listed_keys})",
        frozenset(required),
        frozenset({*optional, "system"}),
        _ranking,
        ranks_of_completions,
        fits=fits,
        as_ranking=as_ranking,
    )


RATING = "rating"  # how good the one answer of a row is; see `min_rating` of a source
SAMPLED = "completion_ids"  # the tokens of sampled answers, as in rm/rankings.jsonl of a run
QUESTION = frozenset({"input", "history", "system"})  # what may stand beside a prompt
IN_RANKING = frozenset({"prompt", "completions"})
FORMATS = (
    _published(
        "ultrafeedback",
        "UltraFeedback",
        IN_RANKING,
        ultrafeedback,
        is_ultrafeedback,
        {"correct_answers", "incorrect_answers"},
    ),
    _published(
        "reward_bench_2",
        "RewardBench 2",
        {"prompt", "chosen", "rejected"},
        reward_bench_2,
        is_reward_bench_2,
        {"num_correct", "num_incorrect", "total_completions", "additional_metadata"},
    ),
    _published(
        "pandalm",
        "PandaLM",
        {"prompt", "response1", "response2", "annotator1", "annotator2", "annotator3"},
        pandalm,
        optional={"input", "motivation_app", "cmp_key"},
    ),
    _published("llmbar", "LLMBar", {"input", "output_1", "output_2", "label"}, llmbar),
    _published(
        "mt_bench",
        "MT-Bench",
        {"conversation_a", "conversation_b", "winner"},
        mt_bench,
        optional={"model_a", "model_b", "judge", "turn"},
    ),
    Format(
        "ranking",
        "a ranking (`prompt`, `completions`)",
        frozenset({"completions"}),
        QUESTION.union({"prompt", "messages"}, RANKS, SCORES),
        _ranking,
        ranks_of_completions,
        fits=lambda fields: not is_ultrafeedback(fields),
    ),
    Format(
        "preference",
        "a preference (`prompt`, `chosen`, `rejected`)",
        frozenset({"chosen", "rejected"}),
        QUESTION.union({"prompt", "messages"}, RANKS, SCORES, *PAIR_SCORES),
        _preference,
        lambda fields, count: ranks_of_pair(fields),
    ),
    Format(
        "demonstration",
        "a demonstration (`prompt`, `completion`)",
        frozenset({"prompt", "completion"}),
        QUESTION | {"label", RATING, "text"},
        _prompt_completion,
    ),
    Format(
        "conversation",
        "a conversation (`messages`)",
        frozenset({"messages"}),
        frozenset({"prompt", "system", "label", RATING}),
        _conversation,
        learns_earlier_turns=True,
    ),
    Format(
        "text",
        "a text (`text`)",
        frozenset({"text"}),
        frozenset(),
        lambda fields: ("", [read_string(fields["text"], fields.name("text"))]),
    ),
    Format(
        "prompt",
        "a prompt (`prompt`)",
        frozenset({"prompt"}),
        QUESTION,
        lambda fields: (_prompt(fields), []),
    ),
)
