"""Turn rows into token ids: chat templates, the end-of-turn token, and the rule for over-long examples.

A completion ends with the tokenizer's end-of-sequence token, which is learned. In a conversation, the prompt
includes the template's generation prompt. Special tokens in the texts of rows are text (see `encoding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from configs.schema import Data
from data.batches.encoding import encoder_of
from data.batches.template_check import check_template
from data.sources.formats import Row
from data.sources.messages import Message, Text, cut

# English has about 4 characters per token. Text far above the limits need not be tokenized as a whole.
CHARACTERS_PER_TOKEN = 64


@dataclass(frozen=True)
class Demonstration:
    """Token ids of a prompt and of its completion, which includes the end-of-turn token."""

    prompt_ids: list[int]
    completion_ids: list[int]


@dataclass(frozen=True)
class Ranking:
    """Completions, best first. `ranks` ascend; completions of equal rank tie."""

    prompt: Text
    prompt_ids: list[int]
    completion_ids: list[list[int]]
    ranks: list[int]


@dataclass(frozen=True)
class Prompt:
    """`text` is for people: the prompt, or the content of the last user message."""

    prompt: Text
    text: str
    prompt_ids: list[int]


@dataclass(frozen=True)
class Counts:
    """Number of examples by outcome. Truncated examples count as kept, too."""

    kept: int = 0
    truncated: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kept:,} of {self.kept + self.dropped:,} examples kept, {self.truncated:,} of them "
            f"truncated; over-long and dropped: {self.dropped:,}"
        )


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
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template: cannot read {file}: {error}. Name a Jinja file in UTF-8, or none."
        ) from error
    check_template(tokenizer, ["user"], f"data.chat_template, {file}")


def demonstrations(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[list[Demonstration], Counts]:
    """Tokenize rows with `prompt` and `completion`. `_fit` has the rule for over-long ones."""
    encoded = [_encode(row["prompt"], [row["completion"]], tokenizer, data, _where(row)) for row in rows]
    fitted = [_fit(prompt_ids, completions, data) for prompt_ids, completions in encoded]
    kept = [Demonstration(fit.prompt_ids, fit.completion_ids[0]) for fit in fitted if fit is not None]
    return kept, _counts(encoded, fitted, data)


def rankings(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[list[Ranking], Counts]:
    """Tokenize rows with `prompt`, `completions` and `ranks`. `_fit` has the rule for over-long ones.

    A row may have `completion_ids`, the tokens that the policy sampled. They are used unchanged, so that the
    reward model sees what was sampled. An answer that did not end its turn gets no end-of-turn token.
    """
    encoded = [_encode_ranking(row, tokenizer, data) for row in rows]
    fitted = [_fit(prompt_ids, completions, data) for prompt_ids, completions in encoded]
    kept = [
        Ranking(row["prompt"], fit.prompt_ids, fit.completion_ids, row["ranks"])
        for row, fit in zip(rows, fitted, strict=True)
        if fit is not None
    ]
    return kept, _counts(encoded, fitted, data)


def prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[list[Prompt], Counts]:
    """Tokenize rows with `prompt`. `_fit` has the rule for over-long ones."""
    encoded = [_encode(row["prompt"], [], tokenizer, data, _where(row)) for row in rows]
    fitted = [_fit(prompt_ids, completions, data) for prompt_ids, completions in encoded]
    kept = [
        Prompt(row["prompt"], last_words(row["prompt"]), fit.prompt_ids)
        for row, fit in zip(rows, fitted, strict=True)
        if fit is not None
    ]
    return kept, _counts(encoded, fitted, data)


def answer(
    prompt: Text, text: str, ended: bool, tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[list[int], list[int]]:
    """Tokenize a prompt and a sampled answer. The answer gets an end-of-turn token only if it `ended`.

    Every sampled answer must be scored, so an over-long one is truncated. In a chat it is tokenized alone:
    otherwise one token could span the prompt's last line break and a line break at the answer's beginning.
    """
    where = f"the prompt {last_words(prompt)[:60]!r}"
    if isinstance(prompt, str) and not data.chat:
        prompt_ids, (ids,) = _encode_text(prompt, [text], tokenizer, where)
    else:
        prompt_ids, _ = _encode_conversation(_turn("user", prompt), [], tokenizer, where)
        ids = encoder_of(tokenizer).text(text.strip(), where, add_special_tokens=False)
        ids = _with_end(ids, end_of_turn(tokenizer))
    ids = ids if ended else ids[:-1]
    fitted = _fit(prompt_ids, [ids], data.model_copy(update={"overlong": "truncate"}))
    assert fitted is not None
    return fitted.prompt_ids, fitted.completion_ids[0]


def last_words(prompt: Text) -> str:
    """A prompt for people to read: the text, or the content of the last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


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


