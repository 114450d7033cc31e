"""The product of activations and a 4-bit weight on a CPU, by oneDNN where that is the faster library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

# Elements of a weight. Below, oneDNN gains nothing that makes up for the milliseconds in which it writes the
# code for each number of rows that is new to it.
LARGE = 2**18
# Shapes that oneDNN, and what torch has between, keep ready in place of 1024. Each takes a MiB or more, and a
# model has but a handful for each number of rows.
KEPT_READY = 32


@cache
def use_onednn() -> None:
    """Have bitsandbytes multiply by oneDNN on CPUs, in fp32 and where the weight is `LARGE`.

    torch itself multiplies fp32 matrices by MKL, which on AMD CPUs with AVX-512 and without takes 1.12 and
    1.14 times as long for 992 x 576 by 576 x 1536, and 1.49 and 1.73 times for 256 x 2048 by 2048 x 8192
    (tests/benchmarks/products.py).
    """
    for cache_of in ("ONEDNN_PRIMITIVE_CACHE", "LRU_CACHE"):
        os.environ.setdefault(f"{cache_of}_CAPACITY", str(KEPT_READY))  # read at the first product
    if torch.backends.mkldnn.is_available():
        torch.library.register_kernel("bitsandbytes::gemm_4bit", "cpu", _gemm_4bit)


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether `onednn_linear` takes tensors of `dtype` on this CPU: fp32, and bf16 where it has AVX-512."""
    if not torch.backends.mkldnn.is_available():
        return False
    in_bf16: bool = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or in_bf16


def onednn_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As torch's linear, (..., in) to (..., out), on a CPU; `weight` may be laid out for oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return product


def packed_weight(weight: Tensor, rows: int) -> Tensor:
    """`weight` (out, in) in the blocks that oneDNN's kernels read, for products of about `rows` rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed


def _gemm_4bit(
    A: Tensor,
    B: Tensor,
    shapeB: Sequence[int],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    bias: Tensor | None = None,
    absmax_8bit: Tensor | None = None,
    absmax_code: Tensor | None = None,
    absmax_offset: Tensor | None = None,
) -> Tensor:
    """A W^T + bias: (..., in) to (..., out); W (out, in) is `B` dequantized (QLoRA, equations 5 and 6)."""
    ops = torch.ops.bitsandbytes
    if absmax_8bit is not None:
        absmax = (
            ops.dequantize_blockwise(absmax_8bit, absmax, absmax_code, 256, torch.float32) + absmax_offset
        )
    weight = ops.dequantize_4bit(B, absmax, blocksize, quant_type, shapeB, A.dtype)
    if A.dtype == torch.float32 and weight.numel() >= LARGE:
        return onednn_linear(A, weight, bias)
    return nn.functional.linear(A, weight, bias)
