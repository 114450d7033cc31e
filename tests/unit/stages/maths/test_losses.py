"""The losses: by hand, against plain Python in float64, and general properties."""

import math

import pytest
import torch

from stages.maths.losses import masked_sum, nll_loss, policy_loss, value_loss
from stages.maths.ranking_losses import ranking_loss
from tests.support.tensors import NAN, boolean, gradient, tensor


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Random (6, 5) per-token figures, about half of them under the mask."""
    generator = torch.Generator().manual_seed(0)
    names = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns")
    figures = {name: torch.randn(6, 5, generator=generator, dtype=torch.float64) * 0.4 for name in names}
    figures["mask"] = torch.rand(6, 5, generator=generator) < 0.6
    return figures


def spoil(values: torch.Tensor, mask: torch.Tensor, filling: float) -> torch.Tensor:
    return torch.where(mask, values, filling)


def policy(batch: dict[str, torch.Tensor], clip_range: float, normalizer: float):
    figures = batch["logprobs"], batch["old_logprobs"], batch["advantages"]
    return policy_loss(*figures, batch["mask"], clip_range, normalizer)


def value(batch: dict[str, torch.Tensor], clip_range: float, normalizer: float):
    figures = batch["values"], batch["old_values"], batch["returns"]
    return value_loss(*figures, batch["mask"], clip_range, normalizer)


# Each loss as a function of a batch, the tensor that it trains, and the others that it reads.

LOSSES = {
    "nll": (lambda b, n: nll_loss(b["logprobs"], b["mask"], n), "logprobs", []),
    "policy": (
        lambda b, n: policy(b, 0.2, n)[0],
        "logprobs",
        ["old_logprobs", "advantages"],
    ),
    "value": (
        lambda b, n: value(b, 0.2, n)[0],
        "values",
        ["old_values", "returns"],
    ),
}


@pytest.mark.parametrize("filling", [0.0, 1e4, math.inf, NAN])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_outside_the_mask_has_no_effect(name, filling, batch):
    loss, trained, others = LOSSES[name]
    batch[trained].requires_grad_()
    expected = loss(batch, 7.0)
    expected_gradient = gradient(expected, batch[trained])
    assert any(any(row) for row in expected_gradient)
    for other in [trained, *others]:
        spoiled = dict(batch)
        spoiled[other] = spoil(batch[other].detach(), batch["mask"], filling)
        spoiled[trained] = spoiled[trained].detach().requires_grad_()
        actual = loss(spoiled, 7.0)
        assert actual.item() == expected.item(), other
        assert gradient(actual, spoiled[trained]) == expected_gradient, other


@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_add_up_to_the_whole(name, batch):
    loss, trained, _ = LOSSES[name]
    tokens = float(batch["mask"].sum())
    batch[trained].requires_grad_()
    total = loss(batch, tokens)
    parts = [
        loss({key: value[rows] for key, value in batch.items()}, tokens)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert sum(part.item() for part in parts) == pytest.approx(total.item(), rel=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(sum(parts), batch[trained])[0], torch.autograd.grad(total, batch[trained])[0]
    )


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_a_mean_over_masked_tokens(name, batch):
    loss, _, _ = LOSSES[name]
    tokens = float(batch["mask"].sum())
    doubled = {key: torch.cat([value, value]) for key, value in batch.items()}
    assert loss(doubled, 2 * tokens).item() == pytest.approx(loss(batch, tokens).item(), rel=1e-12)


# Sums and negative log-likelihood


def test_masked_sum_by_hand():
    values = tensor([[1.0, 2.0, NAN], [4.0, math.inf, 16.0]])
    mask = boolean([[1, 1, 0], [1, 0, 1]])
    assert masked_sum(values, mask).item() == 23.0  # 1 + 2 + 4 + 16
    assert masked_sum(values, torch.zeros_like(mask)).item() == 0.0


def test_nll_by_hand():
    logprobs = tensor([[-0.5, -1.0, -8.0], [-2.0, -8.0, -8.0]]).requires_grad_()
    mask = boolean([[1, 1, 0], [1, 0, 0]])
    loss = nll_loss(logprobs, mask, 4.0)
    assert loss.item() == 0.875  # (0.5 + 1 + 2) / 4
    assert gradient(loss, logprobs) == [[-0.25, -0.25, 0.0], [-0.25, 0.0, 0.0]]


def test_nll_of_certain_tokens_is_zero():
    assert nll_loss(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), 6).item() == 0.0


def test_metrics_carry_no_gradient():
    scores = tensor([[1.0, 2.0]]).requires_grad_()
    logprobs = tensor([[-1.0]]).requires_grad_()
    ones = boolean([[1]])
    metrics_of_losses = [
        ranking_loss(scores, torch.tensor([[0, 1]]), 1.0)[1],
        policy_loss(logprobs, tensor([[-1.1]]), tensor([[1.0]]), ones, 0.2, 1.0)[1],
        value_loss(logprobs, tensor([[-1.1]]), tensor([[1.0]]), ones, 0.2, 1.0)[1],
    ]
    means = [mean for metrics in metrics_of_losses for mean in metrics.values()]
    assert [torch.as_tensor(mean.total).requires_grad for mean in means] == [False] * 10


# Policy


def policy_reference(batch, clip_range, normalizer):
    """The clipped surrogate in plain Python: loss, and sums of ratio, clipfrac and approxkl."""
    rows = {name: value.tolist() for name, value in batch.items()}
    total = ratios = clipped_tokens = kl = 0.0
    for i, row in enumerate(rows["mask"]):
        for j, inside in enumerate(row):
            if not inside:
                continue
            log_ratio = rows["logprobs"][i][j] - rows["old_logprobs"][i][j]
            ratio, advantage = math.exp(log_ratio), rows["advantages"][i][j]
            bounded = min(max(ratio, 1 - clip_range), 1 + clip_range)
            total += min(advantage * ratio, advantage * bounded)
            ratios += ratio
            clipped_tokens += advantage * bounded < advantage * ratio
            kl += log_ratio**2 / 2
    return -total / normalizer, ratios, clipped_tokens, kl


def test_policy_loss_by_hand():
    # ratios 2, 2, 1/2, 1/2 and 1, clip 0.2
    halves = math.log(2.0)
    logprobs = tensor([[halves, halves, -halves, -halves, 0.0]]).requires_grad_()
    advantages = tensor([[1.0, -1.0, 1.0, -1.0, 3.0]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    loss, metrics = policy_loss(logprobs, torch.zeros_like(advantages), advantages, mask, 0.2, 5.0)
    # min(2, 1.2) = 1.2; min(-2, -1.2) = -2; min(0.5, 0.8) = 0.5; min(-0.5, -0.8) = -0.8; 3
    assert loss.item() == pytest.approx(-0.38)  # -(1.2 - 2 + 0.5 - 0.8 + 3) / 5
    assert float(metrics["ratio"].total) == pytest.approx(6.0)  # 2 + 2 + 0.5 + 0.5 + 1
    assert float(metrics["clipfrac"].total) == 2.0  # the first and the fourth
    assert float(metrics["approxkl"].total) == pytest.approx(0.9609060)  # 4 * 0.6931472^2 / 2
    # -A * ratio / 5 where not clipped, exactly 0 where clipped
    gradients = gradient(loss, logprobs)[0]
    assert gradients == pytest.approx([0.0, 0.4, -0.1, 0.0, -0.6])
    assert (gradients[0], gradients[3]) == (0.0, 0.0)


def test_same_policy_has_ratio_one_and_the_plain_policy_gradient():
    generator = torch.Generator().manual_seed(2)
    logprobs = (torch.randn(3, 4, generator=generator) - 2).requires_grad_()
    advantages = torch.randn(3, 4, generator=generator)
    mask = torch.ones(3, 4, dtype=torch.bool)
    loss, metrics = policy_loss(logprobs, logprobs.detach().clone(), advantages, mask, 0.2, 12.0)
    assert float(metrics["ratio"].total) == 12.0
    assert float(metrics["clipfrac"].total) == float(metrics["approxkl"].total) == 0.0
    assert loss.item() == pytest.approx(-advantages.sum().item() / 12, abs=1e-7)
    torch.testing.assert_close(torch.autograd.grad(loss, logprobs)[0], -advantages / 12)


def test_policy_loss_equals_plain_python(batch):
    expected = policy_reference(batch, 0.15, 11.0)
    assert expected[2] > 0  # something is clipped
    loss, metrics = policy(batch, 0.15, 11.0)
    actual = [loss.item(), *(float(metrics[name].total) for name in ("ratio", "clipfrac", "approxkl"))]
    assert actual == pytest.approx(expected, rel=1e-12)


def test_policy_metrics_ignore_what_is_outside_the_mask(batch):
    spoiled = {name: spoil(values, batch["mask"], NAN) for name, values in batch.items() if name != "mask"}
    assert policy(spoiled | {"mask": batch["mask"]}, 0.2, 1.0)[1] == policy(batch, 0.2, 1.0)[1]


# Value


def value_reference(batch, clip_range, normalizer):
    """The clipped squared error in plain Python: loss and number of clipped tokens."""
    rows = {name: value.tolist() for name, value in batch.items()}
    total = clipped_tokens = 0.0
    for i, row in enumerate(rows["mask"]):
        for j, inside in enumerate(row):
            if not inside:
                continue
            value, old, target = (rows[name][i][j] for name in ("values", "old_values", "returns"))
            bounded = min(max(value, old - clip_range), old + clip_range)
            total += max((value - target) ** 2, (bounded - target) ** 2) / 2
            clipped_tokens += (bounded - target) ** 2 > (value - target) ** 2
    return total / normalizer, clipped_tokens


def test_value_loss_by_hand():
    # old value 0, clip 0.5, return 1
    values = tensor([[0.25, 1.5, -1.0, 0.75]]).requires_grad_()
    zeros, ones = torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)
    loss, metrics = value_loss(values, zeros, ones, torch.ones(1, 4, dtype=torch.bool), 0.5, 4.0)
    # 0.25 inside: 0.5625; 1.5 -> 0.5: max(0.25, 0.25) = 0.25; -1 -> -0.5: max(4, 2.25) = 4;
    # 0.75 -> 0.5: max(0.0625, 0.25) = 0.25
    assert loss.item() == pytest.approx(0.6328125)  # (0.5625 + 0.25 + 4 + 0.25) / 2 / 4
    assert float(metrics["clipfrac"].total) == 1.0  # the last: clipping makes it worse
    gradients = gradient(loss, values)[0]
    assert gradients[0] == -0.1875  # (0.25 - 1) / 4
    assert gradients[2] == -0.5  # (-1 - 1) / 4: the unclipped error is the larger, so there is a way back
    assert gradients[3] == 0.0  # clipped: no further in this direction


def test_value_loss_without_reaching_the_clip_is_half_the_squared_error(batch):
    tokens = float(batch["mask"].sum())
    loss, metrics = value(batch, 100.0, tokens)
    squared = (batch["values"] - batch["returns"])[batch["mask"]].square()
    assert loss.item() == pytest.approx(squared.mean().item() / 2, rel=1e-12)
    assert float(metrics["clipfrac"].total) == 0.0


def test_value_loss_equals_plain_python(batch):
    expected = value_reference(batch, 0.15, 11.0)
    assert expected[1] > 0
    loss, metrics = value(batch, 0.15, 11.0)
    assert [loss.item(), float(metrics["clipfrac"].total)] == pytest.approx(expected, rel=1e-12)


# Options of PPO's losses


def test_dual_clip_by_hand():
    """Ratio 5, advantage -1: the loss is 5, and with a bound of 3 it is 3 and has no gradient."""
    logprobs = tensor([[math.log(5.0), math.log(5.0), math.log(2.0)]]).requires_grad_()
    old, advantages = torch.zeros(1, 3, dtype=torch.float64), tensor([[-1.0, 1.0, -1.0]])
    mask = boolean([[True, True, True]])
    loss, _ = policy_loss(logprobs, old, advantages, mask, 0.2, 1.0)
    assert loss.item() == pytest.approx(5.0 - 1.2 + 2.0)
    bounded, _ = policy_loss(logprobs, old, advantages, mask, 0.2, 1.0, dual_clip=3.0)
    assert bounded.item() == pytest.approx(3.0 - 1.2 + 2.0)
    assert gradient(bounded, logprobs)[0] == pytest.approx([0.0, 0.0, 2.0])


def test_values_need_not_be_clipped():
    values, old, returns = tensor([[2.0]]), tensor([[0.0]]), tensor([[3.0]])
    mask = boolean([[True]])
    assert value_loss(values, old, returns, mask, 0.5, 1.0)[0].item() == pytest.approx(0.5 * 2.5**2)
    loss, metrics = value_loss(values, old, returns, mask, None, 1.0)
    assert loss.item() == pytest.approx(0.5 * 1.0**2)
    assert metrics["clipfrac"].value == 0
