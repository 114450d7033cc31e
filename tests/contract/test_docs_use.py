"""docs/guides/use.md: its code loads a policy and lets it answer."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.docs_pages import blocks

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
