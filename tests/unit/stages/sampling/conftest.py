"""The four roles of PPO, for tests that sample from them."""

import pytest

from tests.support.roles import ppo_roles


@pytest.fixture(scope="module")
def roles(adapters):
    roles = ppo_roles(adapters)
    roles.eval()
    return roles
