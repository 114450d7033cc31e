"""The roles of a stage by name, on one base, or on two if the reward model has its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from configs.schema import Experiment
from stages.models.queries import Query, ScalarQuery, TokenQuery
from stages.models.reward_members import members_of
from stages.models.roles import Roles

# Shows what a tokenizer adds at the ends of a text, and how it treats spaces.
PROBE = "It's 10 o'clock.\nWhat now?"


class RoleModels(nn.Module):
    """One or two `Roles` behind one interface: each role runs on the base that it was added to.

    Attributes:
        policy_base, tokenizer: the experiment's base.
        reward_base, reward_tokenizer: the reward model's; the same objects if it shares the base.
        shares_tokens: whether both tokenizers give token ids the same meaning.
    """

    def __init__(self, *bases: tuple[Roles, PreTrainedTokenizerBase]) -> None:
        super().__init__()
        self.policy_base, self.tokenizer = bases[0]
        self.reward_base, self.reward_tokenizer = bases[-1]
        self.shares_base = len(bases) == 1
        self.shares_tokens = same_tokens(self.tokenizer, self.reward_tokenizer)

    @property
    def reward_members(self) -> list[str]:
        """The roles of the reward model: one, or one for each member of an ensemble."""
        return members_of(self.reward_base)

    def of(self, role: str) -> Roles:
        """The `Roles` that hold `role`. `Role.BASE` is the policy's base."""
        return self.reward_base if role in self.reward_base else self.policy_base

    @property
    def base_digest(self) -> str:
        """The identity of the base, or of both."""
        return "+".join(dict.fromkeys([self.policy_base.base_digest, self.reward_base.base_digest]))

    def role_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Adapter and head of `role`, by parameter name."""
        return self.of(role).role_parameters(role)

    def forward(self, query: ScalarQuery | TokenQuery) -> Any:
        """`Roles.forward` of the query's role."""
        roles = self.of(query.role)
        return roles(query=_valid(query, roles))  # by keyword: see Engine.__call__

    def member_scalars(self, query: ScalarQuery) -> Tensor:
        """`Roles.scalars_of` for all members of the reward model."""
        return self.reward_base.scalars_of(self.reward_members, _valid(query, self.reward_base))


def _valid(query: Query, roles: Roles) -> Any:
    """The query with ids that the base of `roles` has.

    Two bases with one tokenizer may differ in their number of embeddings. The policy may sample an id for
    which the other base has none.
    """
    return replace(query, input_ids=query.input_ids.clamp(max=roles.vocabulary - 1))


class RoleForward(Protocol):
    """`Roles.forward`, called on the roles themselves or, in training, through the engine that wraps them."""

    def __call__(self, query: ScalarQuery | TokenQuery) -> Any: ...


def trainable(roles: Roles | RoleModels, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters of the roles `names` that require gradients."""
    return {
        name: parameter
        for role in names
        for name, parameter in roles.role_parameters(role).items()
        if parameter.requires_grad
    }


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers, chat templates included, give the same ids for the same text."""

    def traits(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
        ends = tokenizer.bos_token_id, tokenizer.eos_token_id
        return tokenizer.get_vocab(), ends, tokenizer.chat_template, tokenizer(PROBE)["input_ids"]

    return one is other or traits(one) == traits(other)


def check_critic(config: Experiment, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
    """Check that the critic's base has the policy's tokenizer, because the critic reads its tokens.

    Raises:
        UserError: the critic is an adapter on a base with another tokenizer than the policy's.
    """
    if config.ppo.critic == "adapter" and not same_tokens(tokenizers[0], tokenizers[-1]):
        raise UserError(
            "ppo.critic: adapter puts the critic on rm.base, whose tokenizer gives other tokens than the "
            "policy's. The critic cannot value the policy's tokens there. Set ppo.critic to shared, a head "
            "on the policy. No other stage has to run again for that."
        )
