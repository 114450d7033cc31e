"""Convert rows of all accepted formats to one form: `prompt`, and its completions.

`FORMATS` is the table of formats, each with its keys; docs/guides/datasets.md has an example of each.
Text stays text. A conversation becomes a list of {"role", "content"} messages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from trl.data_utils import extract_prompt

from configs.schema import FormatName
from data.sources.bad_rows import BadRow, LeftOut, UnusableRow
from data.sources.keys import NO_COLUMNS, REMEDY, Fields, check_keys, read_fields, unused_keys
from data.sources.messages import (
    Message,
    Text,
    check_completion,
    check_prompt,
    is_learned,
    read_text,
    without_weights,
)
from data.sources.order import (
    PAIR_SCORES,
    RANKS,
    SCORES,
    is_number,
    ranks_of_completions,
    ranks_of_pair,
    rated_good,
    scores_of_answers,
    without_copies,
)
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
from data.sources.text import collapsed, is_blank, listed, read_string

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
        if chosen[0] != rejected[0]:
            raise UnusableRow("`chosen` and `rejected` share no prompt, and the row has no `prompt`")
        parts = extract_prompt({"chosen": chosen, "rejected": rejected})
        return parts["prompt"], [parts["chosen"], parts["rejected"]]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("`chosen` and `rejected` must both be text or both be messages")
    if not all(messages[-1]["role"] == "assistant" for messages in (chosen, rejected)):
        raise UnusableRow("the conversation does not end with an assistant turn")
    prompt, answer = without_weights(chosen[:-1]), chosen[-1:]
    # If `rejected` answers another prompt, it stays whole, and check_completion refuses it.
    other = rejected[-1:] if without_weights(rejected[:-1]) == prompt else rejected
    return prompt, [answer, other]


def _prompt_completion(fields: Fields) -> tuple[Text, list[Text]]:
    return _prompt(fields), [read_text(fields["completion"], fields.name("completion"))]


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
    prompt = _read_prompt(fields, key)
    if not isinstance(prompt, str):
        _check_no_addition(fields)
        return prompt
    extra = read_string(fields.get("input", ""), fields.name("input"))
    question = prompt if is_blank(extra) else f"{prompt}\n{extra}"
    earlier = _history(fields.get("history", []))
    return [*earlier, {"role": "user", "content": question}] if earlier else question


def _read_prompt(fields: Fields, key: str) -> Text:
    prompt = read_text(fields[key], fields.name(key))
    if isinstance(prompt, str) or prompt[-1] != {"role": "assistant", "content": ""}:
        return prompt
    return prompt[:-1]  # a transcript that ends in "Assistant:"


def _check_no_addition(fields: Fields) -> None:
    """Refuse `input` and `history` where no text of `prompt` is there to take them."""
    for key in ("input", "history"):
        if fields.get(key):
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
        optional={"model_a", "model_b", "judge"},
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
        QUESTION | {"label", RATING},
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


class Reading(NamedTuple):
    """How the rows of a source are read.

    Attributes:
        ignored: keys to leave out, of the row and of its messages.
        columns: the key of the formats for each name that rows have for one.
        format: the format of every row; None if its keys tell.
        rank_by: what UltraFeedback ranks by.
        min_rating: of demonstrations; rows with a lower `rating` are left out.
    """

    ignored: Collection[str] = ()
    columns: Mapping[str, str] = NO_COLUMNS
    format: FormatName | None = None
    rank_by: RankBy = None
    min_rating: float | None = None


BY_ITS_KEYS = Reading()


def normalise(example: Mapping[str, Any], kind: Kind, reading: Reading = BY_ITS_KEYS) -> Row:
    """Convert `example` to the form of its kind (see `load_rows`), without `where`.

    Raises:
        BadRow: the row does not have the form of any accepted format, or says more than its format means.
        UnusableRow: it has, but there is nothing to learn from it.
        LeftOut: it says itself that there is nothing to learn.
    """
    fields = read_fields(example, reading.ignored, reading.columns)
    form = recognise(fields) if reading.format is None else _named(fields, reading.format)
    if reading.rank_by and form.key != "ultrafeedback":
        raise BadRow(f"`rank_by` is of UltraFeedback, and the row is {form.name}; leave `rank_by` out")
    fields = form.as_ranking(fields, reading.rank_by)
    prompt, completions = form.read(fields)
    _check_copies(fields, form, prompt, completions)
    prompt, completions = _same_type(_opened(prompt, fields), completions)
    if len(completions) < {"prompts": 0, "demonstrations": 1, "rankings": 2}[kind]:
        raise _missing(fields, completions, kind)
    if form.key != "text":
        check_prompt(prompt)
    elif kind == "prompts":
        raise BadRow(f"`{fields.name('text')}` is a text without a prompt")
    if kind == "prompts":
        return {"prompt": without_weights(prompt)}
    ranks = form.ranks(fields, len(completions))
    if kind == "rankings":
        scores = scores_of_answers(fields, len(completions))
        return {"prompt": without_weights(prompt), **_ranked(completions, ranks, scores, SAMPLED in fields)}
    _check_rating(fields, reading.min_rating)
    return _demonstration(fields, form, prompt, completions[ranks.index(min(ranks))])


def recognise(fields: Fields) -> Format:
    """The first format whose keys a row has and that uses all of them.

    Raises:
        BadRow: there is none. The message names the keys that do not fit.
    """
    keys = {key for key in fields if key != "messages" or fields[key]}
    candidates: list[Format] = []
    for form in FORMATS:
        if form.required <= keys and form.fits(fields):
            if not unused_keys(fields, form.used):
                return form
            candidates.append(form)
    answers = keys & {"completion", "completions", "chosen", "rejected"}
    if answers in ({"chosen"}, {"rejected"}):
        raise BadRow("`chosen` and `rejected` must both be present")
    if not candidates:
        raise BadRow(f"no known format has these keys: {listed(map(fields.name, fields))}")
    _check_used(fields, candidates[0])
    raise AssertionError("a key is not used")


def _named(fields: Fields, key: FormatName) -> Format:
    """The format that the configuration names.

    Raises:
        BadRow: the row lacks a key of it, has other values, or has other keys.
    """
    form = next(form for form in FORMATS if form.key == key)
    if missing := sorted(form.required - fields.keys()):
        raise BadRow(f"`format` is {key}, and the row has no {listed(missing)}")
    if not form.fits(fields):
        raise BadRow(
            f"`format` is {key}, and the values of {listed(sorted(form.required))} are not of {form.name}"
        )
    _check_used(fields, form)
    return form


def _check_used(fields: Fields, form: Format) -> None:
    """Raise BadRow if the row has keys that have no place in the form."""
    names = {fields.name(key): value for key, value in fields.items() if key not in form.used}
    check_keys(names, (), form.name)


def _check_rating(fields: Fields, least: float | None) -> None:
    """Leave out a demonstration that is rated below `least`. One with a rating needs a `least`, and back."""
    rating = fields.get(RATING)
    if isinstance(rating, list):  # of several answers, of which the best is taken
        rating = None if least is None else max(filter(is_number, rating), default=None)
    if least is None and rating is None:
        return
    if least is None:
        raise BadRow(
            f"`{RATING}` says how good the answer is; set `min_rating` of this source to the lowest rating "
            "to learn, or name it in `ignore_columns`"
        )
    if rating is None or not is_number(rating):
        raise BadRow(f"`min_rating` is set, so each row needs a `{RATING}` that is a number")
    if rating < least:
        raise LeftOut("the answer is rated below `min_rating`")


def _demonstration(fields: Fields, form: Format, prompt: Text, completion: Text) -> Row:
    if "label" in fields and not rated_good(fields["label"]):
        raise LeftOut(f"the answer is rated bad (`{fields.name('label')}`)")
    check_completion(completion)
    row = {"prompt": without_weights(prompt), "completion": completion}
    if form.learns_earlier_turns or "history" in fields:
        learned = [position for position, message in enumerate(prompt) if is_learned(message)]  # type: ignore[arg-type]
        return row | ({"learned": learned} if learned else {})
    return row


def _ranked(completions: list[Text], ranks: list[int], scores: list[float] | None, sampled: bool) -> Row:
    """The completions, best first, with ranks and scores. A sampled one may be empty: it ended at once."""
    for completion in completions:
        check_completion(completion, may_be_empty=sampled)
    order = sorted(range(len(ranks)), key=lambda position: ranks[position])
    best_first, ascending = [completions[i] for i in order], [ranks[i] for i in order]
    if len(set(ranks)) == 1:
        raise LeftOut("all completions tie, so no pair is left to learn from")
    kept = without_copies([_words(text) for text in best_first], ascending)
    if len({ascending[position] for position in kept}) < 2:
        raise LeftOut(
            "no two completions are left that differ by more than blanks (`chosen` equals `rejected`)"
        )
    row: Row = {"completions": best_first, "ranks": ascending}
    return row if scores is None else row | {"scores": [scores[i] for i in order]}


def _words(text: Text) -> str:
    """The text of a completion. Blanks do not tell two texts apart, only that there are some."""
    return collapsed(text if isinstance(text, str) else text[0]["content"])


def _missing(fields: Fields, completions: list[Text], kind: Kind) -> BadRow:
    """The error for a row with too few completions for its kind."""
    if kind == "rankings" and "label" in fields:
        return BadRow(
            f"`{fields.name('label')}` rates one answer (unpaired preferences); a ranking needs "
            "two answers to a prompt"
        )
    if kind == "rankings" and "completions" in fields:
        return BadRow(f"`completions` must hold at least two, not {len(completions)}")
    if kind == "demonstrations" and "messages" in fields:
        return UnusableRow("the conversation does not end with an assistant turn")
    missing = "completion" if kind == "demonstrations" else "completions to rank"
    return BadRow(f"the keys {listed(map(fields.name, fields))} hold no {missing}")


def _opened(prompt: Text, fields: Fields) -> Text:
    """The prompt with the row's `system` before it."""
    system = read_string(fields.get("system", ""), fields.name("system"))
    if is_blank(system):
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if collapsed(messages[0]["content"]) != collapsed(system):
        raise BadRow(
            f"`{fields.name('system')}` is not the system message that opens the conversation; {REMEDY}"
        )
    return messages


