"""Statistics over a padded batch equal those of each sequence alone."""

import math

import pytest
import torch

from stages.models.queries import Query
from stages.sampling.response_batch import (
    ResponseBatch,
    response_batch,
    response_statistics,
    sequence_scores,
    state_values,
)
from tests.support.roles import CPU
from tests.support.sampling import (
    LANGUAGE_ROLES,
    PROMPTS,
    naive_logits,
)

RESPONSES = [[40, 41, 2], [77], [9, 8, 7, 6, 5], [2], [100, 200, 300, 2], [15, 16], [350, 1, 0, 2]]


def test_lay_out_by_hand():
    batch = response_batch([[5, 6, 7], [8]], [[9], [10, 11]], 0, CPU)
    assert batch.input_ids.tolist() == [[5, 6, 7, 9, 0], [0, 0, 8, 10, 11]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert batch.responses.tolist() == [[9, 0], [10, 11]]
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert batch.start == 2
    assert {tensor.dtype for tensor in (batch.input_ids, batch.attention_mask, batch.responses)} == {
        torch.int64
    }
    assert batch.mask.dtype == torch.bool


def test_lay_out_tells_padding_by_mask_not_by_token():
    batch = response_batch([[0, 5]], [[0, 2, 0]], 0, CPU)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1]]
    assert batch.mask.tolist() == [[True, True, True]]


def test_lay_out_pads_with_the_pad_token():
    batch = response_batch([[5, 6], [8]], [[9], [10, 11]], 3, CPU)
    assert batch.input_ids.tolist() == [[5, 6, 9, 3], [3, 8, 10, 11]]
    assert batch.responses.tolist() == [[9, 3], [10, 11]]


def test_position_start_tells_the_first_response_token():
    batch = response_batch(PROMPTS, RESPONSES, 0, CPU)
    rows = zip(batch.input_ids.tolist(), PROMPTS, RESPONSES, strict=True)
    for row, prompt, response in rows:
        assert row[batch.start] == prompt[-1]
        assert row[batch.start + 1 : batch.start + 1 + len(response)] == response


@pytest.mark.parametrize("role", LANGUAGE_ROLES)
def test_logprobs_and_entropy_equal_those_of_each_sequence_alone(role, roles):
    batch = response_batch(PROMPTS, RESPONSES, 0, CPU)
    with torch.no_grad():
        logprobs, entropy, *_ = response_statistics(roles, role, batch, entropy=True)
    assert logprobs.shape == entropy.shape == batch.mask.shape
    assert logprobs.dtype == entropy.dtype == torch.float32
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        logits = naive_logits(roles, role, prompt + response)
        for t, id in enumerate(response):
            row = logits[len(prompt) + t - 1].tolist()
            log_total = math.log(sum(math.exp(x) for x in row))
            assert logprobs[i, t].item() == pytest.approx(row[id] - log_total, abs=1e-4)
            expected_entropy = -sum(math.exp(x - log_total) * (x - log_total) for x in row)
            assert entropy[i, t].item() == pytest.approx(expected_entropy, abs=1e-4)


def test_entropy_and_logprobs_train_the_policy_alone(roles):
    batch = response_batch(PROMPTS[:2], RESPONSES[:2], 0, CPU)
    logprobs, entropy, *_ = response_statistics(roles, "policy", batch, entropy=True)
    for figure in (logprobs, entropy):
        roles.zero_grad()
        figure.sum().backward(retain_graph=True)
        trained = {
            name.split(".")[-2]
            for name, parameter in roles.named_parameters()
            if parameter.grad is not None and parameter.grad.any()
        }
        assert trained == {"policy"}


def naive_values(roles, role: str, ids: list[int]) -> torch.Tensor:
    """(T,) scalars of one sequence: its last hidden states times the head's weight, plus the bias."""
    roles.activate(role)
    with torch.no_grad():
        hidden = roles.causal(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        head = roles.heads[role]
        return hidden.double() @ head.weight[0].double() + head.bias.double()


@pytest.mark.parametrize("role", ["reward", "critic"])
def test_values_are_those_of_each_sequence_alone(role, roles):
    batch = response_batch(PROMPTS, RESPONSES, 0, CPU)
    with torch.no_grad():
        values, scores = state_values(roles, role, batch), sequence_scores(roles, role, batch)
    assert values.shape == (len(PROMPTS), batch.mask.shape[1] + 1)
    assert values.dtype == scores.dtype == torch.float32
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        naive = naive_values(roles, role, prompt + response)[len(prompt) - 1 :].tolist()
        assert values[i, : len(response) + 1].tolist() == pytest.approx(naive, abs=1e-5)
        assert scores[i].item() == pytest.approx(naive[-1], abs=1e-5)
        assert len({round(value, 3) for value in naive}) == len(
            naive
        )  # so that the test can distinguish the right token


def test_score_is_read_at_the_last_response_token():
    """The model returns the id of each token, so the score is the id of the last one, even a pad token."""
    batch = response_batch([[5, 6], [7, 8, 9], [4]], [[11, 12], [13], [0, 14, 0]], 0, CPU)

    def own_id(query: Query) -> torch.Tensor:
        return query.input_ids[:, query.start :].float()

    assert sequence_scores(own_id, "reward", batch).tolist() == [12.0, 13.0, 0.0]
    assert state_values(own_id, "critic", batch)[0].tolist() == [6.0, 11.0, 12.0, 0.0]


def batches_around_the_first() -> dict[str, ResponseBatch]:
    prompt, response = PROMPTS[0], RESPONSES[0]
    return {
        "longer prompt beside it": response_batch([prompt, [33] * 20], [response, [4]], 0, CPU),
        "longer response beside it": response_batch([prompt, [33]], [response, [4] * 15], 0, CPU),
        "padded with another token": response_batch([prompt, [33] * 9], [response, [4] * 9], 17, CPU),
        "itself beside it": response_batch([prompt, prompt], [response, response], 0, CPU),
    }


@pytest.mark.parametrize("neighbour", batches_around_the_first())
def test_score_and_logprobs_do_not_depend_on_batch_or_padding(neighbour, roles):
    single, batch = response_batch(PROMPTS[:1], RESPONSES[:1], 0, CPU), batches_around_the_first()[neighbour]
    with torch.no_grad():
        torch.testing.assert_close(
            sequence_scores(roles, "reward", batch)[:1],
            sequence_scores(roles, "reward", single),
            rtol=1e-5,
            atol=1e-5,
        )
        for actual, expected in zip(
            response_statistics(roles, "policy", batch, entropy=True)[:2],
            response_statistics(roles, "policy", single, entropy=True)[:2],
            strict=True,
        ):
            torch.testing.assert_close(actual[:1, : len(RESPONSES[0])], expected, rtol=1e-5, atol=1e-5)


def test_token_after_the_last_has_no_say_in_the_score(roles):
    batch = response_batch(PROMPTS[:2], RESPONSES[:2], 0, CPU)
    assert not batch.mask[1, -1]
    changed_ids = batch.input_ids.clone()
    changed_ids[1, -1] = 299
    other = ResponseBatch(changed_ids, batch.attention_mask, batch.responses, batch.mask, batch.start)
    with torch.no_grad():
        assert torch.equal(sequence_scores(roles, "reward", other), sequence_scores(roles, "reward", batch))
