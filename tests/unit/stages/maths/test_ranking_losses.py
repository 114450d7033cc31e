"""The ranking loss and its options: by hand, against plain Python in float64, and general properties."""

import math
import random
from itertools import combinations
from typing import Any

import pytest
import torch

from stages.maths.ranking_losses import (
    centering,
    ranking_loss,
    score_margins,
    smoothed,
    tied_shares,
    win_shares,
)
from tests.support.tensors import NAN, gradient, tensor


def ranking_reference(scores, ranks, normalizer):
    """The formula in plain Python: loss, and sums of loss, accuracy and margin."""
    losses, accuracies, margins = [], [], []
    for row, order in zip(scores, ranks, strict=True):
        pairs = [
            row[w] - row[l]
            for w in range(len(row))
            for l in range(len(row))  # noqa: E741
            if order[w] >= 0 and order[l] >= 0 and order[w] < order[l]
        ]
        count = max(len(pairs), 1)
        losses.append(sum(math.log1p(math.exp(-pair)) for pair in pairs) / count)
        accuracies.append(sum(pair > 0 for pair in pairs) / count)
        margins.append(sum(pairs) / count)
    return sum(losses) / normalizer, sum(losses), sum(accuracies), sum(margins)


def test_ranking_loss_of_three_by_hand():
    scores = tensor([[2.0, 1.0, 3.0]]).requires_grad_()
    loss, metrics = ranking_loss(scores, torch.tensor([[0, 1, 2]]), 1.0)
    # pairs 2-1 = 1, 2-3 = -1, 1-3 = -2: (0.3132617 + 1.3132617 + 2.1269280) / 3
    assert loss.item() == pytest.approx(1.2511505, abs=1e-7)
    assert float(metrics["loss"].total) == pytest.approx(1.2511505, abs=1e-7)
    assert float(metrics["accuracy"].total) == pytest.approx(1 / 3)
    assert float(metrics["margin"].total) == pytest.approx(-2 / 3)  # (1 - 1 - 2) / 3
    # d/d(r_w - r_l) is -sigmoid(-(r_w - r_l)): -0.2689414, -0.7310586, -0.8807971, each over 3 pairs
    # first: -(0.2689414 + 0.7310586) / 3; second: (0.2689414 - 0.8807971) / 3; third: the rest
    assert gradient(loss, scores)[0] == pytest.approx([-0.3333333, -0.2039519, 0.5372852], abs=1e-7)


@pytest.mark.parametrize("difference", [-30.0, -1.5, 0.0, 0.3, 40.0])
def test_two_completions_are_the_pairwise_loss(difference):
    scores = tensor([[0.7 + difference, 0.7]])
    loss, _ = ranking_loss(scores, torch.tensor([[0, 1]]), 1.0)
    assert loss.item() == pytest.approx(-torch.nn.functional.logsigmoid(tensor(difference)).item(), abs=1e-12)
    swapped, _ = ranking_loss(scores.flip(1), torch.tensor([[1, 0]]), 1.0)
    assert swapped.item() == loss.item()


def test_ranking_loss_is_finite_far_out_in_fp32():
    scores = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss, _ = ranking_loss(scores, torch.tensor([[0, 1]]), 1.0)
    assert loss.item() == 400.0  # log(1 + exp(400)); exp(400) itself is not an fp32 number
    assert gradient(loss, scores) == [[-1.0, 1.0]]


def test_ranking_loss_averages_over_prompts_not_pairs():
    # prompt 1: one pair of difference 1, 0.3132617; prompt 2: three pairs of difference 0, log 2 = 0.6931472
    scores = tensor([[1.0, 0.0, 9.0], [5.0, 5.0, 5.0]])
    ranks = torch.tensor([[0, 1, -1], [0, 1, 2]])
    loss, _ = ranking_loss(scores, ranks, 2.0)
    assert loss.item() == pytest.approx((0.3132617 + 0.6931472) / 2, abs=1e-7)


