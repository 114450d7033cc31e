"""One quantized base, several roles: each role is a LoRA adapter on the base, with its own head.

The base is frozen and loaded once (QLoRA, Dettmers et al. 2023). LoRA weights and scalar heads are
fp32: at RLHF learning rates, updates of bf16 weights round to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from configs.errors import UserError
from configs.schema import Adapter
from stages.internals.peft import activate_adapter
from stages.models.adapter_files import (
    HEAD_FILE,
    Ending,
    Files,
    Pooling,
    check_adapter,
    files_of,
    loading_adapter,
    read_ending,
    read_pooling,
    unusable,
)
from stages.models.fused_lora import RowAdapters, add_in_one_pass, can_mix
from stages.models.queries import Query, ScalarQuery, TokenQuery, repeated
from stages.models.token_statistics import (
    TokenStatistics,
    can_read_hidden_states,
    statistics_of_hidden_states,
    statistics_of_logits,
)

MIXED = 4  # roles in one forward, which takes as many times the memory of one


class Role(StrEnum):
    """A use of the base. A role has an adapter, a scalar head, or both; `BASE` has neither."""

    POLICY = "policy"
    REFERENCE = "reference"  # what the KL is to, frozen: the SFT policy, or that of ppo.from
    SFT = "sft"  # the SFT policy, frozen, if it is not the reference
    REWARD = "reward"
    CRITIC = "critic"
    BASE = "base"  # the model before any training


class ScalarHead(nn.Module):
    """Affine map from a hidden state to one number, in fp32 whatever the dtype of the base.

    Attributes:
        ending: what the head reads in place of the token that ends a turn; None for that token.
        pooling: the score of an answer is the scalar at its last token, or the mean over its tokens.
    """

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        super().__init__()
        self.ending: Ending | None = None
        self.pooling: Pooling = "last"
        # Standard deviation 1/sqrt(d + 1), as in Stiennon et al. 2020, appendix: scores start near 0.
        self.weight = nn.Parameter(torch.randn(1, hidden_size).div_((hidden_size + 1) ** 0.5).to(device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, T, H) to scalars (B, T), fp32."""
        return nn.functional.linear(hidden.float(), self.weight, self.bias).squeeze(-1)

    def read(self, answer: Sequence[int]) -> list[int]:
        """The tokens of an answer up to the one at which its score is read."""
        if self.ending is None or not answer or answer[-1] != self.ending.end:
            return list(answer)
        return [*answer[:-1], *self.ending.read]