Encoded = tuple[list[int], list[list[int]]]  # token ids of the prompt, and of each completion


def _where(row: Row) -> str:
    """The name of a row in messages."""
    return str(row.get("where", f"the prompt {last_words(row['prompt'])[:60]!r}"))


def _encode_ranking(row: Row, tokenizer: PreTrainedTokenizerBase, data: Data) -> Encoded:
    if "completion_ids" not in row:
        return _encode(row["prompt"], row["completions"], tokenizer, data, _where(row))
    prompt_ids, _ = _encode(row["prompt"], [], tokenizer, data, _where(row))
    return prompt_ids, [list(ids) for ids in row["completion_ids"]]


def _encode(
    prompt: Text, completions: Sequence[Text], tokenizer: PreTrainedTokenizerBase, data: Data, where: str
) -> Encoded:
    """Token ids of a row. If it is dropped or cut anyway, text far above the limits is shortened first."""
    longest = CHARACTERS_PER_TOKEN * data.max_length
    shortened = [cut(text, longest) for text in (prompt, *completions)]
    if shortened != [prompt, *completions]:
        encoded = _encode_whole(shortened[0], shortened[1:], tokenizer, data, where)
        fitted = _fit(*encoded, data)
        if fitted is None or fitted.truncated:
            return encoded
    return _encode_whole(prompt, completions, tokenizer, data, where)


def _encode_whole(
    prompt: Text, completions: Sequence[Text], tokenizer: PreTrainedTokenizerBase, data: Data, where: str
) -> Encoded:
    """Token ids of a row whose texts are all strings or all lists of messages."""
    if isinstance(prompt, str) and not data.chat:
        # Some data sets end an answer with the text of the end-of-turn token, which is added here.
        texts = [str(completion).removesuffix(str(tokenizer.eos_token)) for completion in completions]
        return _encode_text(prompt, texts, tokenizer, where)
    answers = [_turn("assistant", completion) for completion in completions]
    return _encode_conversation(_turn("user", prompt), answers, tokenizer, where)


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


def _turn(role: str, text: Text) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _encode_text(
    prompt: str, completions: Sequence[str], tokenizer: PreTrainedTokenizerBase, where: str
) -> Encoded:
    """Tokenize prompt + completion as one text, as TRL does.

    If a token would span both (the prompt ends in a blank), the completion is tokenized alone. Generation
    continues exactly the prompt's tokens, so training must use them, too.
    """
    encoder = encoder_of(tokenizer)
    prompt_ids = encoder.text(prompt, where)
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
        f"{where}: the chat template renders the prompt differently alone and with its answer. Alone it ends "
        f"with {tokenizer.decode(prompt_ids[first:])!r}; with the answer it continues with "
        f"{tokenizer.decode(whole[first : first + 16])!r}. Set data.chat_template to a template that renders "
        "the prompt the same way."
    )


@dataclass(frozen=True)
class _Fitted:
    prompt_ids: list[int]
    completion_ids: list[list[int]]
    truncated: bool


def _fit(prompt_ids: list[int], completions: list[list[int]], data: Data) -> _Fitted | None:
    """Apply the rule for over-long examples. None means that the example is dropped.

    An example is over-long if its prompt has more than `max_prompt_length` tokens, or prompt and longest
    completion together more than `max_length`. `overlong: drop` drops it. `overlong: truncate` keeps the last
    `max_prompt_length` tokens of the prompt, which include the template's generation prompt, and as many
    first tokens of each completion as fit. A truncated completion has no end-of-turn token.
    """
    longest = max((len(ids) for ids in completions), default=0)
    if len(prompt_ids) <= data.max_prompt_length and len(prompt_ids) + longest <= data.max_length:
        return _Fitted(prompt_ids, completions, truncated=False)
    if data.overlong == "drop":
        return None
    prompt_ids = prompt_ids[-data.max_prompt_length :]
    room = data.max_length - len(prompt_ids)
    return _Fitted(prompt_ids, [ids[:room] for ids in completions], truncated=True)


def _counts(encoded: Sequence[Encoded], fitted: Sequence[_Fitted | None], data: Data) -> Counts:
    kept = [fit for fit in fitted if fit is not None]
    if encoded and not kept:
        prompt = min(len(prompt_ids) for prompt_ids, _ in encoded)
        whole = min(len(ids) + max(map(len, answers), default=0) for ids, answers in encoded)
        raise UserError(
            f"none of the {len(encoded)} examples fits: the shortest prompt has {prompt} tokens "
            f"(data.max_prompt_length: {data.max_prompt_length}), the shortest example {whole} "
            f"(data.max_length: {data.max_length}). Raise these limits, or set data.overlong to truncate."
        )
    return Counts(len(kept), sum(fit.truncated for fit in kept), len(fitted) - len(kept))