def test_ties_are_no_pair():
    scores = tensor([[1.0, 4.0, 0.0]]).requires_grad_()
    loss, metrics = ranking_loss(scores, torch.tensor([[0, 0, 1]]), 1.0)
    # pairs 1-0 = 1 and 4-0 = 4: (0.3132617 + 0.0181499) / 2
    assert loss.item() == pytest.approx(0.1657058, abs=1e-7)
    assert float(metrics["accuracy"].total) == 1.0
    assert float(metrics["margin"].total) == 2.5


def test_a_prompt_without_a_pair_counts_nothing_and_gives_no_gradient():
    scores = tensor([[1.0, 4.0], [2.0, NAN]]).requires_grad_()
    loss, metrics = ranking_loss(scores, torch.tensor([[0, 0], [0, -1]]), 2.0)
    assert loss.item() == 0.0
    for name in ("loss", "accuracy", "margin"):
        assert (float(metrics[name].total), metrics[name].count) == (0, 2)
    assert gradient(loss, scores) == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("filling", [0.0, 1e4, math.inf, NAN])
def test_slots_without_completion_have_no_effect(filling):
    ranks = torch.tensor([[0, 1, 2, -1], [1, 0, -1, -1]])
    scores = tensor([[0.3, -0.2, 0.9, 0.0], [0.1, 0.6, 0.0, 0.0]])
    expected_scores = scores.clone().requires_grad_()
    expected, expected_metrics = ranking_loss(expected_scores, ranks, 2.0)
    spoiled = torch.where(ranks >= 0, scores, filling).requires_grad_()
    loss, metrics = ranking_loss(spoiled, ranks, 2.0)
    assert loss.item() == expected.item()
    assert metrics == expected_metrics
    assert gradient(loss, spoiled) == gradient(expected, expected_scores)


def test_ranking_loss_equals_plain_python():
    rng = random.Random(0)
    scores = [[rng.gauss(0, 3) for _ in range(5)] for _ in range(40)]
    ranks = [[rng.choice([-1, 0, 1, 2, 3]) for _ in range(5)] for _ in range(40)]
    expected = ranking_reference(scores, ranks, 17.0)
    loss, metrics = ranking_loss(tensor(scores), torch.tensor(ranks), 17.0)
    actual = [loss.item(), *(float(metrics[name].total) for name in ("loss", "accuracy", "margin"))]
    assert actual == pytest.approx(expected, rel=1e-6)
    assert loss.item() == pytest.approx(expected[0], rel=1e-12)
    single, _ = ranking_loss(tensor(scores).float(), torch.tensor(ranks), 17.0)
    assert single.item() == pytest.approx(expected[0], rel=1e-5)


def test_ranking_loss_ignores_shift_and_order_of_slots():
    scores, ranks = tensor([[0.3, -0.2, 0.9, 0.4]]), torch.tensor([[2, 0, 1, 1]])
    loss = ranking_loss(scores, ranks, 1.0)[0].item()
    order = [2, 0, 3, 1]
    assert ranking_loss(scores + 5, ranks, 1.0)[0].item() == pytest.approx(loss, abs=1e-12)
    assert ranking_loss(scores[:, order], ranks[:, order], 1.0)[0].item() == pytest.approx(loss, abs=1e-12)


def test_micro_batches_of_prompts_add_up():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    ranks = torch.randint(-1, 3, (6, 4), generator=generator)
    total_loss, metrics = ranking_loss(scores, ranks, 6.0)
    parts = [ranking_loss(scores[rows], ranks[rows], 6.0) for rows in (slice(0, 2), slice(2, 5), slice(5, 6))]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(total_loss.item(), rel=1e-12)
    for name, value in metrics.items():
        total = sum(float(part[name].total) for _, part in parts)
        assert total == pytest.approx(float(value.total), rel=1e-6)
        assert sum(part[name].count for _, part in parts) == value.count == 6


