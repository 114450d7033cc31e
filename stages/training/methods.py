"""Other ways to fine-tune than LoRA, for SFT to compare with: each is a config of PEFT's over the one base.

Roles exist for LoRA: several adapters on one base, merged for sampling, with heads. What is here is one
trained set of parameters on a base of its own process. AdaLoRA alone becomes a role, because its result is
written as plain LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    BeftConfig,
    IA3Config,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    ShiraConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from configs.errors import UserError
from configs.schema import Adapter, Sft
from stages.models.adapter_files import ADAPTER_FILE, Files
from stages.models.queries import Query
from stages.models.roles import Roles
from stages.training.rank_budget import RankBudget

TASK = "CAUSAL_LM"


def method_config(sft: Sft, adapter: Adapter, seed: int) -> PeftConfig:
    """PEFT's description of `sft.method`. What a method has no use for in `adapter`, it leaves.

    Args:
        seed: chooses the weights of random_subset.
    """
    layers = adapter.target_modules
    match sft.method:
        case "adalora":
            return _adalora(adapter)
        case "ia3":
            return IA3Config(
                task_type=TASK
            )  # the layers of its paper, which PEFT knows for each architecture
        case "bitfit":
            return BeftConfig(task_type=TASK, target_modules=layers)
        case "random_subset":
            return ShiraConfig(task_type=TASK, r=adapter.r, target_modules=layers, random_seed=seed)
        case "prefix":
            return PrefixTuningConfig(task_type=TASK, num_virtual_tokens=sft.virtual_tokens)
        case "prompt":
            return PromptTuningConfig(
                task_type=TASK, num_virtual_tokens=sft.virtual_tokens, prompt_tuning_init="SAMPLE_VOCAB"
            )
        case "p_tuning":
            return PromptEncoderConfig(task_type=TASK, num_virtual_tokens=sft.virtual_tokens)
        case _:
            raise ValueError(f"{sft.method} is LoRA itself")


def _adalora(adapter: Adapter) -> AdaLoraConfig:
    """Ranks fall from r to half of it on average."""
    return AdaLoraConfig(
        task_type=TASK,
        init_r=adapter.r,
        target_r=max(1, adapter.r // 2),
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        total_step=1,  # `RankBudget.schedule` sets it
    )


class MethodRoles(Roles):
    """A base with one method's parameters, which every forward uses.

    Attributes:
        budget: of AdaLoRA's ranks; None for other methods.
        prompts: the encoder of virtual tokens, for the methods that have them.
    """

    def __init__(self, base: PreTrainedModel, base_digest: str, config: PeftConfig) -> None:
        """Freeze `base` and start without parameters; `config` describes those to come."""
        super().__init__(base, base_digest)
        self._method = config
        self._alike = Adapter()  # the LoRA adapter that AdaLoRA's result is written as
        self._trained: set[str] = set()
        self.budget: RankBudget | None = None
        self.prompts: nn.ModuleDict | None = None

    def add_new(self, role: str, adapter: Adapter) -> None:
        """Add the method's parameters, trainable, as those of `role`.

        Raises:
            UserError: PEFT does not know the method for this architecture.
        """
        config = self._method
        try:
            self.peft = get_peft_model(self.causal, config, adapter_name=str(role))
        except (ValueError, TypeError, KeyError) as error:  # its text may show a whole layer
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise UserError(
                f"sft.method: PEFT has no {config.peft_type.value} for this base: {reason}. Choose another."
            ) from error
        self._peft.append(self.peft)
        self._alike = adapter
        if config.is_prompt_learning:
            self.prompts = self.peft.prompt_encoder
        self._trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        if isinstance(config, AdaLoraConfig):
            self.budget = RankBudget(self.peft.base_model)
        self._trainable[str(role)] = True

    def role_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """All trained parameters, by full parameter name."""
        return {name: parameter for name, parameter in self.named_parameters() if name in self._trained}

    def activate(self, role: str) -> None:
        """Nothing to choose: the method's parameters are always in use."""

    def inputs(self, query: Query) -> dict[str, Any]:
        """As PEFT's forward: virtual tokens before those of the query, or their keys and values."""
        inputs = super().inputs(query)
        if not self._method.is_prompt_learning:
            return inputs
        rows, count = len(query.input_ids), self._method.num_virtual_tokens
        mask, positions = inputs["attention_mask"], inputs["position_ids"] + count
        inputs["attention_mask"] = torch.cat([mask.new_ones(rows, count), mask], 1)
        inputs["position_ids"] = positions
        prompt = self.peft.get_prompt(rows)
        if isinstance(self._method, PrefixTuningConfig):
            return inputs | {"past_key_values": prompt}
        embedded = self.causal.get_input_embeddings()(inputs.pop("input_ids"))
        first = torch.arange(count, device=positions.device).expand(rows, count)
        return inputs | {
            "inputs_embeds": torch.cat([prompt.to(embedded.dtype), embedded], 1),
            "position_ids": torch.cat([first, positions], 1),
        }

    def saved(self, role: str, tensors: Mapping[str, Tensor]) -> tuple[PeftConfig, Files]:
        """See `Roles.saved`: PEFT's own file of the method. AdaLoRA becomes LoRA."""
        if self.budget is not None:
            config, lora = self.budget.as_lora(self._alike)
            return config, {ADAPTER_FILE: lora}
        own = get_peft_model_state_dict(self.peft, adapter_name=str(role), save_embedding_layers=False)
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
        return self._method, {ADAPTER_FILE: whole}
