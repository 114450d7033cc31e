"""A policy that `tristage serve` serves, as judge: the real interface, whatever such a judge is worth."""

from __future__ import annotations

import pytest

from configs.errors import UserError
from configs.judge_file import JudgeEndpoint
from stages.feedback.endpoint_judge import EndpointJudge


def judge_of(server, **changes) -> EndpointJudge:
    values = {
        "url": f"{server.url}/v1/chat/completions",
        "model": "ppo",
        "template": "{prompt} {a} {b}",
        "retries": 0,
        "max_tokens": 6,
        "parameters": {"seed": 3},
    }
    return EndpointJudge(JudgeEndpoint.model_validate(values | changes), "--judges")


def test_a_policy_of_random_weights_says_nothing_readable(server) -> None:
    judge = judge_of(server)
    with pytest.raises(UserError, match=r"2 of 2 replies of ppo are unreadable, such as '"):
        judge.prefer(["p"], ["one"], ["two"])
    usage = judge.usage()
    assert usage["judge_completion_tokens"] > 0 and usage["judge_prompt_tokens"] > 2 * len("p one two")
    assert judge.without_usage == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "gpt"}, r"status 404: .*there is no 'gpt'"),
        ({"parameters": {"flavour": "mint"}}, r"status 400: .*flavour"),
        ({"template": "{prompt}{a}{b}" + "x" * 9000}, r"status 400: .*window|status 400: .*tokens"),
    ],
)
def test_what_the_server_says_of_a_wrong_request_is_shown(server, changes, reason) -> None:
    with pytest.raises(UserError, match=reason):
        judge_of(server, **changes).prefer(["p"], ["one"], ["two"])
