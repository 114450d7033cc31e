"""Speed and memory: operations by hand, and clocks and memory that agree with other measurements."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig

from stages.training.throughput import Meter, Stopwatch, forward_flops, matmul_flops, peak_memory_bytes


def test_meter_divides_tokens_by_seconds(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter = Meter()
    assert meter.tokens_per_second == 0.0
    meter.add(30)
    meter.add(12)
    now = 104.0
    assert meter.tokens == 42
    assert meter.tokens_per_second == 10.5


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_peak_memory_is_what_the_kernel_says(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    peak = peak_memory_bytes()
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    assert peak == pytest.approx(int(line.split()[1]) * 1024, rel=0.02)


def test_operations_of_a_forward_by_hand() -> None:
    hidden, kv, inner, vocabulary, layers, length = 64, 32, 128, 384, 2, 10
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
    )
    linear = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner  # q and o; k and v; gate, up and down
    attention = 2 * hidden * length  # scores and what they weigh
    by_hand = 2 * (layers * (linear + attention) + vocabulary * hidden)  # a product and a sum each
    assert forward_flops(config, 30, length) == pytest.approx(30 * by_hand)


def test_unknown_layouts_have_none() -> None:
    assert forward_flops(PretrainedConfig(), 30, 10) is None


def test_a_matrix_product_has_a_rate() -> None:
    rate = matmul_flops(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e14


def test_laps_follow_one_another() -> None:
    begin = time.perf_counter()
    watch = Stopwatch()
    time.sleep(0.02)
    laps = [watch.lap(), watch.lap()]
    assert laps[0] >= 0.02 and laps[1] >= 0 and sum(laps) <= time.perf_counter() - begin
