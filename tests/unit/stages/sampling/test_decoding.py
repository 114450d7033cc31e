"""One token is an exact sample of the softmax, with noise that is a function of the seed."""

import math

import pytest
import torch

from stages.sampling import decoding
from stages.sampling.decoding import Noise, sample
from tests.support.roles import CPU
from tests.support.sampling import (
    CHI_SQUARE_5,
    CHI_SQUARE_15,
    CHI_SQUARE_31,
    chi_square,
)


@pytest.fixture(params=[1, 4, 256])
def block(request, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(decoding, "BLOCK", request.param)
    return request.param


@pytest.mark.parametrize(("size", "critical"), [(6, CHI_SQUARE_5), (32, CHI_SQUARE_31)])
def test_tokens_are_samples_of_the_softmax(size, critical, block):
    logits = torch.linspace(-1.5, 1.5, size)[torch.randperm(size, generator=torch.Generator().manual_seed(0))]
    picks, _ = sample(logits.expand(20_000, size), Noise(range(20_000), CPU))
    assert chi_square(picks.bincount(minlength=size), logits.softmax(0)) < critical


def test_logprobs_are_those_of_the_softmax(block):
    logits = 3 * torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    picks, logprobs = sample(logits, Noise(range(50), CPU))
    torch.testing.assert_close(logprobs, logits.log_softmax(1).gather(1, picks[:, None])[:, 0])


def test_what_was_left_out_is_never_sampled(block):
    logits = torch.full((500, 30), -math.inf)
    logits[:, [3, 17, 29]] = torch.tensor([0.0, 1.0, -1.0])
    picks, logprobs = sample(logits, Noise(range(500), CPU))
    assert set(picks.tolist()) == {3, 17, 29}
    assert logprobs.isfinite().all()


def test_noise_is_gumbels():
    noise = Noise([0], CPU)(200_000)[0].double()
    # mean is Euler's constant 0.57722, variance pi^2 / 6 = 1.64493; standard errors 0.003 and 0.009
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.01)
    assert noise.var().item() == pytest.approx(1.64493, abs=0.03)
    assert noise.isfinite().all()


def test_choices_of_one_row_are_independent_from_step_to_step(block):
    logits = torch.tensor([0.5, 0.0, -0.5, 1.0])
    noise = Noise(range(8_000), CPU)
    first, second = (sample(logits.expand(8_000, 4), noise)[0] for _ in range(2))
    probabilities = logits.softmax(0)
    joint = (probabilities[:, None] * probabilities).flatten()
    assert chi_square((first * 4 + second).bincount(minlength=16), joint) < CHI_SQUARE_15


def test_noise_of_a_row_is_a_function_of_its_seed():
    batched, single = Noise([7, 8, 7], CPU), Noise([8], CPU)
    for _ in range(3):
        rows = batched(40)
        assert torch.equal(rows[1:2], single(40))
        assert torch.equal(rows[0], rows[2])
        assert not torch.isclose(rows[0], rows[1]).any()


def test_sampling_is_in_fp32():
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    actual, expected = (sample(precision, Noise(range(200), CPU)) for precision in (logits, logits.float()))
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    assert actual[1].dtype == torch.float32
