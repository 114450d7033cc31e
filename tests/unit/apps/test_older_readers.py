"""An export says in the keys of transformers 4 what transformers 5 says in its own."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, LlamaConfig

from apps.export.older_readers import older_keys, write_for_transformers_4

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    ("written", "older"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, {"rope_theta": 1e5}),
        (
            {"dtype": "float32", "rope_parameters": YARN},
            {
                "torch_dtype": "float32",
                "rope_theta": 1e6,
                "rope_scaling": {key: value for key, value in YARN.items() if key != "rope_theta"},
            },
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 0.5}},
            {"rope_theta": 5.0, "partial_rotary_factor": 0.5},
        ),
        ({"rope_parameters": {"full": {"rope_theta": 1.0}, "sliding": {"rope_theta": 2.0}}}, {}),
        ({"model_type": "gpt2"}, {}),
    ],
)
def test_the_older_keys(written, older):
    assert older_keys(written) == older


@pytest.mark.parametrize("rope", [YARN, {"rope_type": "default", "rope_theta": 1e5}])
def test_transformers_5_reads_the_same_config(rope, tmp_path):
    LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    write_for_transformers_4(tmp_path)
    after = AutoConfig.from_pretrained(tmp_path)
    assert after.rope_parameters == before["rope_parameters"]
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == rope["rope_theta"]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }
