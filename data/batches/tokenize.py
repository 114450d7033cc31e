"""Turn rows into token ids: chat templates, the end-of-turn token, and the rule for over-long examples.

A completion ends with the tokenizer's end-of-sequence token, which is learned. In a conversation, the prompt
includes the template's generation prompt. Special tokens in the texts of rows are text (see `encoding`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from configs.schema import Data
from data.batches.encoding import encoder_of
from data.batches.fit import Counts, Encoded, Fitted, NoPair, count, fit_to_limits
from data.batches.template_check import check_template
from data.batches.turns import NotAPrefix, learned_turns
from data.sources.formats import Kind, Row
from data.sources.messages import Message, Text, as_messages, cut, last_text
from data.sources.order import without_copies
from data.sources.text import after, collapsed

# English has about 4 characters per token. Text far above the limits need not be tokenized as a whole.
CHARACTERS_PER_TOKEN = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Demonstration:
    """Token ids of a prompt and of its completion, which includes the end-of-turn token.

    A conversation of which several assistant turns are learned is a prompt up to the first of them, and a
    completion that is the rest. `learned` then tells which tokens of the completion are learned; None is all.
    `source` is the label of one of several sources. `chat` tells whether the chat template wrote the prompt.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    learned: list[bool] | None = None
    source: str = ""
    chat: bool = False

    @property
    def completion_mask(self) -> list[bool]:
        """True on the tokens of prompt and completion that are learned."""
        learned = [True] * len(self.completion_ids) if self.learned is None else self.learned
        return [False] * len(self.prompt_ids) + learned


@dataclass(frozen=True)
class Ranking:
    """Completions, best first. `ranks` ascend; completions of equal rank tie.

    `labels` are the scores that a labeller gave them, if it gave any. `source` is the label of one of several
    sources.
    """

    prompt: Text
    prompt_ids: list[int]
    completion_ids: list[list[int]]
    ranks: list[int]
    labels: list[float] | None = None
    source: str = ""


@dataclass(frozen=True)
class Prompt:
    """`text` is for people: the prompt, or the content of the last user message."""

    prompt: Text
    text: str
    prompt_ids: list[int]
    source: str = ""


def is_chat(prompt: Text, data: Data) -> bool:
    """Whether a prompt is a conversation, which the chat template writes, and no text to continue."""
    return data.chat or not isinstance(prompt, str)


def apply_template(tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
    """Set the template of `data.chat_template` on `tokenizer`, if there is one.

    Raises:
        UserError: the file cannot be read, or the template does not render a short conversation whole.
    """
    if data.chat_template is None:
        return
    file = Path(data.chat_template)
    if not file.is_file():
        raise UserError(
            f"data.chat_template: there is no file {file}. Name a Jinja file, or leave the key out."
        )
    try:
        tokenizer.chat_template = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template: cannot read {file}: {error}. Name a Jinja file in UTF-8, or none."
        ) from error
    check_template(tokenizer, ["user"], f"data.chat_template, {file}")


