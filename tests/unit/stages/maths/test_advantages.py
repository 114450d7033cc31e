"""Rewards, GAE and whitening: by hand, against plain Python in float64, and general properties."""

import math
import random

import pytest
import torch

from stages.maths.advantages import (
    MIN_SIGNAL,
    explained_variance,
    gae,
    next_kl_coef,
    reward_signal,
    scale,
    token_kl,
    token_rewards,
    whiten,
    whiten_signal,
)

NAN = math.nan
LENGTHS = (5, 1, 3, 4)


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def left_aligned(lengths) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def random_rows(seed: int, scale: float = 1.0) -> list[list[float]]:
    """Rows of LENGTHS random numbers."""
    rng = random.Random(seed)
    return [[rng.gauss(0, scale) for _ in range(length)] for length in LENGTHS]


def padded(rows: list[list[float]], filling: float = 0.0) -> torch.Tensor:
    width = max(map(len, rows))
    return tensor([[*row, *[filling] * (width - len(row))] for row in rows])


# Rewards


def test_token_rewards_by_hand():
    rewards = token_rewards(
        scores=tensor([2.0, -1.0]),
        logprobs=tensor([[-1.0, -2.0, -3.0], [-0.5, 0.0, 0.0]]),
        ref_logprobs=tensor([[-1.5, -2.0, -1.0], [-2.5, 0.0, 0.0]]),
        mask=torch.tensor([[True, True, True], [True, False, False]]),
        kl_coef=0.1,
    )
    # -0.1 * (0.5, 0, -2), and 2 on the third; -0.1 * 2 - 1 on the only one
    assert rewards.flatten().tolist() == pytest.approx([-0.05, 0.0, 2.2, -1.2, 0.0, 0.0])


def test_token_rewards_equal_plain_python():
    logprobs, ref_logprobs, scores = random_rows(0), random_rows(1), [3.0, -2.0, 0.5, 1.0]
    expected = []
    for row, ref_row, score in zip(logprobs, ref_logprobs, scores, strict=True):
        rewards = [-0.3 * (a - b) for a, b in zip(row, ref_row, strict=True)]
        rewards[-1] += score
        expected.append(rewards)
    mask = left_aligned(LENGTHS)
    for filling in (0.0, NAN):
        actual = token_rewards(
            tensor(scores), padded(logprobs, filling), padded(ref_logprobs, filling), mask, 0.3
        )
        torch.testing.assert_close(actual, padded(expected), rtol=1e-12, atol=0)


def test_rewards_of_a_response_add_up_to_score_less_kl():
    logprobs, ref_logprobs, scores = (
        padded(random_rows(2)),
        padded(random_rows(3)),
        tensor([1.0, 2.0, 3.0, 4.0]),
    )
    rewards = token_rewards(scores, logprobs, ref_logprobs, left_aligned(LENGTHS), 0.2)
    kl = (logprobs - ref_logprobs).sum(1)
    torch.testing.assert_close(rewards.sum(1), scores - 0.2 * kl)


def test_policy_that_is_its_reference_pays_nothing():
    logprobs, mask = padded(random_rows(4)), left_aligned(LENGTHS)
    rewards = token_rewards(tensor([1.0, 2.0, 3.0, 4.0]), logprobs, logprobs, mask, 5.0)
    assert rewards.tolist() == [[0, 0, 0, 0, 1], [2, 0, 0, 0, 0], [0, 0, 3, 0, 0], [0, 0, 0, 4, 0]]


# GAE


