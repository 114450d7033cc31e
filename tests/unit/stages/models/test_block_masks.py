"""Bases on which a mask separates the texts of one row compute each text as if it were alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from configs.errors import UserError
from stages.models.base_checks import check_packing, supports_block_mask

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def base(kind: str, attention: str = "sdpa", **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "olmo2"])
@torch.no_grad()
def test_texts_of_one_row_are_as_each_alone(kind: str) -> None:
    model = base(kind)
    check_packing(model, "sft.packing")
    texts = [torch.tensor([3, 4, 5, 6]), torch.tensor([7, 8, 9])]
    lengths = torch.tensor([len(text) for text in texts])
    owner = torch.repeat_interleave(torch.arange(len(texts)), lengths)
    mask = (owner[:, None] == owner) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    row = torch.cat(texts)[None]
    packed = model(input_ids=row, attention_mask=mask[None, None], position_ids=positions).logits[0]
    expected = torch.cat([model(input_ids=text[None]).logits[0] for text in texts])
    torch.testing.assert_close(packed, expected)
    unmasked = model(input_ids=row, position_ids=positions, attention_mask=torch.ones_like(row)).logits[0]
    assert not torch.allclose(unmasked, expected)  # without the mask, texts see each other


@pytest.mark.parametrize(
    ("kind", "attention", "changes"),
    [
        ("llama", "eager", {}),  # takes additive masks
        ("mistral", "sdpa", {"sliding_window": 4}),
        ("gemma3_text", "sdpa", {"head_dim": 8}),  # layers of both kinds
        ("gpt2", "sdpa", {}),  # positions learned, not rotary
        ("bloom", "eager", {}),  # positions are part of the mask
        ("mamba", "eager", {"state_size": 4}),  # recurrent
    ],
)
def test_other_bases_are_refused(kind: str, attention: str, changes: dict[str, object]) -> None:
    model = base(kind, attention, **changes)
    assert not supports_block_mask(model)
    with pytest.raises(
        UserError, match=r"sft\.packing: this base cannot separate .* Set sft\.packing to false"
    ):
        check_packing(model, "sft.packing")
