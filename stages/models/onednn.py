"""The product of activations and a 4-bit weight on a CPU, by oneDNN if oneDNN is faster."""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor, nn

from stages.internals.bitsandbytes import multiply_4bit_by
from stages.internals.torch import onednn_linear

# Elements of a weight. For smaller weights, oneDNN's gain does not make up for the milliseconds that it takes
# to generate code for each new number of rows.
LARGE = 2**18
# Shapes that oneDNN and torch cache; the default is 1024. A shape takes 1 MiB or more, and a model has only a
# few for each number of rows.
CACHED_SHAPES = 32


@cache
def use_onednn() -> None:
    """Make bitsandbytes use oneDNN on CPUs, in fp32 and if the weight is `LARGE`.

    torch uses MKL for fp32 matrices. On AMD CPUs with AVX-512, MKL takes 1.12 times as long for
    992 x 576 by 576 x 1536, and 1.49 times for 256 x 2048 by 2048 x 8192. Without AVX-512, it takes 1.14 and
    1.73 times as long. tests/benchmarks/products.py measures this.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE", "LRU_CACHE"):
        os.environ.setdefault(f"{name}_CAPACITY", str(CACHED_SHAPES))  # read at the first product
    if torch.backends.mkldnn.is_available():
        multiply_4bit_by(_product)


def _product(activations: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., in) times (out, in) transposed: (..., out)."""
    if activations.dtype == torch.float32 and weight.numel() >= LARGE:
        return onednn_linear(activations, weight, bias)
    return nn.functional.linear(activations, weight, bias)
