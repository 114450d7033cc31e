"""Private interfaces are as `stages.internals` expects. A failing test names the change."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import deepspeed
import peft
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups
from peft import AdaLoraConfig, get_peft_model
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from torch.distributed import distributed_c10d

from stages.internals import bitsandbytes as bitsandbytes_internals
from stages.internals import deepspeed as deepspeed_internals
from stages.internals import peft as peft_internals
from stages.internals import torch as torch_internals
from stages.internals import transformers as transformers_internals
from stages.internals import trl as trl_internals
from tests.support.roles import new_role, tiny_roles

# torch


def test_torch_set_pg_timeout() -> None:
    assert list(inspect.signature(distributed_c10d._set_pg_timeout).parameters) == ["timeout", "group"]


def test_torch_base_of_a_view() -> None:
    base = torch.zeros(4, 4)
    view = torch_internals.viewed_tensor(base[:2])
    assert view is not None and view.data_ptr() == base.data_ptr() and view.shape == base.shape
    assert torch_internals.viewed_tensor(base) is None


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")
def test_torch_onednn_operators() -> None:
    for name in ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported"):
        assert hasattr(torch.ops.mkldnn, name), name


# DeepSpeed


def test_deepspeed_compatible_ops() -> None:
    deepspeed_internals.build_no_ops()
    assert deepspeed.ops.__compatible_ops__ == {}
    source = Path(str(deepspeed.comm.__file__)).with_name("torch.py").read_text()
    assert "deepspeed.ops.__compatible_ops__" in source


def test_deepspeed_get_data_parallel_group() -> None:
    assert callable(groups._get_data_parallel_group)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("grad_partitions_flat_buffer", DeepSpeedZeroOptimizer_Stage3),
        ("fp32_partitioned_groups_flat", DeepSpeedZeroOptimizer_Stage3),
        ("_lazy_init_hp_params_optimizer_state", DeepSpeedZeroOptimizer),
    ],
)
def test_deepspeed_optimizers_have(name: str, optimizer: type) -> None:
    assert name in inspect.getsource(optimizer)


def test_deepspeed_marks_partitioned_parameters() -> None:
    source = inspect.getsource(deepspeed.runtime.zero.partition_parameters)
    assert "param.ds_status" in source and "param.ds_shape" in source
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert not deepspeed_internals.is_partitioned(parameter)
    assert not deepspeed_internals.is_sharded_now(parameter)
    vars(parameter)["ds_status"] = ZeroParamStatus.NOT_AVAILABLE
    vars(parameter)["ds_shape"] = torch.Size([5])
    assert deepspeed_internals.is_partitioned(parameter) and deepspeed_internals.is_sharded_now(parameter)
    assert deepspeed_internals.whole_shape(parameter) == (5,)


# PEFT


def test_peft_active_adapter_and_disable_adapters() -> None:
    roles = new_role(new_role(tiny_roles(), "policy", 0), "reference", 1)
    layer = next(module for module in roles.causal.modules() if isinstance(module, LoraLayer))
    before = [parameter.requires_grad for parameter in roles.parameters()]
    peft_internals.activate_adapter(layer, "reference")
    assert layer.active_adapters == ["reference"] and not layer.disable_adapters
    peft_internals.activate_adapter(layer, None)
    assert layer.disable_adapters
    assert [parameter.requires_grad for parameter in roles.parameters()] == before


def test_peft_lora_variant() -> None:
    layer = next(
        module
        for module in new_role(tiny_roles(), "policy", 0).causal.modules()
        if isinstance(module, LoraLayer)
    )
    assert peft_internals.is_plain_lora(layer, "policy")
    layer.lora_variant["policy"] = torch.nn.Identity()
    assert not peft_internals.is_plain_lora(layer, "policy")


def test_peft_rankallocator_and_ranknum() -> None:
    config = AdaLoraConfig(
        init_r=4, target_r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", total_step=9
    )
    model = get_peft_model(tiny_roles(quantization="none").causal, config).base_model
    assert peft_internals.importance(model) == {name: {} for name in peft_internals.AVERAGES}
    layer = next(module for module in model.modules() if isinstance(module, AdaLoraLayer))
    assert peft_internals.adalora_scaling(layer, "default") == pytest.approx(config.lora_alpha / 4, rel=1e-5)
    source = inspect.getsource(peft.tuners.adalora.layer)
    assert "ranknum = self.ranknum[active_adapter] + 1e-5" in source and "* scaling / ranknum" in source


# TRL


def test_trl_saved_tensors_of_the_chunked_function() -> None:
    seen = []

    class Watched(trl_internals.ChunkedLogProbFunction):
        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            seen.append(trl_internals.saved_head(ctx))
            return trl_internals.ChunkedLogProbFunction.backward(ctx, *gradients)

    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(7, 4)
    logprobs, *_ = Watched.apply(hidden, weight, None, torch.tensor([1, 2, 3]), 1.0, 5, None, 1.0, ())
    logprobs.sum().backward()
    ((saved, bias),) = seen
    assert saved.data_ptr() == weight.data_ptr() and bias is None
    torch.testing.assert_close(
        logprobs, trl_internals.selective_log_softmax(hidden @ weight.T, torch.tensor([1, 2, 3]))
    )


def test_trl_utilities() -> None:
    model = tiny_roles().causal
    trl_internals.disable_dropout_in_model(model)
    assert trl_internals.compute_flops_per_token(model.config, 16) > 0
    uniform = trl_internals.entropy_from_logits(torch.zeros(1, 2, 8))
    torch.testing.assert_close(uniform, torch.full((1, 2), 8.0).log())


# bitsandbytes


def test_bitsandbytes_gemm_4bit() -> None:
    schema = torch.ops.bitsandbytes.gemm_4bit.default._schema
    assert [argument.name for argument in schema.arguments] == [
        *("A", "B", "shapeB", "absmax", "blocksize", "quant_type", "bias"),
        *("absmax_8bit", "absmax_code", "absmax_offset"),
    ]


def test_bitsandbytes_support_avx512bf16_for_cpu() -> None:
    layer = Linear4bit(64, 64)
    assert "support_avx512bf16_for_cpu" in vars(layer)
    layer.support_avx512bf16_for_cpu = True
    bitsandbytes_internals.keep_packing(torch.nn.Sequential(layer))
    assert layer.support_avx512bf16_for_cpu is False


def test_bitsandbytes_quant_state_and_state() -> None:
    weights = {}
    for quantization in ("nf4", "int8", "none"):
        layer = tiny_roles(quantization=quantization).causal.model.layers[0].self_attn.q_proj
        quantized = quantization != "none"
        weights[quantization] = (
            bitsandbytes_internals.dequantized_weight(layer) if quantized else layer.weight
        )
    for quantization in ("nf4", "int8"):
        error = (weights[quantization].float() - weights["none"]).abs().max()
        assert 0 < error < 0.3 * weights["none"].abs().max(), quantization
    layer = tiny_roles().causal.model.layers[0].self_attn.q_proj
    assert torch.equal(bitsandbytes_internals.dequantized_4bit(layer.weight), weights["nf4"])


# transformers


def test_transformers_attn_implementation_is_stateful_and_commit_hash(tiny_folder: Path) -> None:
    model = tiny_roles().causal
    assert transformers_internals.attention_implementation(model) == "sdpa"
    assert not transformers_internals.is_recurrent(model)
    assert transformers_internals.commit_hash(model) is None
    model.config._commit_hash = "abc"
    assert transformers_internals.commit_hash(model) == "abc"