def demonstrations(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[list[Demonstration], Counts]:
    """Tokenize rows with `prompt` and `completion`. `fit_to_limits` has the rule for over-long ones.

    If a row has `learned` turns before its completion, `data.train_on` tells whether they are learned, too.
    """
    encoded: list[Encoded] = []
    masks: list[list[bool] | None] = []
    for row in rows:
        if "learned" in row and data.train_on == "all":
            turns, learned = _encode_turns(row, tokenizer, data)
            encoded.append(turns)
            masks.append(learned)
        else:
            encoded.append(_encode(row["prompt"], [row["completion"]], tokenizer, data, _where(row)))
            masks.append(None)
    fitted = [fit_to_limits(prompt_ids, completions, data) for prompt_ids, completions in encoded]
    kept = [
        Demonstration(
            fit.prompt_ids,
            fit.completion_ids[0],
            mask and mask[: len(fit.completion_ids[0])],
            row.get("source", ""),
            is_chat(row["prompt"], data),
        )
        for row, fit, mask in zip(rows, fitted, masks, strict=True)
        if fit is not None
    ]
    return kept, count(encoded, fitted, data)


def rankings(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[list[Ranking], Counts]:
    """Tokenize rows with `prompt`, `completions` and `ranks`. `fit_to_limits` has the rule for long ones.

    A row may have `completion_ids`, the tokens that the policy sampled. They are used unchanged, so that the
    reward model sees what was sampled. An answer that did not end its turn gets no end-of-turn token.
    """
    encoded = [_encode_ranking(row, tokenizer, data) for row in rows]
    fitted = [fit_to_limits(prompt_ids, completions, data) for prompt_ids, completions in encoded]
    counts = count(encoded, fitted, data)
    fitting = [
        (row, fit, _ranking(row, fit)) for row, fit in zip(rows, fitted, strict=True) if fit is not None
    ]
    useful = [(row, fit, ranking) for row, fit, ranking in fitting if len(set(ranking.ranks)) > 1]
    if fitting and not useful:
        raise NoPair(
            f"none of the {len(fitting)} rankings has two different completions of different rank in the "
            "tokens that are kept. Raise data.max_length, or give other rankings."
        )
    return [ranking for _, _, ranking in useful], replace(
        counts,
        kept=len(useful),
        truncated=sum(fit.truncated for _, fit, _ in useful),
        without_pair=len(fitting) - len(useful),
        copies=sum(len(row["ranks"]) - len(ranking.ranks) for row, _, ranking in useful),
    )


def _ranking(row: Row, fit: Fitted) -> Ranking:
    """The ranking without completions that are ranked apart from a copy, in text or in the tokens kept."""
    texts = [collapsed(last_text(completion)) for completion in row["completions"]]
    ids, ranks = fit.completion_ids, row["ranks"]
    kept = without_copies(texts, ranks)
    again = without_copies(
        [tuple(ids[position]) for position in kept], [ranks[position] for position in kept]
    )
    kept = [kept[position] for position in again]
    return Ranking(
        row["prompt"],
        fit.prompt_ids,
        [ids[position] for position in kept],
        [ranks[position] for position in kept],
        [row["scores"][position] for position in kept] if row.get("scores") else None,
        row.get("source", ""),
    )


def prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[list[Prompt], Counts]:
    """Tokenize rows with `prompt`. `fit_to_limits` has the rule for over-long ones."""
    encoded = [_encode(row["prompt"], [], tokenizer, data, _where(row)) for row in rows]
    fitted = [fit_to_limits(prompt_ids, completions, data) for prompt_ids, completions in encoded]
    kept = [
        Prompt(row["prompt"], last_text(row["prompt"]), fit.prompt_ids, row.get("source", ""))
        for row, fit in zip(rows, fitted, strict=True)
        if fit is not None
    ]
    return kept, count(encoded, fitted, data)


TOKENIZE: dict[Kind, Callable[..., tuple[list[Any], Counts]]] = {
    "demonstrations": demonstrations,
    "rankings": rankings,
    "prompts": prompts,
}


def answer(
    prompt: Text, text: str, ended: bool, tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[list[int], list[int]]:
    """Tokenize a prompt and a sampled answer. The answer gets an end-of-turn token only if it `ended`.

    Every sampled answer must be scored, so an over-long one is truncated. A chat's answer is tokenized by
    itself: else one token could span the prompt's last line break and one at the answer's beginning.
    """
    where = f"the prompt {last_text(prompt)[:60]!r}"
    if not is_chat(prompt, data):
        prompt_ids, (ids,) = _encode_text(str(prompt), [text], tokenizer, where)
    else:
        prompt_ids, _ = _encode_conversation(as_messages(prompt, "user"), [], tokenizer, where)
        ids = encoder_of(tokenizer).text(text.strip(), where, add_special_tokens=False)
        ids = _with_end(ids, end_of_turn(tokenizer))
    ids = ids if ended else ids[:-1]
    fitted = fit_to_limits(prompt_ids, [ids], data.model_copy(update={"overlong": "truncate"}))
    assert fitted is not None
    return fitted.prompt_ids, fitted.completion_ids[0]


def continuation(prompt: Text, answer: str, data: Data) -> str:
    """A sampled answer, whose ends were stripped, as it follows `prompt`: in a text, words stay apart."""
    return answer if is_chat(prompt, data) else after(str(prompt), answer)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that ends a completion.

    Raises:
        UserError: the tokenizer has no eos_token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no eos_token, so no answer could end. "
            "Set one in its tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


def _where(row: Row) -> str:
    """The name of a row in messages."""
    return str(row.get("where", f"the prompt {last_text(row['prompt'])[:60]!r}"))


def _encode_ranking(row: Row, tokenizer: PreTrainedTokenizerBase, data: Data) -> Encoded:
    if "completion_ids" not in row:
        return _encode(row["prompt"], row["completions"], tokenizer, data, _where(row))
    prompt_ids, _ = _encode(row["prompt"], [], tokenizer, data, _where(row))
    return prompt_ids, [list(ids) for ids in row["completion_ids"]]


def _encode(
    prompt: Text, completions: Sequence[Text], tokenizer: PreTrainedTokenizerBase, data: Data, where: str
) -> Encoded:
    """Token ids of a row."""

    def encode(texts: list[Text]) -> tuple[Encoded, None]:
        return _encode_whole(texts[0], texts[1:], tokenizer, data, where), None

    return _encode_as_far_as_kept([prompt, *completions], encode, data)[0]


def _encode_turns(row: Row, tokenizer: PreTrainedTokenizerBase, data: Data) -> tuple[Encoded, list[bool]]:
    """Token ids of a conversation up to its first learned turn and after, and which of these are learned."""
    where, whole = _where(row), [*row["prompt"], *row["completion"]]
    turns = [*row["learned"], len(whole) - 1]
    check_template(tokenizer, [message["role"] for message in row["prompt"]], where)

    def render(part: list[Message], prompt: bool) -> list[int]:
        within = [turn for turn in turns if turn < len(part)]
        return encoder_of(tokenizer).conversations([(part, prompt)], where, within)[0]

    def encode(texts: list[Text]) -> tuple[Encoded, list[bool]]:
        messages = as_messages(texts[0], "user")
        prompt_ids, ids, learned = learned_turns(render, messages, turns, end_of_turn(tokenizer))
        return (prompt_ids, [ids]), learned

    try:
        return _encode_as_far_as_kept([whole], encode, data)
    except NotAPrefix as error:
        reason = _not_a_prefix(tokenizer, error.alone, error.whole, where)
        raise UserError(
            f"{reason} Or set data.train_on to last, so that only the last turn is learned."
        ) from None


def _encode_as_far_as_kept(
    texts: list[Text], encode: Callable[[list[Text]], tuple[Encoded, T]], data: Data
) -> tuple[Encoded, T]:
    """Encode the texts of a row. If it is dropped or cut anyway, those far above the limits are shortened."""
    shortened = [cut(text, CHARACTERS_PER_TOKEN * data.max_length) for text in texts]
    if shortened != texts:
        encoded, learned = encode(shortened)
        fitted = fit_to_limits(*encoded, data)
        if fitted is None or fitted.truncated:
            return encoded, learned
    return encode(texts)


def _encode_whole(
    prompt: Text, completions: Sequence[Text], tokenizer: PreTrainedTokenizerBase, data: Data, where: str
) -> Encoded:
    """Token ids of a row whose texts are all strings or all lists of messages."""
    if not prompt and data.chat:
        raise UserError(
            f"{where}: a text without a prompt is no turn of a chat, and data.chat is true. Set it to false, "
            "or give `prompt` and `completion`."
        )
    if not is_chat(prompt, data):
        # Some data sets end an answer with the text of the end-of-turn token, which is added here.
        texts = [str(completion).removesuffix(str(tokenizer.eos_token)) for completion in completions]
        return _encode_text(str(prompt), texts, tokenizer, where)
    answers = [as_messages(completion, "assistant") for completion in completions]
    return _encode_conversation(as_messages(prompt, "user"), answers, tokenizer, where)


def _encode_conversation(
    prompt: list[Message], answers: Sequence[list[Message]], tokenizer: PreTrainedTokenizerBase, where: str
) -> Encoded:
    """Token ids of a prompt, which end with the generation prompt, and of each answer to it."""
    check_template(tokenizer, [message["role"] for message in prompt], where)
    conversations = [(prompt, True), *((prompt + answer, False) for answer in answers)]
    prompt_ids, *wholes = encoder_of(tokenizer).conversations(conversations, where)
    for whole in wholes:
        if whole[: len(prompt_ids)] != prompt_ids:
            raise UserError(_not_a_prefix(tokenizer, prompt_ids, whole, where))
    return prompt_ids, [_with_end(whole[len(prompt_ids) :], end_of_turn(tokenizer)) for whole in wholes]


def _encode_text(
    prompt: str, completions: Sequence[str], tokenizer: PreTrainedTokenizerBase, where: str
) -> Encoded:
    """Tokenize prompt + completion as one text, as TRL does.

    If a token would span both (the prompt ends in a blank), the completion is tokenized by itself. Generation
    continues exactly the prompt's tokens, so training must use them, too. If the prompt is empty and the
    tokenizer begins no text with a token of its own, the completion's first token is the prompt.
    """
    encoder = encoder_of(tokenizer)
    prompt_ids = encoder.text(prompt, where)
    if not prompt and not prompt_ids:  # of a text without a prompt, nothing predicts the first token
        prompt_ids = encoder.text(completions[0], where)[:1]
    answers = []
    for completion in completions:
        ids = encoder.text(prompt + completion, where)
        if ids[: len(prompt_ids)] == prompt_ids:
            ids = ids[len(prompt_ids) :]
        else:
            ids = encoder.text(completion, where, add_special_tokens=False)
        answers.append(_with_end(ids, end_of_turn(tokenizer)))
    return prompt_ids, answers


def _with_end(ids: list[int], end: int) -> list[int]:
    """Cut a completion after its last end-of-turn token (ChatML adds a line break), or append one."""
    if end not in ids:
        return [*ids, end]
    return ids[: len(ids) - ids[::-1].index(end)]


def _not_a_prefix(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], whole: list[int], where: str
) -> str:
    equal = [one == other for one, other in zip(prompt_ids, whole, strict=False)]
    first = (*equal, False).index(False)
    return (
        f"{where}: the chat template renders the prompt differently without and with its answer. "
        f"Without it, the prompt ends with {tokenizer.decode(prompt_ids[first:])!r}; with the answer it "
        f"continues with {tokenizer.decode(whole[first : first + 16])!r}. Set data.chat_template to a "
        "template that renders the prompt the same way."
    )
