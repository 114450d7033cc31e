"""PPO's four roles over the tiny base."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.models.roles import Roles
from tests.support.roles import ppo_roles


@pytest.fixture(scope="module")
def roles_of_ppo(adapters: dict[str, Path]) -> Roles:
    """PPO's roles, for tests that do not change them."""
    return ppo_roles(adapters).eval()


@pytest.fixture
def changeable_roles(adapters: dict[str, Path]) -> Roles:
    """PPO's roles, for tests that change them."""
    return ppo_roles(adapters).train()
