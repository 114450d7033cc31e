"""Token statistics equal those of the full logits, which are never computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.models import token_statistics
from stages.models.queries import TokenQuery
from stages.models.roles import Roles
from stages.models.token_statistics import TokenStatistics
from tests.support.engines import assert_same_gradients
from tests.support.roles import new_role, role_output, tiny_roles

IDS = torch.randint(10, 380, (3, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
START = 4
TARGETS = IDS[:, START + 1 :]
VOCABULARY = 384


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_statistics, "CPU_TILE", 100)  # four tiles, the last one not full


@pytest.fixture(scope="module")
def roles() -> Roles:
    return new_role(tiny_roles(), "policy", seed=1).eval()


def token_statistics_of(roles: Roles, **options: Any) -> TokenStatistics:
    statistics: TokenStatistics = roles(
        TokenQuery("policy", IDS, MASK, start=START, **{"targets": TARGETS} | options)
    )
    return statistics


def distribution(roles: Roles, temperature: float = 1.0) -> Tensor:
    """Log-probabilities (B, R, V) by the definition."""
    return (role_output(roles, "policy", IDS, start=START)[:, :-1] / temperature).log_softmax(-1)


def gradients(roles: Roles, figures: Tensor) -> dict[str, Tensor]:
    roles.zero_grad()
    (figures * torch.arange(1.0, 1 + figures.numel()).view_as(figures)).sum().backward()
    parameters = roles.role_parameters("policy")
    return {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_figures_are_those_of_the_logits(
    temperature: float, softcap: float | None, roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    logprobs = distribution(roles, temperature)
    if softcap:
        monkeypatch.setattr(roles.causal.config, "final_logit_softcapping", softcap, raising=False)
        logits = role_output(roles, "policy", IDS, start=START)[:, :-1]
        logprobs = (softcap * torch.tanh(logits / softcap) / temperature).log_softmax(-1)
    figures = token_statistics_of(roles, entropy=True, is_top1=True, temperature=temperature)
    expected = logprobs.gather(-1, TARGETS[..., None])[..., 0]
    torch.testing.assert_close(figures.logprobs, expected)
    torch.testing.assert_close(figures.entropy, -(logprobs.exp() * logprobs).sum(-1))
    likeliest = logprobs.argmax(-1)
    assert torch.equal(figures.is_top1, likeliest == TARGETS)
    assert token_statistics_of(roles, targets=likeliest, is_top1=True).is_top1.all()


def test_gradients_are_those_of_the_logits(roles: Roles) -> None:
    logprobs = distribution(roles)
    expected = gradients(roles, logprobs.gather(-1, TARGETS[..., None])[..., 0])
    assert_same_gradients(gradients(roles, token_statistics_of(roles).logprobs), expected)
    logprobs = distribution(roles)
    expected = gradients(roles, -(logprobs.exp() * logprobs).sum(-1))
    assert_same_gradients(gradients(roles, token_statistics_of(roles, entropy=True).entropy), expected)


class Shapes(TorchDispatchMode):
    """Records the shapes of all tensors that operations return, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(self, operation, _, arguments=(), options=None):
        outputs = operation(*arguments, **options or {})
        self.shapes |= {tensor.shape for tensor in tree_leaves(outputs) if isinstance(tensor, Tensor)}
        return outputs


def test_no_tensor_over_tokens_and_vocabulary_is_ever_made(roles: Roles) -> None:
    head = roles.causal.get_output_embeddings().weight.shape

    def over_the_vocabulary(compute) -> set[torch.Size]:
        with Shapes() as recorder:
            compute().sum().backward()
        return {shape for shape in recorder.shapes if VOCABULARY in shape} - {
            head,
            torch.Size(reversed(head)),
        }

    assert not over_the_vocabulary(lambda: token_statistics_of(roles).logprobs)
    assert not over_the_vocabulary(lambda: token_statistics_of(roles, entropy=True).entropy)
    assert over_the_vocabulary(lambda: distribution(roles)), "the test would not notice"


def test_tokens_that_could_not_be_chosen_have_no_share(roles: Roles) -> None:
    support = torch.rand(*TARGETS.shape, VOCABULARY, generator=torch.Generator().manual_seed(1)) < 0.1
    support.scatter_(-1, TARGETS[..., None], True)
    logits = distribution(roles).masked_fill(~support, float("-inf"))
    figures = token_statistics_of(roles, entropy=True, support=support)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(figures.logprobs, expected.gather(-1, TARGETS[..., None])[..., 0])
    torch.testing.assert_close(figures.entropy, torch.distributions.Categorical(logits=expected).entropy())


@pytest.mark.parametrize("values", [None, "judge"])
def test_models_that_scale_logits_are_asked_for_them(
    values: str | None, roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's own forward computes them, because only the model knows how it scales logits."""
    roles.add_head("judge")
    expected = token_statistics_of(roles, entropy=True, is_top1=True, values=values)
    monkeypatch.setattr(roles.causal.config, "logit_scale", 2.0, raising=False)
    actual = token_statistics_of(roles, entropy=True, is_top1=True, values=values)
    for figure, expected_figure in zip(actual, expected, strict=True):
        torch.testing.assert_close(figure, expected_figure)


def test_values_come_from_the_same_hidden_states(roles: Roles) -> None:
    roles.add_head("judge")
    values = token_statistics_of(roles, values="judge").values
    roles.activate("policy")
    hidden = roles.causal.get_decoder()(input_ids=IDS, attention_mask=MASK).last_hidden_state[:, START:]
    torch.testing.assert_close(values, roles.heads["judge"](hidden))
    assert any(gradient.any() for gradient in gradients(roles, values).values())
    roles.zero_grad()
    token_statistics_of(roles, values="judge", detach_values=True).values.sum().backward()
    assert all(parameter.grad is None for parameter in roles.role_parameters("policy").values())
    assert roles.heads["judge"].weight.grad is not None
