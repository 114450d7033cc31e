"""LoftQ's start: a new adapter holds what quantization took from the base (Li et al. 2024, LoftQ).

Example: NF4 rounds a weight W to Q. The adapter starts as the product of rank r that is closest to W - Q, so
the policy starts nearer to the unquantized base than the quantized base is.

The paper goes on to quantize W - BA, and so on in turn (Algorithm 1). Here Q is the base of all roles and
stays as it is. Then one step is the best there is: no product of this rank is closer to W - Q (Eckart and
Young 1936).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor

from configs.errors import UserError
from configs.schema import Base
from stages.internals.bitsandbytes import dequantized_weight
from stages.models.base import model_folder
from stages.models.base_files import weight_files
from stages.models.roles import Roles

LARGEST_ERROR = 0.5  # of rounding, as a share of the weight; NF4's is about 0.1


class Fit(NamedTuple):
    """Norms over all adapted layers: of W - Q, and of W - Q less the adapter's product."""

    before: float
    after: float

    def __str__(self) -> str:
        share = 1 - self.after / self.before if self.before else 0.0
        return f"the new adapter takes up {share:.1%} of what quantization changed (Frobenius norm)"


class StoredWeights:
    """The weights of a base as its safetensors hold them: before quantization, read one at a time."""

    def __init__(self, base: Base, prefix: str) -> None:
        """List the tensors of the files.

        Args:
            prefix: what files may leave out before a module's name, or put there, such as `model`.
        """
        self._key, self._prefix = base.key, f"{prefix}."
        self._files = {name: file for file in weight_files(base, model_folder(base)) for name in _names(file)}

    def file_of(self, module: str) -> tuple[str, Path]:
        """Name and file of the weight of `module`.

        Raises:
            UserError: no file has it.
        """
        name = f"{module}.weight"
        for candidate in (name, name.removeprefix(self._prefix), self._prefix + name):
            if candidate in self._files:
                return candidate, self._files[candidate]
        raise UserError(
            f"adapter.init: loftq reads weights of {self._key}.model as they were before quantization, and "
            f"its files have no {name}. Set adapter.init to zero."
        )

    def read(self, module: str, quantized: Tensor) -> Tensor:
        """The weight (out, in) of `module`, fp32, from which `quantized` was rounded.

        Raises:
            UserError: no file has it, or it is another weight.
        """
        name, file = self.file_of(module)
        with safe_open(file, "pt") as tensors:
            stored = tensors.get_tensor(name).to(quantized.device, torch.float32)
        # Some classes store (in, out), which a square weight does not show.
        forms = [form for form in (stored, stored.t()) if form.shape == quantized.shape]
        weight = min(forms, key=lambda form: float((form - quantized).norm()), default=None)
        if weight is None or float((weight - quantized).norm()) > LARGEST_ERROR * float(quantized.norm()):
            raise UserError(
                f"adapter.init: loftq: {name} in {file} is not the weight that {module} was quantized from. "
                "Set adapter.init to zero."
            )
        return weight


@torch.no_grad()
def take_up_rounding(roles: Roles, role: str, base: Base) -> Fit:
    """Set the new adapter of `role` to the best approximation of what quantization took from the base.

    It needs the memory of one layer's weight four times, in fp32.

    Raises:
        UserError: the base's files do not hold the weights that its layers were quantized from.
    """
    stored = StoredWeights(base, roles.causal.base_model_prefix)
    before = after = 0.0
    for name, layer in adapted_layers(roles, role):
        inner = layer.get_base_layer()
        if not isinstance(inner, Linear4bit | Linear8bitLt):
            continue  # the LM head is not quantized
        quantized = dequantized_weight(inner).float()
        residual = stored.read(name, quantized) - quantized
        b, a = closest_product(residual, layer.r[role])
        _set_factors(layer, role, b, a)
        if role in layer.lora_magnitude_vector:  # DoRA's lengths are those of the weight it starts as
            lengths = (quantized + b @ a).norm(dim=1)
            layer.lora_magnitude_vector[role].weight.copy_(lengths)
        before += float(residual.square().sum())
        after += float((residual - b @ a).square().sum())
    return Fit(before**0.5, after**0.5)


def check_stored(roles: Roles, role: str, base: Base) -> None:
    """Raise UserError unless the base's files have a weight for each layer that `role` adapts."""
    stored = StoredWeights(base, roles.causal.base_model_prefix)
    head = roles.causal.get_output_embeddings()
    for name, layer in adapted_layers(roles, role):
        if layer is not head:  # which is not quantized, and may share the weight of the embeddings
            stored.file_of(name)


def adapted_layers(roles: Roles, role: str) -> Iterator[tuple[str, Any]]:
    """Names in the base, and modules, of the layers that `role` adapts."""
    for name, module in roles.causal.named_modules():
        if isinstance(module, LoraLayer) and role in module.lora_A:
            yield name, module


def closest_product(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The product B A of `rank` that is closest to `matrix` in the Frobenius norm (Eckart and Young 1936).

    The top singular vectors are eigenvectors of the smaller Gram matrix, which is faster than a full SVD.

    Args:
        matrix: (out, in)

    Returns:
        B (out, k) and A (k, in), of equal norms, with k = min(rank, out, in).
    """
    if matrix.shape[0] > matrix.shape[1]:
        b, a = closest_product(matrix.t(), rank)
        return a.t(), b.t()
    values, vectors = torch.linalg.eigh(matrix @ matrix.t())  # in ascending order
    u = vectors[:, -rank:].flip(1)
    roots = values[-rank:].flip(0).clamp(min=1e-20).pow(0.25)
    return u * roots, (u.t() @ matrix) / roots[:, None]


def _set_factors(layer: Any, role: str, b: Tensor, a: Tensor) -> None:
    """Make scaling * B A of the layer equal to `b` @ `a`. Ranks beyond theirs keep a B of zero."""
    root, k = layer.scaling[role] ** 0.5, a.shape[0]
    layer.lora_A[role].weight[:k] = a / root
    layer.lora_B[role].weight[:, :k] = b / root


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as tensors:
        return list(tensors.keys())