def _check_copies(fields: Fields, form: Format, prompt: Text, completions: list[Text]) -> None:
    """Refuse a `prompt` or `messages` that is no copy of what the row is read from."""
    for key in {"prompt", "messages"} & set(fields) - form.required:
        if fields[key] and not _is_copy(_read_prompt(fields, key), prompt, completions):
            raise BadRow(f"`{fields.name(key)}` says something else than {form.name} in this row; {REMEDY}")


def _is_copy(copy: Text, prompt: Text, completions: list[Text]) -> bool:
    """Whether `copy` is the prompt, a message of it, or the conversation with one of its answers."""
    ours = _turns(prompt)
    if isinstance(copy, str):
        return any(collapsed(copy) in content for role, content in ours if role != "assistant")
    theirs = _turns(copy)
    answers = [_turns(text, "assistant") for text in completions]
    return theirs == ours or any(theirs[: len(ours) + 1] == [*ours, *answer] for answer in answers)


def _turns(text: Text, role: str = "user") -> list[tuple[str, str]]:
    """Role and collapsed content of each turn but the system message."""
    messages = [{"role": role, "content": text}] if isinstance(text, str) else text
    return [(each["role"], collapsed(each["content"])) for each in messages if each["role"] != "system"]


def _same_type(prompt: Text, completions: list[Text]) -> tuple[Text, list[Text]]:
    """Convert prompt and completions to messages if any of them is a list of messages."""
    if all(isinstance(text, str) for text in (prompt, *completions)):
        return prompt, completions
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return messages, [
        [{"role": "assistant", "content": text}] if isinstance(text, str) else text for text in completions
    ]
