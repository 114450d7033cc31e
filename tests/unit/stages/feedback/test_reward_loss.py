"""Each key of `rm.loss` selects its equation; margins need scores."""

import math

import pytest
import torch

from configs.errors import UserError
from configs.schema import RankingLoss
from data.batches.tokenize import Ranking
from stages.feedback.reward_loss import check_labels, labels_of, reward_loss, ties_note
from stages.maths.ranking_losses import ranking_loss
from tests.support.roles import CPU
from tests.support.tensors import tensor

SCORES, RANKS = tensor([[2.0, 0.5, -1.0, 0.0]]), torch.tensor([[0, 1, 1, -1]])
LABELS = tensor([[3.0, 1.0, 1.0, 0.0]])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def value(**options: object) -> float:
    return reward_loss(RankingLoss(**options), SCORES, RANKS, LABELS, 1)[0].item()


def test_the_default_is_the_ranking_loss_to_the_last_bit():
    single = SCORES.float()
    loss, metrics = reward_loss(RankingLoss(), single, RANKS, None, 3)
    expected, expected_metrics = ranking_loss(single, RANKS, 3)
    assert loss.item() == expected.item() and metrics == expected_metrics


def test_each_option_by_hand():
    # pairs: 1.5 and 3; the tie: 1.5
    plain = (softplus(-1.5) + softplus(-3)) / 2
    assert value() == pytest.approx(plain)
    tie = (softplus(-1.5) + softplus(1.5)) / 2
    assert value(ties="half") == pytest.approx((2 * plain + tie) / 3)
    assert value(margin="scores", margin_scale=0.5) == pytest.approx((softplus(-0.5) + softplus(-2)) / 2)
    assert value(center=0.1) == pytest.approx(plain + 0.1 * (2.5**2 + 1.0**2) / 2)
    wrong = (softplus(1.5) + softplus(3)) / 2
    assert value(label_smoothing=0.2) == pytest.approx(0.8 * plain + 0.2 * wrong)
    # the best of all three, and then nothing: the rest tie
    chosen = math.exp(2) / (math.exp(2) + math.exp(0.5) + math.exp(-1))
    assert value(kind="plackett_luce") == pytest.approx(-math.log(chosen))
    assert value(kind="plackett_luce", center=0.1) == pytest.approx(
        -math.log(chosen) + 0.1 * (2.5**2 + 1.0**2) / 2
    )


def test_labels_are_padded_or_absent():
    rankings = [
        Ranking("p", [1], [[2]] * 3, [0, 1, 1], [3.0, 1, 1]),
        Ranking("q", [1], [[2]] * 2, [0, 1], [2, 1]),
    ]
    padded = labels_of(rankings, CPU)
    assert padded is not None and padded.tolist() == [[3, 1, 1], [2, 1, 0]]
    assert labels_of([*rankings, Ranking("r", [1], [[2]] * 2, [0, 1])], CPU) is None


def test_rankings_without_scores_are_refused_if_margins_need_them():
    scored, plain = ("Hi!", [2.0, 1.0]), ("Ho!", None)
    check_labels(RankingLoss(), [plain])
    check_labels(RankingLoss(margin="scores"), [scored])
    with pytest.raises(
        UserError, match=r"1 of 2 rankings have no scores\. One has the prompt 'Ho!'\. Give each"
    ):
        check_labels(RankingLoss(margin="scores"), [scored, plain])


def test_ties_that_count_are_told():
    rankings = [Ranking("p", [1], [[2]] * 3, [0, 1, 1]), Ranking("q", [1], [[2]] * 2, [0, 1])]
    assert ties_note(RankingLoss(), rankings) is None
    note = ties_note(RankingLoss(ties="half"), rankings)
    assert note == "rm.loss.ties: half. 1 of 2 training rankings have a tied pair"
