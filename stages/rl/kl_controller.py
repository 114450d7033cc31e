"""The coefficient of PPO's KL penalty."""

from __future__ import annotations

import math

from configs.schema import Ppo
from stages.maths.advantages import next_kl_coef
from stages.training.checkpoint import State


class KlController:
    """A fixed coefficient, or one that keeps the KL near `kl_target` (Ziegler et al. 2019, section 2.2).

    Attributes:
        coef: the coefficient of the current batch.
    """

    def __init__(self, ppo: Ppo) -> None:
        self.coef, self._ppo = ppo.kl_coef, ppo

    def update(self, kl: float, responses: int) -> None:
        """Adapt the coefficient after a batch whose mean KL was `kl` nats per response."""
        if self._ppo.kl_target and math.isfinite(kl):
            self.coef = next_kl_coef(self.coef, kl, self._ppo.kl_target, responses, self._ppo.kl_horizon)

    def state_dict(self) -> State:
        return State({"coef": self.coef})

    def load_state_dict(self, state: State) -> None:
        self.coef = state.values["coef"]
