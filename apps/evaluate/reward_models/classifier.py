"""A reward model that is a sequence classifier of transformers with one label, scored as its users score it.

A text is prompt, answer and the end of a turn; a conversation is what the chat template makes of it. So a
score is the logit that transformers' text-classification pipeline gives for that text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from apps.evaluate.reward_models.scorer import AT_ONCE, Row, ScoredRow, by_length
from apps.trained_run import this_process
from configs.errors import UserError
from configs.schema import Base, Data
from data.batches.encoding import encoder_of
from data.batches.tokenize import is_chat
from data.sources.messages import as_messages, last_text
from stages.models.base_checks import check_loaded, check_vocabulary, loading
from stages.models.base_files import check_weights

HEAD = "ForSequenceClassification"


class Classifier(Base):
    """A classifier in place of a base: the checks of its files are those of a base."""

    key: ClassVar = "--rm"


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let errors about a base name the option, and no key of an experiment."""
    try:
        yield
    except UserError as error:
        text = str(error)
        if "it has its own code" in text:
            reason = "it has its own code, which is not run here. Give a model of a type of transformers"
            raise UserError(f"--rm {name}: {reason}.") from error
        raise UserError(text.replace("--rm.model: cannot load", "--rm: cannot load", 1)) from error


def check_head(name: str, config: PretrainedConfig) -> None:
    """Raise UserError unless config.json describes a sequence classifier with one label."""
    heads = config.architectures or []
    if not any(head.endswith(HEAD) for head in heads):
        given = ", ".join(heads) or "no architecture"
        raise UserError(
            f"--rm {name}: its config.json says {given}, and a reward model is a sequence classifier with "
            "one label. Give such a model, an adapter with a head, or a run."
        )
    if config.num_labels != 1:
        raise UserError(
            f"--rm {name}: its head has {config.num_labels} labels, and a reward model has 1. Give a "
            "classifier that was trained with num_labels=1."
        )


class ClassifierScorer:
    """A classifier and its tokenizer. `Scorer` describes the interface."""

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Data
    ) -> None:
        self.name, self.model, self.tokenizer, self.data = name, model, tokenizer, data
        # BERT and its kin read a question and an answer as two texts, with a separator between them.
        self.reads_pairs = tokenizer.cls_token is not None and tokenizer.sep_token is not None
        turns = "plain text is a turn of a chat" if data.chat else "plain text stays text"
        form = "two texts with a separator" if self.reads_pairs and not data.chat else turns
        self.about = f"a classifier of transformers; {form}; at most {data.max_length:,} tokens"

    def score(self, rows: Sequence[Row]) -> list[ScoredRow]:
        found = {place: self._tokens(row) for place, row in enumerate(rows)}
        fitting = {place: ids for place, ids in found.items() if max(map(len, ids)) <= self.data.max_length}
        texts = [text for ids in fitting.values() for text in ids]
        # Without a token for padding, a decoder finds the end of one text alone.
        at_once = AT_ONCE if self.model.config.get_text_config().pad_token_id is not None else 1
        scores = iter(by_length(texts, len, self._logits, at_once))
        return [
            ScoredRow(
                row=place,
                answers=(answers := [last_text(answer).strip() for answer in rows[place]["completions"]]),
                ranks=rows[place]["ranks"],
                rewards=[next(scores) for _ in ids],
                lengths=[
                    len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers
                ],
                nats=[],
                labels=rows[place].get("scores"),
            )
            for place, ids in fitting.items()
        ]

    def _tokens(self, row: Row) -> list[list[int]]:
        """The tokens of the prompt with each answer."""
        prompt, where = row["prompt"], row["where"]
        if not is_chat(prompt, self.data):
            return [self._text(prompt, answer, where) for answer in row["completions"]]
        opened = as_messages(prompt, "user")
        conversations = [(opened + as_messages(answer, "assistant"), False) for answer in row["completions"]]
        return encoder_of(self.tokenizer).conversations(conversations, where)

    def _text(self, prompt: str, answer: str, where: str) -> list[int]:
        tokenizer = self.tokenizer
        if self.reads_pairs:
            return list(tokenizer(prompt, answer, verbose=False)["input_ids"])
        answer = answer.removesuffix(str(tokenizer.eos_token))
        ids = encoder_of(tokenizer).text(prompt + answer, where)
        return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]

    @torch.no_grad()
    def _logits(self, some: Sequence[list[int]]) -> list[float]:
        batch = self.tokenizer.pad({"input_ids": list(some)}, return_tensors="pt").to(self.model.device)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if self.reads_pairs and not self.data.chat and "token_type_ids" in self.tokenizer.model_input_names:
            ends = batch["input_ids"] == self.tokenizer.sep_token_id
            inputs["token_type_ids"] = (ends.cumsum(1) - ends.long()).clamp(max=1)  # 1 after the first
        logits: list[float] = self.model(**inputs).logits[:, 0].float().tolist()
        return logits


def open_classifier(
    config: Classifier, folder: str, tokenizer: PreTrainedTokenizerBase, data: Data
) -> ClassifierScorer:
    """Load the classifier in `folder`, or of this hub id.

    Raises:
        UserError: its weights are damaged, incomplete or a pickle, or the tokenizer is not its own.
    """
    device = this_process().device
    check_weights(config, folder)
    with loading(config, "weights"):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            revision=config.revision,
            dtype="auto",  # as it was saved, which is the pipeline's default
            device_map={"": device},
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    check_loaded(config, report)
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = tokenizer.pad_token_id
    elif tokenizer.pad_token_id != text.pad_token_id:  # a decoder finds the end of a text by the config's
        tokenizer.pad_token_id = text.pad_token_id
    check_vocabulary(config, text, tokenizer)
    return ClassifierScorer(config.model, model.eval(), tokenizer, data)
