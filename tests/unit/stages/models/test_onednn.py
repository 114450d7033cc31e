"""4-bit products on a CPU: results and gradients are unchanged, and oneDNN computes the large products."""

import os
import subprocess
import sys

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch.profiler import profile

from stages.models.onednn import LARGE, use_onednn

ONEDNN = "mkldnn::_linear_pointwise"
CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")


def nf4(width, height, bias, double, dtype=torch.float32):
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(
        width, height, bias, compute_dtype=dtype, compress_statistics=double, quant_type="nf4"
    )
    layer.requires_grad_(False)
    return layer.to("cpu")  # quantizes


@pytest.fixture(autouse=True)
def registered():
    use_onednn()
    use_onednn()  # a second base is no second kernel


@pytest.mark.parametrize("double", [True, False], ids=["double-quantized", "quantized"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_product_and_its_gradient_are_those_of_the_dequantized_weight(bias, double):
    layer = nf4(512, LARGE // 512, bias, double)
    weight = dequantize_4bit(layer.weight, layer.weight.quant_state)
    for shape in [(5, 512), (2, 3, 512), (1, 512)]:
        x = torch.randn(shape, requires_grad=True)
        x_copy = x.detach().clone().requires_grad_()
        product = layer(x)
        expected = torch.nn.functional.linear(x_copy, weight, layer.bias)
        torch.testing.assert_close(product, expected)
        upstream = torch.randn_like(product)
        product.backward(upstream)
        expected.backward(upstream)
        torch.testing.assert_close(x.grad, x_copy.grad)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("height", "dtype", "by_onednn"),
    [(LARGE // 512, torch.float32, True), (64, torch.float32, False), (LARGE // 512, torch.bfloat16, False)],
    ids=["large", "small", "bf16"],
)
def test_large_fp32_products_are_onednn_s(height, dtype, by_onednn):
    layer = nf4(512, height, bias=False, double=True, dtype=dtype)
    x = torch.randn(4, 512).to(dtype)
    with profile() as profiled:
        product = layer(x)
    assert product.dtype == dtype
    assert (ONEDNN in {event.name for event in profiled.events()}) == by_onednn


GROWTH = """
import psutil, torch
from stages.internals.torch import onednn_linear
from stages.models.onednn import use_onednn
use_onednn()
weight = torch.randn(1024, 1024)
def work(rows):
    for count in rows:
        onednn_linear(torch.zeros(count, 1024), weight, None)
    return psutil.Process().memory_info().rss
before = work([900, *range(100, 300)])
print(work(range(300, 700)) - before)
"""


def memory_growth(**environment):
    """Growth in bytes of a process that multiplies batches of 400 new sizes."""
    command = [sys.executable, "-c", GROWTH]
    # Without the variables that a base in this process has set.
    inherited = {name: value for name, value in os.environ.items() if name not in CAPACITIES}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=inherited | environment)
    return int(result.stdout)


def test_batches_of_many_sizes_do_not_fill_the_memory():
    assert memory_growth(**dict.fromkeys(CAPACITIES, "1024")) > 400 * 2**20
    assert memory_growth() < 200 * 2**20
