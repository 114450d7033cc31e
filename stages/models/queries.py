"""The queries that `Roles.forward` answers: statistics of target tokens, or scalars of a head."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Query:
    """A batch for one role, and the position at which its output starts.

    Attributes:
        role: whose adapter and head compute the output.
        input_ids: (B, T).
        attention_mask: (B, T) 0 on padding, which may lie on either side; or (B, 1, T, T).
        position_ids: (B, T); None counts them from the attention mask.
        start: the output is that of positions `start` ... T-1.
    """

    role: str
    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None = None
    start: int = 0


@dataclass(frozen=True, eq=False)
class ScalarQuery(Query):
    """The output of the scalar head of `role`: (B, T - start), fp32."""


def repeated(query: ScalarQuery, times: int) -> ScalarQuery:
    """The query on its batch `times` over: row i of the first part is row i of every part."""
    positions = query.position_ids
    return replace(
        query,
        input_ids=query.input_ids.repeat(times, 1),
        attention_mask=query.attention_mask.repeat(times, *[1] * (query.attention_mask.dim() - 1)),
        position_ids=None if positions is None else positions.repeat(times, 1),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenQuery(Query):
    """`TokenStatistics` of `targets`: their log-probabilities, and what the flags select.

    Attributes:
        targets: (B, R), R = T - start - 1: the token after each position but the last.
        entropy: also the entropy of the distribution that the token was chosen from, in nats.
        is_top1: also whether the token is the most likely one.
        values: also the scalar head of this name on the same hidden states, one position further.
        detach_values: the trunk gets no gradient from the values.
        temperature: divides the logits.
        support: (B, R, V) True on the tokens that could be chosen; None for all.
    """

    targets: Tensor
    entropy: bool = False
    is_top1: bool = False
    values: str | None = None
    detach_values: bool = False
    temperature: float = 1.0
    support: Tensor | None = None
