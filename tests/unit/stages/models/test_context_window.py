"""The context window of a model, under each of the names that configs give it."""

from __future__ import annotations

import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig, PretrainedConfig

from apps.answers.prompts import LONGEST, window_of
from stages.models.base_checks import context_window


@pytest.mark.parametrize(
    ("config", "window", "here"),
    [
        (LlamaConfig(max_position_embeddings=512), 512, 512),
        (LlamaConfig(max_position_embeddings=131072), 131072, LONGEST),
        (GPT2Config(n_positions=1024), 1024, 1024),
        (BloomConfig(), None, LONGEST),
    ],
)
def test_the_window_of_a_model(config: PretrainedConfig, window: int | None, here: int) -> None:
    assert (context_window(config), window_of(config)) == (window, here)
