"""A copy of the base for sampling, with a role's adapter folded into dequantized weights.

Sampling asks for one token after another, so on a quantized base every token pays for dequantizing every
layer, and for two small products of LoRA beside each large one. The copy pays once for each refresh.
"""

from __future__ import annotations

import copy
from typing import Any

import deepspeed
import psutil
import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.models.onednn import onednn_linear, onednn_multiplies
from stages.models.roles import Roles

MARGIN = 2.0  # free memory must hold the copy so many times over: training needs some of it as well
ROWS = 32  # of one decoding step, more or less: what oneDNN lays weights out for


class Packed(nn.Linear):
    """A linear layer for CPUs, whose weight oneDNN holds in the blocks that its kernels read.

    The few rows of a decoding step come to less work than laying a weight out anew for each product. `weight`
    itself stays without memory.
    """

    packed: Tensor

    def hold(self, weight: Tensor | None) -> None:
        """Take `weight` (out, in), or nothing, in place of what was held."""
        if weight is None:
            self.packed = torch.empty(0)
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.weight.dtype), ROWS)

    def forward(self, hidden: Tensor) -> Tensor:
        """As nn.Linear's: (..., in) to (..., out)."""
        return onednn_linear(hidden, self.packed, self.bias)


class MergedCopy:
    """A causal language model that computes what one role computes, in the base's compute dtype.

    Linear weights are W + scaling * B A, summed in fp32. Other parameters are the base's own, except under
    ZeRO-3, where those are in pieces, and except for the LM head where weights are `Packed`. Base and
    adapters are only read.
    """

    def __init__(self, roles: Roles) -> None:
        """Lay out the copy; memory is taken by `load_role`."""
        base = roles.causal
        with init_empty_weights():
            self.model: PreTrainedModel = type(base)(copy.deepcopy(base.config))
        self.model.eval()
        self._roles, self.device = roles, base.device
        self._dtype = roles.dtype
        self._held: str | None = None
        self._merged: list[tuple[Any, Any]] = []  # module of the copy, module of the base
        self._copied: dict[nn.Parameter, nn.Parameter] = {}  # parameter of the base, parameter of the copy
        for name, _ in list(self.model.named_modules()):
            self._adopt(name, base.get_submodule(name))
        self.model.requires_grad_(False)

    def _adopt(self, name: str, source: Any) -> None:
        """Give the module `name` the parameters and buffers of the base's module."""
        adapted = isinstance(source, LoraLayer)
        layer = source.get_base_layer() if adapted else source
        quantized = isinstance(layer, Linear4bit | Linear8bitLt)
        adapted_or_head = adapted or source is self._roles.causal.get_output_embeddings()
        packed = self._packs and (quantized or (adapted_or_head and type(layer) is nn.Linear))
        if quantized or packed:
            # The base's class may have been another one before quantization, with its weight transposed.
            kind = Packed if packed else nn.Linear
            linear = kind(layer.in_features, layer.out_features, layer.bias is not None, "meta", self._dtype)
            self.model.set_submodule(name, linear)
        target: Any = self.model.get_submodule(name)
        target._buffers.update(layer._buffers)
        for key, parameter in layer.named_parameters(recurse=False):
            if key == "weight" and (quantized or adapted or packed):
                shape = target.weight.shape
                target.weight = nn.Parameter(torch.empty(shape, dtype=self._dtype, device="meta"))
                self._merged.append((target, source))
            else:
                target.register_parameter(key, self._shared(parameter))

    def _shared(self, parameter: Any) -> nn.Parameter:
        """The base's parameter itself, or its one copy where ZeRO-3 shards it."""
        if "ds_shape" not in vars(parameter):
            return parameter
        if parameter not in self._copied:
            empty = torch.empty(parameter.ds_shape, dtype=parameter.dtype, device="meta")
            self._copied[parameter] = nn.Parameter(empty)
        return self._copied[parameter]

    @property
    def _packs(self) -> bool:
        return self.device.type == "cpu" and onednn_multiplies(self._dtype)

    @property
    def size(self) -> int:
        """Bytes that the copy holds beside the base."""
        own = [target.weight for target, _ in self._merged] + list(self._copied.values())
        return int(sum(parameter.numel() * parameter.element_size() for parameter in own))

    def fits(self, copies: int) -> bool:
        """Whether free memory holds the copy, `copies` of it where ranks share a CPU's, with a margin."""
        if self.device.type == "cuda":
            cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return bool(MARGIN * self.size <= torch.cuda.mem_get_info(self.device)[0] + cached)
        return bool(MARGIN * self.size * copies <= psutil.virtual_memory().available)

    @torch.no_grad()
    def load_role(self, role: str) -> PreTrainedModel:
        """The model with the weights of `role` as they are now. Under ZeRO-3 every rank must call."""
        if role != self._held or self._trains(role):
            self._copy_whole()
            for target, source in self._merged:
                # Layer by layer: a sharded base is never whole, only the copy is.
                with deepspeed.zero.GatheredParameters(list(source.parameters())):
                    _hold(target, merged_weight(source, role))
            self._held = role
        return self.model

    def release(self) -> None:
        """Give back the memory of a role that trains: training needs it, and will change the weights."""
        if self._held is not None and self._trains(self._held):
            for target, _ in self._merged:
                _hold(target, None)
            self._held = None

    def _trains(self, role: str) -> bool:
        return any(parameter.requires_grad for parameter in self._roles.role_parameters(role).values())

    def _copy_whole(self) -> None:
        """Once, what the copy cannot share with a base in pieces."""
        for parameter, meta in self._copied.items():
            if not meta.is_meta:
                continue
            with deepspeed.zero.GatheredParameters([parameter]):
                whole = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            for module in self.model.modules():
                for key, value in module.named_parameters(recurse=False):
                    if value is meta:
                        module.register_parameter(key, whole)
            self._copied[parameter] = whole


def _hold(target: Any, weight: Tensor | None) -> None:
    """Let a linear layer of the copy have a copy of `weight`, or none."""
    if isinstance(target, Packed):
        target.hold(weight)
    elif weight is None:
        target.weight = nn.Parameter(torch.empty_like(target.weight, device="meta"), requires_grad=False)
    else:
        target.weight = nn.Parameter(weight.to(target.weight.dtype, copy=True), requires_grad=False)


def merged_weight(source: Any, role: str) -> Tensor:
    """W + scaling * B A of `role`, or W alone where the layer has no adapter of it; fp32."""
    adapted = isinstance(source, LoraLayer) and role in source.scaling
    layer = source.get_base_layer() if isinstance(source, LoraLayer) else source
    weight: Tensor = layer.weight
    if isinstance(layer, Linear4bit | Linear8bitLt):
        weight = dequantize_bnb_weight(weight, state=vars(layer).get("state")).float()
        if adapted:  # in place: the product alone and scaled would be two more tensors to write and read
            a, b = (each[role].weight.float() for each in (source.lora_A, source.lora_B))
            weight.addmm_(b, a, alpha=source.scaling[role])
    elif adapted:
        weight = source.get_delta_weight(role).float().add_(weight)
    return weight.float()