def test_mean_reward_by_hand():
    scores = tensor([[1.0, 4.0, NAN], [2.0, 3.0, 7.0]])
    _, metrics = ranking_loss(scores, torch.tensor([[0, 1, -1], [2, 1, 0]]), 2.0)
    assert metrics["mean_reward"].value == (2.5 + 4.0) / 2


# Options: win shares, margins, centring


def soft_label_reference(scores, ranks, half_ties=False, smoothing=0.0, labels=None, scale=1.0, center=0.0):
    """Each pair once, by torch's cross-entropy with soft targets: the loss of each prompt."""
    losses = []
    for row, order, given in zip(scores, ranks, labels or ranks, strict=True):
        terms = []
        for i, j in combinations(range(len(row)), 2):
            if order[i] < 0 or order[j] < 0 or (order[i] == order[j] and not half_ties):
                continue
            better, worse = (i, j) if order[i] <= order[j] else (j, i)
            tie = order[i] == order[j]
            target = tensor(0.5 if tie else 1 - smoothing)
            margin = 0.0 if labels is None or tie else scale * (given[better] - given[worse])
            logit = tensor(row[better] - row[worse] - margin)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, target)
            terms.append(loss.item() + center * (row[better] + row[worse]) ** 2)
        losses.append(sum(terms) / max(len(terms), 1))
    return losses


@pytest.fixture
def some_rankings():
    """Scores, ranks with ties and empty slots, and labels that agree with the ranks: (30, 5) each."""
    rng = random.Random(3)
    scores = [[rng.gauss(0, 2) for _ in range(5)] for _ in range(30)]
    ranks = [[rng.choice([-1, 0, 1, 2]) for _ in range(5)] for _ in range(30)]
    labels = [[-rank * 0.7 + 0.1 * rank**2 for rank in row] for row in ranks]
    return scores, ranks, labels


def test_half_a_win_each_way_by_hand():
    scores = tensor([[1.0, 4.0, 0.0]]).requires_grad_()
    ranks = torch.tensor([[0, 0, 1]])
    loss, metrics = ranking_loss(scores, ranks, 1.0, win_shares(ranks) + tied_shares(ranks))
    # pairs 1-0 and 4-0 as without ties; the tie: (log(1 + e^3) + log(1 + e^-3)) / 2 = 1.5485874
    assert loss.item() == pytest.approx((0.3132617 + 0.0181499 + 1.5485874) / 3, abs=1e-7)
    assert (metrics["accuracy"].value, metrics["margin"].value) == (1.0, 2.5)  # of the other two pairs


def test_tied_scores_of_a_tie_are_a_minimum():
    ranks, scores = torch.tensor([[0, 0]]), tensor([[0.4, 0.4]]).requires_grad_()
    wins = tied_shares(ranks)
    assert wins.tolist() == [[[0.0, 0.5], [0.5, 0.0]]]
    loss, _ = ranking_loss(scores, ranks, 1.0, wins)
    assert loss.item() == pytest.approx(math.log(2)) and gradient(loss, scores) == [[0.0, 0.0]]
    assert ranking_loss(tensor([[0.4, 0.5]]), ranks, 1.0, wins)[0] > loss


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_smoothed_labels_are_fitted_at_the_log_odds(smoothing):
    ranks, best = torch.tensor([[0, 1]]), math.log((1 - smoothing) / smoothing)
    scores = tensor([[best, 0.0]]).requires_grad_()
    loss, _ = ranking_loss(scores, ranks, 1.0, smoothed(win_shares(ranks), smoothing))
    assert gradient(loss, scores)[0] == pytest.approx([0, 0], abs=1e-7)
    entropy = -(smoothing * math.log(smoothing) + (1 - smoothing) * math.log(1 - smoothing))
    assert loss.item() == pytest.approx(entropy, abs=1e-7)


