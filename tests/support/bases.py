"""Random bases other than the tiny one, for reward models that have their own base."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "</s>"
TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
)


def wider_base(tiny: Path, folder: Path) -> Path:
    """A base with the tokenizer of `tiny`. It is twice as wide and has one layer."""
    shutil.copytree(tiny, folder)
    _write_model(folder, vocabulary=384)
    return folder


def foreign_base(folder: Path) -> Path:
    """A base whose tokenizer has different tokens, end of turn and chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["user assistant what is the weather like in the garden today"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        chat_template=TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    _write_model(folder, vocabulary=tokenizer.get_vocab_size())
    return folder


def _write_model(folder: Path, vocabulary: int) -> None:
    torch.manual_seed(vocabulary)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
