"""The Plackett-Luce loss: against choix, as a distribution over orders, and general properties."""

import math
import random
from itertools import permutations

import choix
import numpy as np
import pytest
import torch

from stages.maths.ranking_losses import plackett_luce_loss, ranking_loss
from tests.support.tensors import NAN, gradient, tensor


def log_likelihood(scores, order) -> float:
    """choix's log-likelihood of one ranking, the best first."""
    return float(choix.log_likelihood_rankings([tuple(order)], np.array(scores)))


@pytest.mark.parametrize("k", [2, 3, 5, 9])
def test_it_is_the_log_likelihood_of_choix(k):
    rng = random.Random(k)
    for _ in range(20):
        scores, order = [rng.gauss(0, 3) for _ in range(k)], rng.sample(range(k), k)
        ranks = torch.tensor([[order.index(item) for item in range(k)]])
        loss, metrics = plackett_luce_loss(tensor([scores]), ranks, 1.0)
        assert -loss.item() * (k - 1) == pytest.approx(log_likelihood(scores, order), rel=1e-10)
        assert metrics["loss"].value == pytest.approx(loss.item())


def test_the_orders_of_four_have_probabilities_that_add_up_to_one():
    scores = tensor([[0.3, -1.2, 2.0, 0.4]])
    orders = torch.tensor(list(permutations(range(4))))
    losses = [plackett_luce_loss(scores, order[None], 1.0)[0].item() for order in orders]
    assert sum(math.exp(-3 * loss) for loss in losses) == pytest.approx(1, rel=1e-12)
    assert orders[int(np.argmin(losses))].tolist() == [2, 3, 0, 1], (
        "the likeliest order is that of the scores"
    )


def test_by_hand():
    scores = tensor([[0.0, math.log(2), math.log(3)]]).requires_grad_()
    loss, metrics = plackett_luce_loss(scores, torch.tensor([[2, 0, 1]]), 1.0)
    # weights 1, 2, 3: the second is chosen of all with 2/6, then the third of two with 3/4
    assert loss.item() == pytest.approx(-math.log(2 / 6 * 3 / 4) / 2)
    # d/dr: (1/6 + 1/4) / 2; (2/6 - 1) / 2; (3/6 + 3/4 - 1) / 2
    assert gradient(loss, scores)[0] == pytest.approx([5 / 24, -1 / 3, 1 / 8])
    assert metrics["accuracy"].value == pytest.approx(2 / 3)
    assert metrics["mean_reward"].value == pytest.approx(math.log(6) / 3)


@pytest.mark.parametrize("difference", [-30.0, -1.5, 0.0, 0.3, 40.0])
def test_two_completions_are_the_pairwise_loss(difference):
    scores, ranks = tensor([[0.7, 0.7 + difference]]), torch.tensor([[1, 0]])
    loss, metrics = plackett_luce_loss(scores, ranks, 1.0)
    pairwise, same_metrics = ranking_loss(scores, ranks, 1.0)
    assert loss.item() == pytest.approx(pairwise.item(), rel=1e-12)
    assert all(metrics[name].value == pytest.approx(same_metrics[name].value) for name in metrics)


def test_tied_completions_do_not_compete():
    scores = [0.2, 1.1, -0.4, 0.9]
    loss, _ = plackett_luce_loss(tensor([scores]), torch.tensor([[1, 0, 2, 0]]), 1.0)
    # two are best: each is chosen without the other; then a choice of two
    choices = [log_likelihood(scores, order) for order in ((1, 0, 2), (3, 0, 2), (0, 2))]
    one_after_another = choices[0] + choices[1] - choices[2]  # the later choice is in both
    assert loss.item() == pytest.approx(-one_after_another / 3, rel=1e-10)


def test_ties_alone_and_empty_slots_have_no_effect():
    ranks = torch.tensor([[0, 1, 2, -1], [0, 0, -1, -1]])
    scores = tensor([[0.3, -0.2, 0.9, NAN], [0.1, 5.0, math.inf, NAN]]).requires_grad_()
    loss, metrics = plackett_luce_loss(scores, ranks, 2.0)
    short, _ = plackett_luce_loss(scores[:1, :3], ranks[:1, :3], 2.0)
    assert loss.item() == pytest.approx(short.item(), rel=1e-12)
    gradients = gradient(loss, scores)
    assert gradients[0][3] == 0 and gradients[1] == [0, 0, 0, 0]
    assert metrics["loss"].count == 2


def test_it_is_finite_far_out_in_fp32():
    scores = torch.tensor([[-200.0, 200.0, 0.0]], requires_grad=True)
    loss, _ = plackett_luce_loss(scores, torch.tensor([[0, 1, 2]]), 1.0)
    assert loss.item() == 200.0  # (400 + 0) / 2
    assert gradient(loss, scores) == [[-0.5, 0.5, 0.0]]


def test_shift_and_order_of_slots_change_nothing_and_centring_fixes_the_shift():
    scores, ranks = tensor([[0.3, -0.2, 0.9, 0.4]]), torch.tensor([[2, 0, 1, 3]])
    loss = plackett_luce_loss(scores, ranks, 1.0)[0].item()
    order = [2, 0, 3, 1]
    assert plackett_luce_loss(scores + 5, ranks, 1.0)[0].item() == pytest.approx(loss, abs=1e-12)
    assert plackett_luce_loss(scores[:, order], ranks[:, order], 1.0)[0].item() == pytest.approx(loss)
    sums = [0.1, 1.2, 0.7, 0.7, 0.2, 1.3]  # of each pair
    centred = plackett_luce_loss(scores, ranks, 1.0, center=0.5)[0].item()
    assert centred == pytest.approx(loss + 0.5 * sum(each**2 for each in sums) / 6)


def test_micro_batches_of_prompts_add_up():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    ranks = torch.randint(-1, 3, (6, 4), generator=generator)
    total, metrics = plackett_luce_loss(scores, ranks, 6.0, 0.1)
    parts = [
        plackett_luce_loss(scores[rows], ranks[rows], 6.0, 0.1)
        for rows in (slice(0, 2), slice(2, 5), slice(5, 6))
    ]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(total.item(), rel=1e-12)
    for name, mean in metrics.items():
        assert sum(float(part[name].total) for _, part in parts) == pytest.approx(float(mean.total), rel=1e-6)
