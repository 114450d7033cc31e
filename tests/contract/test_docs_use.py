"""docs/guides/use.md: its code loads, merges and scores as the roles of the stages do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from configs.schema import Data, Source
from data.batches import tokenize
from stages.models.queries import ScalarQuery
from tests.support.docs_pages import blocks
from tests.support.roles import tiny_roles

MODULES = {
    block.text.splitlines()[0].removeprefix("# ").removesuffix(".py"): block.text
    for block in blocks("python", "guides/use.md")
}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The page's modules, imported."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in MODULES}


def test_a_chat_answers_on_the_quantized_base(page, adapters, tiny_folder) -> None:
    model, tokenizer = page["chat"].load(str(adapters["sft"]), str(tiny_folder))
    assert model.get_base_model().config.quantization_config.bnb_4bit_quant_type == "nf4"
    assert isinstance(page["chat"].answer(model, tokenizer, "My tea is cold."), str)


def test_the_merged_model_computes_base_and_adapter(page, adapters, tiny_folder, tmp_path) -> None:
    page["merge"].merge(str(tiny_folder), str(adapters["sft"]), str(tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    ids = torch.tensor([[5, 17, 200, 9]])
    plain = base(ids).logits
    expected = PeftModel.from_pretrained(base, str(adapters["sft"]))(ids).logits
    error = (merged(ids).logits - expected).abs().max()  # weights are rounded to bf16
    assert error < 0.1 * (plain - expected).abs().max()


def test_a_score_is_that_of_the_stages(page, adapters, tiny_tokenizer) -> None:
    folder, prompt, answer = adapters["rm"], "My tea is cold.", "Make a fresh cup."
    model = PeftModel.from_pretrained(tiny_roles().causal, str(folder))  # NF4 in fp32: no rounding to bf16
    head = load_file(folder / "head.safetensors")
    actual = page["score"].score(model, tiny_tokenizer, head, prompt, answer)

    roles, source = tiny_roles(), Source(path="rows.jsonl")
    roles.add_from("rm", folder, trainable=False)
    messages, data = [{"role": "user", "content": prompt}], Data(sft=source, rm=source, ppo=source)
    ids = torch.tensor([sum(tokenize.answer(messages, answer, True, tiny_tokenizer, data), [])])
    with torch.no_grad():
        expected = roles(ScalarQuery("rm", ids, torch.ones_like(ids)))[0, -1]
    assert actual == pytest.approx(float(expected), abs=1e-4)
