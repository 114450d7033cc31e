"""A copy of the base for sampling, with a role's adapter folded into dequantized weights.

On a quantized base, every sampled token pays for dequantizing every layer, and for two small LoRA products
beside each large one. The copy pays once per refresh.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.distributed.free_memory import free_ram
from stages.distributed.zero3 import whole
from stages.internals.bitsandbytes import dequantized_weight
from stages.internals.deepspeed import is_partitioned, whole_shape
from stages.internals.torch import onednn_linear, onednn_multiplies, packed_weight
from stages.models.roles import Roles

MARGIN = 2.0  # free memory must hold this many copies, because training needs some of it
ROWS = 32  # the rows of a decoding step, roughly. oneDNN packs weights for this number.


class PackedLinear(nn.Linear):
    """A linear layer for CPUs. Its weight is packed once into the blocks that oneDNN's kernels read.

    A decoding step has few rows, so packing the weight for each product would cost more than the product.
    `weight` itself takes no memory.
    """

    packed: Tensor

    def set_weight(self, weight: Tensor | None) -> None:
        """Pack `weight` (out, in) in place of the earlier one; None frees it."""
        if weight is None:
            self.packed = torch.empty(0)
        else:
            self.packed = packed_weight(weight.to(self.weight.dtype), ROWS)

    def forward(self, hidden: Tensor) -> Tensor:
        """As nn.Linear's: (..., in) to (..., out)."""
        return onednn_linear(hidden, self.packed, self.bias)


class MergedCopy:
    """A causal language model that computes what one role computes, in the base's compute dtype.

    Linear weights are W + scaling * B A, summed in fp32 (Hu et al. 2021, equation 3). Other parameters are
    shared with the base. Two kinds are copied: sharded ones under ZeRO-3, and the LM head if weights are
    `PackedLinear`. Base and adapters are only read.

    Attributes:
        model: the copy, on the meta device until `load_role`.
        device: the device of the base.
    """

    def __init__(self, roles: Roles, dtype: torch.dtype | None = None, *, packs: bool = True) -> None:
        """Build the modules without memory; `load_role` allocates it.

        Args:
            dtype: of the merged weights; None for the base's compute dtype.
            packs: use `PackedLinear` on CPUs that have oneDNN's products.
        """
        base = roles.causal
        with init_empty_weights():
            self.model: PreTrainedModel = type(base)(copy.deepcopy(base.config))
        self.model.eval()
        self._roles, self.device = roles, base.device
        self._dtype = dtype or roles.dtype
        self._packs = packs and self.device.type == "cpu" and onednn_multiplies(self._dtype)
        self._role: str | None = None
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
            # Before quantization, the base's class may have been another one with a transposed weight.
            kind = PackedLinear if packed else nn.Linear
            linear = kind(layer.in_features, layer.out_features, layer.bias is not None, "meta", self._dtype)
            self.model.set_submodule(name, linear)
        target: Any = self.model.get_submodule(name)
        own = dict(target.named_buffers(recurse=False))
        for key, buffer in layer.named_buffers(recurse=False):
            if key in own:
                setattr(target, key, buffer)  # which knows whether it is saved with the weights
            else:
                target.register_buffer(key, buffer, persistent=False)
        for key, parameter in layer.named_parameters(recurse=False):
            if key == "weight" and (quantized or adapted or packed):
                shape = target.weight.shape
                target.weight = nn.Parameter(torch.empty(shape, dtype=self._dtype, device="meta"))
                self._merged.append((target, source))
            else:
                target.register_parameter(key, self._shared(parameter))

    def _shared(self, parameter: Any) -> nn.Parameter:
        """The base's parameter itself, or its one copy if ZeRO-3 shards it."""
        if not is_partitioned(parameter):
            return parameter
        if parameter not in self._copied:
            empty = torch.empty(whole_shape(parameter), dtype=parameter.dtype, device="meta")
            self._copied[parameter] = nn.Parameter(empty)
        return self._copied[parameter]

    @property
    def size(self) -> int:
        """Bytes of the copy, without what it shares with the base."""
        own = [target.weight for target, _ in self._merged] + list(self._copied.values())
        return int(sum(parameter.numel() * parameter.element_size() for parameter in own))

    def fits(self, copies: int) -> bool:
        """Whether free memory holds the copy with a margin. On a CPU, `copies` ranks share the memory."""
        if self.device.type == "cuda":
            cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return bool(MARGIN * self.size <= torch.cuda.mem_get_info(self.device)[0] + cached)
        return bool(MARGIN * self.size * copies <= free_ram())

    @torch.no_grad()
    def load_role(self, role: str) -> PreTrainedModel:
        """The model with the current weights of `role`. Under ZeRO-3 every rank must call."""
        if role != self._role or self._trains(role):
            self._copy_sharded()
            for target, source in self._merged:
                # Layer by layer, so that a sharded base is never gathered as a whole.
                with whole(*source.parameters()):
                    _set_weight(target, merged_weight(source, role))
            self._role = role
        return self.model

    def release(self) -> None:
        """Free the weights of a role that trains: training needs the memory, and changes the weights."""
        if self._role is not None and self._trains(self._role):
            for target, _ in self._merged:
                _set_weight(target, None)
            self._role = None

    def _trains(self, role: str) -> bool:
        return any(parameter.requires_grad for parameter in self._roles.role_parameters(role).values())

    def _copy_sharded(self) -> None:
        """Copy the parameters that ZeRO-3 shards, at the first call."""
        for parameter, meta in self._copied.items():
            if not meta.is_meta:
                continue
            with whole(parameter):
                copied = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            for module in self.model.modules():
                for key, value in module.named_parameters(recurse=False):
                    if value is meta:
                        module.register_parameter(key, copied)
            self._copied[parameter] = copied


def _set_weight(target: Any, weight: Tensor | None) -> None:
    """Give a linear layer a copy of `weight`; None frees it."""
    if isinstance(target, PackedLinear):
        target.set_weight(weight)
    elif weight is None:
        target.weight = nn.Parameter(torch.empty_like(target.weight, device="meta"), requires_grad=False)
    else:
        target.weight = nn.Parameter(weight.to(target.weight.dtype, copy=True), requires_grad=False)


def merged_weight(source: Any, role: str) -> Tensor:
    """W + scaling * B A of `role`, (out, in), fp32; for DoRA, with its lengths; only W without an adapter."""
    adapted = isinstance(source, LoraLayer) and role in source.scaling
    layer = source.get_base_layer() if isinstance(source, LoraLayer) else source
    weight: Tensor = layer.weight
    if isinstance(layer, Linear4bit | Linear8bitLt):
        weight = dequantized_weight(layer).float()
        if adapted:  # in place, which saves two tensors of this size
            a, b = source.lora_A[role].weight.float(), source.lora_B[role].weight.float()
            weight.addmm_(b, a, alpha=source.scaling[role])
    elif adapted:
        weight = source.get_delta_weight(role).float().add_(weight)
    if adapted and role in source.lora_magnitude_vector:
        return _with_lengths(weight.float(), source.lora_magnitude_vector[role].weight, source.fan_in_fan_out)
    return weight.float()


def _with_lengths(weight: Tensor, lengths: Tensor, transposed: bool) -> Tensor:
    """DoRA's weight (Liu et al. 2024, equation 5): the vector of each output has the length that was trained.

    Args:
        lengths: (out,)
        transposed: `weight` is (in, out), not (out, in).
    """
    inputs = 0 if transposed else 1
    return weight * (lengths.float().unsqueeze(inputs) / weight.norm(dim=inputs, keepdim=True))
