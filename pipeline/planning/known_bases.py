"""Sizes of well-known bases, for a plan without the hub and for the hardware table of the docs."""

from __future__ import annotations

from typing import Any


def _sizes(
    hidden: int, layers: int, heads: tuple[int, int, int], intermediate: int, vocabulary: int, tied: bool
) -> dict[str, Any]:
    """The keys of a config.json; `heads`: of queries, of keys, and the width of one."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


SMOLLM2_135M = _sizes(576, 30, (9, 3, 64), 1536, 49_152, True)
QWEN25_05B = _sizes(896, 24, (14, 2, 64), 4864, 151_936, True)
QWEN25_15B = _sizes(1536, 28, (12, 2, 128), 8960, 151_936, True)
QWEN25_3B = _sizes(2048, 36, (16, 2, 128), 11_008, 151_936, True)
QWEN25_7B = _sizes(3584, 28, (28, 4, 128), 18_944, 152_064, False)
KNOWN = {
    "smollm2-135m-instruct": SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-360M-Instruct": _sizes(960, 32, (15, 5, 64), 2560, 49_152, True),
    "Qwen/Qwen2.5-0.5B-Instruct": QWEN25_05B,
    "Qwen/Qwen2.5-1.5B-Instruct": QWEN25_15B,
    "Qwen/Qwen2.5-3B-Instruct": QWEN25_3B,
    "Qwen/Qwen2.5-7B-Instruct": QWEN25_7B,
    "Qwen/Qwen3-8B": _sizes(4096, 36, (32, 8, 128), 12_288, 151_936, False),
}