def test_margins_by_hand():
    ranks, labels = torch.tensor([[1, 0, 0, -1]]), tensor([[2.0, 5.0, 5.5, NAN]])
    margins = score_margins(labels, ranks, 0.5)
    assert margins[0].tolist() == [[0, 0, 0, 0], [1.5, 0, 0, 0], [1.75, 0, 0, 0], [0, 0, 0, 0]]
    scores = tensor([[0.0, 1.5, 2.75, NAN]])
    loss, metrics = ranking_loss(scores, ranks, 1.0, margins=margins)
    # differences 1.5 and 2.75 less margins 1.5 and 1.75: log 2 and log(1 + 1/e)
    assert loss.item() == pytest.approx((0.6931472 + 0.3132617) / 2, abs=1e-7)
    assert metrics["margin"].value == pytest.approx((1.5 + 2.75) / 2), "the metric is that of the scores"


def test_centring_by_hand():
    ranks = torch.tensor([[0, 1, 2], [1, 0, -1]])
    scores = tensor([[1.0, 2.0, -1.0], [0.5, 0.5, NAN]]).requires_grad_()
    terms = centering(scores, win_shares(ranks))
    assert terms.tolist() == [pytest.approx((9 + 0 + 1) / 3), 1.0]
    plain, _ = ranking_loss(scores, ranks, 2.0)
    centred, metrics = ranking_loss(scores, ranks, 2.0, center=0.1)
    assert centred.item() == pytest.approx(plain.item() + 0.1 * (10 / 3 + 1) / 2)
    assert metrics["loss"].value == pytest.approx(centred.item())
    # 2 c (r_w + r_l) to both, over the prompts; the pairwise part cancels in the sum over a pair
    assert sum(gradient(centred, scores)[1][:2]) == pytest.approx(0.1 * 2 * 2 * 1 / 2)


OPTIONS: dict[str, dict[str, Any]] = {
    "half ties": {"half_ties": True},
    "smoothing": {"smoothing": 0.2},
    "margins": {"scale": 1.3},
    "center": {"center": 0.05},
    "half ties, smoothing and center": {"half_ties": True, "smoothing": 0.2, "center": 0.05},
    "half ties, margins and center": {"half_ties": True, "scale": 1.3, "center": 0.05},
}


def with_options(scores, ranks, normalizer, labels, options):
    wins = win_shares(ranks)
    if options.get("half_ties"):
        wins = wins + tied_shares(ranks)
    wins = smoothed(wins, options.get("smoothing", 0.0))
    margins = score_margins(labels, ranks, options["scale"]) if "scale" in options else None
    return ranking_loss(scores, ranks, normalizer, wins, margins, options.get("center", 0.0))


@pytest.mark.parametrize("name", OPTIONS)
def test_options_equal_cross_entropy_with_soft_targets(name, some_rankings):
    scores, ranks, labels = some_rankings
    options = OPTIONS[name]
    expected = soft_label_reference(scores, ranks, labels=labels if "scale" in options else None, **options)
    loss, _ = with_options(tensor(scores), torch.tensor(ranks), 7.0, tensor(labels), options)
    assert loss.item() == pytest.approx(sum(expected) / 7, rel=1e-6)
    plain = soft_label_reference(scores, ranks)
    assert sum(expected) != pytest.approx(sum(plain), rel=1e-3)


@pytest.mark.parametrize("name", OPTIONS)
def test_micro_batches_and_empty_slots_change_no_option(name, some_rankings):
    scores, ranks, labels = (torch.tensor(rows) for rows in some_rankings)
    scores = torch.where(ranks >= 0, scores, NAN).requires_grad_()
    whole, _ = with_options(scores, ranks, 30.0, labels, OPTIONS[name])
    padded = [torch.nn.functional.pad(part, (0, 2), value=-1) for part in (scores, ranks, labels)]
    parts = [
        with_options(padded[0][rows], padded[1][rows], 30.0, padded[2][rows], OPTIONS[name])[0]
        for rows in (slice(0, 1), slice(1, 12), slice(12, 30))
    ]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (sum(parts), whole)]
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(*gradients)