def gae_reference(rewards, values, gamma, lam):
    """Equation 16 as a sum without recursion, for one response."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, after, v in zip(rewards, following, values, strict=True)]
    return [
        sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))
    ]


def test_gae_by_hand():
    advantages, returns = gae(
        tensor([[1.0, 0.0, 2.0], [3.0, 9.0, 9.0]]),
        tensor([[0.5, 1.0, 1.5], [1.0, 9.0, 9.0]]),
        left_aligned([3, 1]),
        gamma=0.5,
        lam=0.5,
    )
    # deltas: 1 + 0.5 * 1 - 0.5 = 1; 0 + 0.5 * 1.5 - 1 = -0.25; 2 - 1.5 = 0.5
    # A_3 = 0.5; A_2 = -0.25 + 0.25 * 0.5 = -0.125; A_1 = 1 - 0.25 * 0.125 = 0.96875; second row 3 - 1
    assert advantages.tolist() == [[0.96875, -0.125, 0.5], [2.0, 0.0, 0.0]]
    assert returns.tolist() == [[1.46875, 0.875, 2.0], [3.0, 0.0, 0.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (0.99, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("filling", [0.0, 1e6, NAN])
def test_gae_equals_the_sum_it_stands_for(gamma, lam, filling):
    rewards, values = random_rows(5), random_rows(6)
    expected = [gae_reference(r, v, gamma, lam) for r, v in zip(rewards, values, strict=True)]
    mask = left_aligned(LENGTHS)
    advantages, returns = gae(padded(rewards, filling), padded(values, filling), mask, gamma, lam)
    torch.testing.assert_close(advantages, padded(expected), rtol=1e-12, atol=1e-12)
    sums = [[a + v for a, v in zip(*rows, strict=True)] for rows in zip(expected, values, strict=True)]
    torch.testing.assert_close(returns, padded(sums), rtol=1e-12, atol=1e-12)


def test_undiscounted_returns_are_the_reward_to_go():
    rewards, values = padded(random_rows(7)), padded(random_rows(8, scale=10))
    _, returns = gae(rewards, values, left_aligned(LENGTHS), 1.0, 1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1) * left_aligned(LENGTHS))


def test_perfect_critic_leaves_no_advantage():
    rewards, mask = padded(random_rows(9)), left_aligned(LENGTHS)
    values = rewards.flip(1).cumsum(1).flip(1)  # exactly what is still to come
    advantages, returns = gae(rewards, values, mask, 1.0, 0.95)
    assert advantages.abs().max().item() < 1e-12
    torch.testing.assert_close(returns, values * mask)


def test_gae_of_a_response_does_not_depend_on_its_batch():
    rewards, values = random_rows(10), random_rows(11)
    batched, _ = gae(padded(rewards), padded(values), left_aligned(LENGTHS), 1.0, 0.95)
    for i, length in enumerate(LENGTHS):
        single, _ = gae(tensor([rewards[i]]), tensor([values[i]]), left_aligned([length]), 1.0, 0.95)
        assert batched[i, :length].tolist() == single[0].tolist()


# Whitening


def test_whiten_by_hand():
    mask = torch.tensor([[True, True, False], [True, True, False]])
    whitened = whiten(tensor([[1.0, 3.0, 99.0], [5.0, 7.0, -99.0]]), mask)
    # mean 4, variance (9 + 1 + 1 + 9) / 4 = 5, standard deviation 2.2360680
    expected = [-1.3416408, -0.4472136, 0.0, 0.4472136, 1.3416408, 0.0]
    assert whitened.flatten().tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("filling", [0.0, 1e6, NAN])
def test_whitened_values_have_mean_0_and_deviation_1(filling):
    mask = left_aligned(LENGTHS)
    values = padded([[10 + 3 * x for x in row] for row in random_rows(12)], filling)
    whitened = whiten(values, mask)
    kept = whitened[mask].tolist()
    mean = sum(kept) / len(kept)
    assert mean == pytest.approx(0, abs=1e-12)
    assert math.sqrt(sum((x - mean) ** 2 for x in kept) / len(kept)) == pytest.approx(1, abs=1e-7)
    assert whitened[~mask].tolist() == [0.0] * int((~mask).sum())


def test_whitening_keeps_order_and_ignores_shift_and_scale():
    mask, values = left_aligned(LENGTHS), padded(random_rows(13))
    whitened = whiten(values, mask)
    assert whitened[mask].argsort().tolist() == values[mask].argsort().tolist()
    torch.testing.assert_close(whiten(values * 7 - 3, mask), whitened, rtol=1e-6, atol=1e-6)


def test_equal_values_whiten_to_zero():
    whitened = whiten(torch.full((2, 3), 4.0), left_aligned([3, 2]))
    assert whitened.tolist() == [[0.0] * 3] * 2


def last_token(scores: list[float], filling: float = 0.0) -> torch.Tensor:
    """Rewards of responses of LENGTHS, whose last token has the score."""
    rows = [[*[0.0] * (length - 1), score] for length, score in zip(LENGTHS, scores, strict=True)]
    return padded(rows, filling)


@pytest.mark.parametrize("filling", [0.0, NAN])
def test_critics_error_is_not_whitened_if_the_rewards_are_nearly_constant(filling):
    advantages, mask = padded(random_rows(15), filling), left_aligned(LENGTHS)
    noise = float(advantages[mask].std(unbiased=False))
    for deviation, held in ((0.0, True), (1e-3, True), (0.099, True), (0.101, False), (1.0, False)):
        # scores 1 -+ d, twice each, have deviation d
        scores = [1 + sign * deviation * noise for sign in (-1, 1, -1, 1)]
        found = whiten_signal(advantages, last_token(scores, filling), mask)
        expected = torch.zeros_like(found) if held else whiten(advantages, mask)
        assert torch.equal(found, expected), deviation


def test_signal_of_the_rewards_includes_their_kl_penalty():
    """A policy whose scores are constant is still pulled back to its reference."""
    advantages, mask = padded(random_rows(16)), left_aligned(LENGTHS)
    rewards = last_token([1.0] * 4) + padded(random_rows(17))
    assert torch.equal(whiten_signal(advantages, rewards, mask), whiten(advantages, mask))


@pytest.mark.parametrize("filling", [0.0, NAN])
def test_reward_signal_by_hand(filling):
    """Total rewards 1 -+ d deviate by d. The advantages -1 and 1 deviate by 1."""
    mask = torch.tensor([[True, True, False], [True, False, False]])
    advantages = torch.tensor([[1.0, -1.0, filling], [0.0, filling, filling]])
    deviation = (2 / 3) ** 0.5
    for d, share in ((0.0, 0.0), (0.05, 0.05 / deviation), (0.8, 0.8 / deviation), (2.0, 1.0)):
        rewards = torch.tensor([[0.25, 0.75 - d, filling], [1 + d, filling, filling]])
        assert float(reward_signal(advantages, rewards, mask)) == pytest.approx(share, rel=1e-5), d
    nothing = torch.zeros(2, 3)
    assert float(reward_signal(nothing, nothing, mask)) == 0.0
    assert float(reward_signal(nothing, rewards, mask)) == 1.0
    assert reward_signal(advantages, torch.full((2, 3), NAN), mask).isnan()


@pytest.mark.parametrize("d", [0.05, 0.099, 0.101, 0.5])
def test_advantages_are_held_exactly_if_the_logged_signal_is_below_the_limit(d):
    advantages, mask = padded(random_rows(15)), left_aligned(LENGTHS)
    noise = float(advantages[mask].std(unbiased=False))
    rewards = last_token([1 + sign * d * noise for sign in (-1, 1, -1, 1)])
    held = not whiten_signal(advantages, rewards, mask).any()
    assert held == (float(reward_signal(advantages, rewards, mask)) < MIN_SIGNAL)


def test_signal_does_not_depend_on_the_scale_of_the_rewards():
    """Rewards of deviation 0.001 with a critic of the same scale are whitened as others are."""
    advantages, rewards, mask = padded(random_rows(18)), padded(random_rows(19)), left_aligned(LENGTHS)
    small = whiten_signal(advantages * 1e-3, rewards * 1e-3, mask)
    torch.testing.assert_close(small, whiten_signal(advantages, rewards, mask), rtol=1e-2, atol=0)
    assert small.any()


def test_advantages_of_one_response_are_centred():
    mask = torch.tensor([[True, True, True, False]])
    centred = whiten_signal(tensor([[1.0, 2.0, 6.0, 99.0]]), tensor([[0.0, 0.0, 1.0, 0.0]]), mask)
    assert centred.flatten().tolist() == [-2.0, -1.0, 3.0, 0.0]


def test_reward_that_is_no_number_spreads_over_all_advantages():
    """The update then has a gradient that is not finite, and is skipped."""
    rewards, mask = last_token([1.0, 1.0, NAN, 1.0]), left_aligned(LENGTHS)
    advantages, _ = gae(rewards, padded(random_rows(20)), mask, 1.0, 0.95)
    assert whiten_signal(advantages, rewards, mask)[mask].isnan().all()


# Explained variance


def test_explained_variance_by_hand():
    mask = torch.tensor([[True, True, True, True, False]])
    returns = tensor([[1.0, 2.0, 3.0, 4.0, NAN]])  # variance 1.25
    values = tensor([[1.0, 2.0, 3.0, 2.0, NAN]])  # errors 0, 0, 0, 2: mean 0.5, variance 0.75
    assert explained_variance(values, returns, mask).item() == pytest.approx(0.4)  # 1 - 0.75 / 1.25


def test_explained_variance_of_perfect_useless_and_harmful_critics():
    returns, mask = padded(random_rows(14)), left_aligned(LENGTHS)
    assert explained_variance(returns + 3, returns, mask).item() == pytest.approx(1)
    assert explained_variance(torch.full_like(returns, 2), returns, mask).item() == pytest.approx(0)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3)  # 1 - Var(2R) / Var(R)


def test_explained_variance_of_returns_that_vary_by_rounding_only_is_nan():
    torch.manual_seed(0)
    mask = torch.ones(8, 16, dtype=torch.bool)
    values = torch.randn(8, 16)
    _, returns = gae(torch.zeros(8, 16), values, mask, gamma=1.0, lam=1.0)
    assert 0 < returns.var() < 1e-12
    assert math.isnan(explained_variance(values, returns, mask).item())


def test_explained_variance_of_equal_returns_is_nan():
    ones = torch.ones(1, 3)
    assert math.isnan(explained_variance(ones * 2, ones, ones.bool()).item())


# KL


def test_token_kl_by_hand():
    logprobs, ref_logprobs = tensor([[-1.0, -2.0]]), tensor([[-1.5, -1.0]])  # d = 0.5, -1
    assert token_kl(logprobs, ref_logprobs, "k1").flatten().tolist() == pytest.approx([0.5, -1.0])
    expected = [math.exp(-0.5) - 1 + 0.5, math.e - 1 - 1]
    assert token_kl(logprobs, ref_logprobs, "k3").flatten().tolist() == pytest.approx(expected)


def test_kl_estimators_are_unbiased_and_k3_varies_less_and_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 8, generator=generator, dtype=torch.float64) * 0.5
    policy, reference = logits.log_softmax(-1)
    exact = float((policy.exp() * (policy - reference)).sum())
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=generator)
    k1, k3 = (token_kl(policy[tokens], reference[tokens], name) for name in ("k1", "k3"))
    for estimates in (k1, k3):
        assert float(estimates.mean()) == pytest.approx(exact, abs=4 * float(estimates.std()) / 200_000**0.5)
    assert k3.min() >= 0 > k1.min()
    assert k3.var() < 0.5 * k1.var()


def test_token_rewards_with_k3_by_hand():
    arguments = tensor([2.0]), tensor([[-1.0, -2.0]]), tensor([[-1.5, -1.0]]), torch.tensor([[True, True]])
    rewards = token_rewards(*arguments, 0.1, "k3").flatten().tolist()
    assert rewards == pytest.approx([-0.1 * (math.exp(-0.5) - 0.5), 2.0 - 0.1 * (math.e - 2)])


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (6.6, 1 + 0.1 * 0.064), (60.0, 1 + 0.2 * 0.064), (0.0, 1 - 0.2 * 0.064)],
    ids=["on target", "a tenth above", "far above: clipped", "far below: clipped"],
)
def test_adaptive_kl_coefficient_by_hand(kl, factor):
    assert next_kl_coef(0.05, kl, 6.0, 640, 10_000) == pytest.approx(0.05 * factor)


def test_adaptive_kl_coefficient_finds_the_target():
    """A policy whose KL falls with the coefficient, KL = 0.6 / beta, ends at the target."""
    kl_coef = 0.02
    for _ in range(400):
        kl_coef = next_kl_coef(kl_coef, 0.6 / kl_coef, 6.0, 128, 1000)
    assert 0.6 / kl_coef == pytest.approx(6.0, rel=1e-3)


def test_scaled_rewards_keep_their_mean_and_have_deviation_1():
    rows, mask = padded(random_rows(5, scale=3.0), NAN), left_aligned(LENGTHS)
    scaled = scale(rows, mask)
    assert float(scaled[mask].mean()) == pytest.approx(float(rows[mask].mean()))
    assert float(scaled[mask].std(unbiased=False)) == pytest.approx(1.0)
    assert not scaled[~mask].any()