class Roles(nn.Module):
    """Adapters and heads over one frozen causal language model.

    Activating a role chooses the adapter of the next forward. It does not change `requires_grad`. Under
    gradient checkpointing, backward recomputes the forward with the role that is active then. So run the
    backward of a role before you activate another.

    Attributes:
        budget: of AdaLoRA's ranks (see `MethodRoles`); None otherwise.
    """

    budget: Any = None

    def __init__(self, base: PreTrainedModel, base_digest: str = "") -> None:
        """Freeze `base` and start without roles.

        Args:
            base_digest: identity of the base (see `stages.models.base.base_digest`).
        """
        super().__init__()
        base.requires_grad_(False)
        self.causal = base
        self.base_digest = base_digest
        self._module_names = [name for name, _ in base.named_modules()]  # before PEFT wraps some
        self.heads = nn.ModuleDict()
        # A list, so that torch does not register the model: its parameters are those of `causal`.
        self._peft: list[PeftModel] = []
        self._lora_layers: list[LoraLayer] = []
        self._row_adapters = RowAdapters()
        self._trainable: dict[str, bool] = {}

    def __contains__(self, role: str) -> bool:
        return role in self._trainable or role in self.heads

    @property
    def hidden_size(self) -> int:
        return self.causal.get_input_embeddings().embedding_dim

    @property
    def vocabulary(self) -> int:
        """Vocabulary size."""
        return int(self.causal.config.get_text_config().vocab_size)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the base computes in."""
        dtype: torch.dtype = self.causal.get_input_embeddings().weight.dtype
        return dtype

    @property
    def compute_dtype(self) -> str:
        """The name of that dtype, such as `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_int8(self) -> bool:
        """Whether linear layers are 8-bit. They round their inputs, too, and no other layer repeats that."""
        return any(isinstance(module, Linear8bitLt) for module in self.causal.modules())

    @property
    def lora_rank(self) -> int:
        """The largest rank among the adapters."""
        configs = self._peft[0].peft_config.values()
        return max(rank for config in configs for rank in (config.r, *config.rank_pattern.values()))

    def add_new(self, role: str, adapter: Adapter) -> None:
        """Give `role` a fresh trainable adapter; B is zero, so it starts as the base itself.

        Raises:
            UserError: `adapter.target_modules` matches no layer of the base.
        """
        config = LoraConfig(
            r=adapter.r,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            use_rslora=adapter.rslora,
            use_dora=adapter.dora,
            target_modules=adapter.target_modules,
            task_type="CAUSAL_LM",
        )
        try:
            self._peft.append(get_peft_model(self.causal, config, adapter_name=str(role)))
        except ValueError as error:  # its text may show a whole layer
            raise UserError(f"adapter.target_modules: {' '.join(str(error).split()):.300}") from error
        self._after_adding(role, trainable=True)
        if fault := self._dora_fault(role):
            raise UserError(f"adapter.dora: {fault}. Set adapter.dora to false.")

    def add_from(self, role: str, folder: Path, *, trainable: bool) -> None:
        """Give `role` the adapter in `folder` (plain PEFT files), and its scalar head if there is one.

        Raises:
            UserError: the folder has no such files, or they do not fit this base.
        """
        with loading_adapter(folder, self._module_names):
            if self._peft:
                self._peft[0].load_adapter(str(folder), adapter_name=str(role))
            else:
                self._peft.append(PeftModel.from_pretrained(self.causal, str(folder), adapter_name=str(role)))
            if (folder / HEAD_FILE).exists():
                self.add_head_from(role, folder)
        self._after_adding(role, trainable=trainable)
        if fault := self._dora_fault(role):
            raise unusable(folder, f"DoRA: {fault}")
        check_adapter(folder, role, self.role_parameters(role))

    def _dora_fault(self, role: str) -> str | None:
        """Why a layer cannot have DoRA's lengths, if the adapter of `role` has them; None if all can."""
        for name, module in self.causal.named_modules():
            if not (isinstance(module, LoraLayer) and role in module.lora_magnitude_vector):
                continue
            if role in module.lora_embedding_A:
                return f"{name} is an embedding, and the lengths are of linear layers"
            if isinstance(module.get_base_layer(), Linear8bitLt):
                return f"{name} is an 8-bit layer, whose weight the lengths cannot read before its first use"
        return None

    def add_head(self, role: str) -> None:
        """Give `role` a new scalar head, small and random, in place of the LM head."""
        self.heads[str(role)] = ScalarHead(self.hidden_size, self.causal.device)

    def add_head_from(self, role: str, folder: Path) -> None:
        """Give `role` the scalar head in `folder`, trainable, and no adapter."""
        with loading_adapter(folder, self._module_names):
            self.add_head(role)
            self.heads[role].load_state_dict(load_file(folder / HEAD_FILE))
            self.head(role).ending = read_ending(folder, self.vocabulary)
            self.head(role).pooling = read_pooling(folder)
        check_adapter(
            folder, role, [name for name in self.role_parameters(role) if name.startswith("heads.")]
        )

    def head(self, role: str) -> ScalarHead:
        """The scalar head of `role`."""
        head = self.heads[role]
        assert isinstance(head, ScalarHead)
        return head

    def _after_adding(self, role: str, *, trainable: bool) -> None:
        layers = [module for module in self.causal.modules() if isinstance(module, LoraLayer)]
        for layer in set(layers).difference(self._lora_layers):
            add_in_one_pass(layer, self._row_adapters)
        self._lora_layers = layers
        self._trainable[str(role)] = trainable
        # PEFT changes requires_grad when it adds an adapter, so every role is set again.
        for name, requires_grad in self._trainable.items():
            for parameter in self.role_parameters(name).values():
                parameter.requires_grad_(requires_grad)

    def role_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Adapter and head of `role`, by full parameter name."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if role in (parts := name.split("."))
            and (parts[0] == "heads" or any(part.startswith("lora_") for part in parts))
        }

    def activate(self, role: str) -> None:
        """Make later forwards use the adapter of `role`; none for `Role.BASE`."""
        self._row_adapters.rows = None
        for layer in self._lora_layers:
            activate_adapter(layer, None if role == Role.BASE else str(role))

    def activate_rows(self, roles: Sequence[str]) -> None:
        """Make row i of later forwards use the adapter of `roles[i]`, until `activate`. Without gradients.

        Each role must be one that `can_mix` allows.
        """
        if len(set(roles)) == 1:
            self.activate(roles[0])
        else:
            names = [None if role == Role.BASE else str(role) for role in roles]
            self._row_adapters.choose(names, self.causal.device)

    def can_mix(self, roles: Sequence[str]) -> bool:
        """Whether the rows of one batch may use different ones of `roles`.

        The experts of a mixture see tokens out of their rows, so their adapters cannot tell rows apart.
        """
        if any("expert" in key for key in self.causal.config.get_text_config().to_dict()):
            return False
        return all(can_mix(layer, role) for layer in self._lora_layers for role in roles)

    def forward(self, query: ScalarQuery | TokenQuery) -> Tensor | TokenStatistics:
        """Answer `query`: scalars (B, T - start) in fp32, or `TokenStatistics`.

        DeepSpeed's engine calls only `forward`, so this one method serves both kinds of query.
        """
        self.activate(query.role)
        if isinstance(query, TokenQuery):
            return self._token_statistics(query)
        return self._scalars(query)

    @torch.no_grad()
    def scalars_of(self, roles: Sequence[str], query: ScalarQuery) -> Tensor:
        """Scalars of each of `roles` on the same batch: (M, B, T - start), fp32. Without gradients.

        If `can_mix` allows it, `MIXED` roles share a forward, so a layer is dequantized once for them.
        """
        if len(roles) == 1 or not self.can_mix(roles):
            return torch.stack([self(replace(query, role=role)) for role in roles])
        size, scalars = len(query.input_ids), list[Tensor]()
        for some in (roles[start : start + MIXED] for start in range(0, len(roles), MIXED)):
            self.activate_rows([role for role in some for _ in range(size)])
            hidden = self.causal.get_decoder()(**self.inputs(repeated(query, len(some)))).last_hidden_state
            parts = hidden[:, query.start :].split(size)
            scalars += [self.heads[role](part) for role, part in zip(some, parts, strict=True)]
        return torch.stack(scalars)

    def _scalars(self, query: ScalarQuery) -> Tensor:
        hidden = self.causal.get_decoder()(**self.inputs(query)).last_hidden_state
        scalars: Tensor = self.heads[query.role](hidden[:, query.start :])
        return scalars

    def _token_statistics(self, query: TokenQuery) -> TokenStatistics:
        inputs, kept = self.inputs(query), query.input_ids.shape[1] - query.start
        if can_read_hidden_states(self.causal):
            hidden = self.causal.get_decoder()(**inputs).last_hidden_state[:, -kept:]
            statistics = statistics_of_hidden_states(self.causal, hidden[:, :-1], query)
        else:
            output = self.causal(**inputs, logits_to_keep=kept, output_hidden_states=bool(query.values))
            hidden = output.hidden_states[-1][:, -kept:] if query.values else output.logits
            statistics = statistics_of_logits(output.logits[:, :-1], query)
        if query.values is None:
            return TokenStatistics(*statistics, torch.empty(0))
        values = self.heads[query.values](hidden.detach() if query.detach_values else hidden)
        return TokenStatistics(*statistics, values)

    def inputs(self, query: Query) -> dict[str, Any]:
        """The arguments of transformers' forward."""
        positions = query.position_ids
        if positions is None:
            positions = query.attention_mask.long().cumsum(-1).sub(1).clamp(min=0)
        return {
            "input_ids": query.input_ids,
            "attention_mask": query.attention_mask,
            "position_ids": positions,
            "use_cache": False,
        }

    def peft_config(self, role: str) -> LoraConfig:
        """PEFT's description of the adapter of `role`, as it is saved beside its weights."""
        return self._peft[0].peft_config[role]

    def saved(self, role: str, tensors: Mapping[str, Tensor]) -> tuple[PeftConfig, Files]:
        """What is written of a role: PEFT's description, and the tensors of each file.

        Args:
            tensors: its parameters, whole, by name.
        """
        return self.peft_config(role), files_of(role, tensors)
