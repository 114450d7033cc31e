"""AdaLoRA (Zhang et al. 2023): update B diag(E) A, of which unimportant singular values become 0.

PEFT has the layers and the rule by which ranks are given (sections 3.2 and 3.3). This module is what its
trainer would do: the penalty that keeps B and A orthogonal, the allocation after each update, and its state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.adalora import AdaLoraLayer, AdaLoraModel
from torch import Tensor

from configs.schema import Adapter
from stages.internals.peft import adalora_scaling, importance
from stages.training.checkpoint import State


class RankBudget:
    """The ranks of an AdaLoRA model while it trains."""

    def __init__(self, model: AdaLoraModel) -> None:
        self._model = model
        self._name: str = model.trainable_adapter_name
        self._config = model.peft_config[self._name]

    def schedule(self, steps: int) -> None:
        """Let the ranks fall over `steps` updates: from a tenth of them on, until two thirds of them."""
        self._config.total_step = max(2, steps)  # PEFT gives ranks by what an earlier step has measured
        self._config.tinit, self._config.tfinal = steps // 10, steps // 3
        self._config.deltaT = max(1, steps // 100)

    def penalty(self) -> Tensor:
        """0.5 times the mean of ||A A^T - I|| and ||B^T B - I|| (equation 4; PEFT's weight and norm)."""
        grams = [
            gram
            for layer in self._layers().values()
            for gram in (
                layer.lora_A[self._name] @ layer.lora_A[self._name].t(),
                layer.lora_B[self._name].t() @ layer.lora_B[self._name],
            )
        ]
        distances = [(gram - torch.eye(len(gram), device=gram.device)).norm() for gram in grams]
        weight: float = self._config.orth_reg_weight
        return weight * torch.stack(distances).mean()

    def follow(self, optimizer: torch.optim.Optimizer, step: Callable[[], int]) -> None:
        """Allocate at the end of every step of `optimizer`, before its gradients are cleared."""
        optimizer.register_step_post_hook(lambda *_: self.allocate(step()))

    def allocate(self, step: int) -> None:
        """Give ranks after update number `step` (from 1), while the gradients are still there."""
        if all(p.grad is not None for layer in self._layers().values() for p in self._factors(layer)):
            self._model.update_and_allocate(step)

    def _layers(self) -> dict[str, Any]:
        named = self._model.model.named_modules()
        return {name: module for name, module in named if isinstance(module, AdaLoraLayer)}

    def _factors(self, layer: Any) -> list[Tensor]:
        return [layer.lora_A[self._name], layer.lora_B[self._name], layer.lora_E[self._name]]

    def ranks(self) -> list[int]:
        """How many singular values of each layer are not 0."""
        return [int(layer.lora_E[self._name].count_nonzero()) for layer in self._layers().values()]

    def as_lora(self, adapter: Adapter) -> tuple[LoraConfig, dict[str, Tensor]]:
        """The same update as plain LoRA of rank r, in PEFT's names: B diag(E) is its B.

        The columns of B that belong to singular values of 0 are 0.
        """
        config = LoraConfig(
            r=adapter.r,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            use_rslora=adapter.rslora,
            target_modules=self._config.target_modules,
            task_type=self._config.task_type,
        )
        scaling = adapter.alpha / (adapter.r**0.5 if adapter.rslora else adapter.r)
        tensors = {}
        for name, layer in self._layers().items():
            own = adalora_scaling(layer, self._name)
            a, b, e = (factor.detach() for factor in self._factors(layer))
            prefix = f"base_model.model.{name}"
            tensors[f"{prefix}.lora_A.weight"] = a.cpu().contiguous()
            tensors[f"{prefix}.lora_B.weight"] = (b * e.t() * (own / scaling)).detach().cpu().contiguous()
        return config, tensors

    def state_dict(self) -> State:
        """Averages of importance, and which ranks were kept at the end of the schedule."""
        tensors = {
            f"{average}/{name}": tensor.cpu()
            for average, of_parameters in importance(self._model).items()
            for name, tensor in of_parameters.items()
        }
        return State({"rank_pattern": self._config.rank_pattern}, tensors)

    def load_state_dict(self, state: State) -> None:
        averages = importance(self._model)
        parameters = dict(self._model.model.named_parameters())
        self._config.rank_pattern = state.values["rank_pattern"]
        for key, tensor in state.tensors.items():
            average, name = key.split("/", 1)
            averages[average][name] = tensor.to(parameters[name].device)
