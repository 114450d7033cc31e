"""Copies of the policy beside the one that trains: its moving average, and the last one within `max_kl`."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.context import Context
from stages.models.roles import Role
from stages.training.checkpoint import State
from stages.training.engine import Engine
from stages.training.export import save_role

Tensors = dict[str, Tensor]


class PolicyAverage:
    """An exponential moving average of the policy over iterations (Polyak and Juditsky 1992, with decay).

    a <- decay * a + (1 - decay) * w, from the first w on.

    Attributes:
        tensors: the average by parameter name; empty before the first update.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self.tensors: Tensors = {}
        self._engine, self._decay = engine, decay

    def update(self) -> None:
        """Move the average towards the policy. Every rank must call."""
        for name, tensor in self._engine.role_tensors(Role.POLICY).items():
            self.tensors[name] = self.tensors.get(name, tensor).lerp(tensor, 1 - self._decay)

    def save(self, context: Context, tokenizer: PreTrainedTokenizerBase, use_average: bool) -> None:
        """Write the policy and its average. Every rank must call.

        `use_average` selects the result: it goes to `adapter`, and is the policy afterwards. The other goes
        to `adapter-last` or `adapter-ema`.
        """
        policy = self._engine.role_tensors(Role.POLICY)
        if use_average:
            other, folder, result = policy, "adapter-last", self.tensors
        else:
            other, folder, result = self.tensors, "adapter-ema", policy
        self._engine.set_parameters(other)
        save_role(context, self._engine, Role.POLICY, tokenizer, folder)
        self._engine.set_parameters(result)
        save_role(context, self._engine, Role.POLICY, tokenizer)

    def state_dict(self) -> State:
        return State(tensors=_copies(self.tensors))

    def load_state_dict(self, state: State) -> None:
        self.tensors = state.tensors


class LastGoodPolicy:
    """The policy of the last rollout whose KL was within `max_kl`, and its average."""

    def __init__(self, engine: Engine, average: PolicyAverage | None) -> None:
        self._engine, self._average = engine, average
        self._policy_tensors: Tensors = {}
        self._average_tensors: Tensors = {}

    @property
    def is_known(self) -> bool:
        """Whether a rollout was within `max_kl`."""
        return bool(self._policy_tensors)

    def remember(self) -> None:
        """Take the policy as it is now. Every rank must call."""
        self._policy_tensors = self._engine.role_tensors(Role.POLICY)
        self._average_tensors = dict(self._average.tensors) if self._average else {}

    def restore(self) -> None:
        """Make the remembered policy the policy again. Every rank must call."""
        self._engine.set_parameters(self._policy_tensors)
        if self._average:
            # Before the first update, the average is the policy itself.
            self._average.tensors = self._average_tensors or dict(self._policy_tensors)

    def state_dict(self) -> State:
        return State(
            tensors=_copies(self._policy_tensors, "policy/") | _copies(self._average_tensors, "average/")
        )

    def load_state_dict(self, state: State) -> None:
        def under(prefix: str) -> Tensors:
            names = [name for name in state.tensors if name.startswith(prefix)]
            return {name.removeprefix(prefix): state.tensors[name] for name in names}

        self._policy_tensors, self._average_tensors = under("policy/"), under("average/")


def _copies(tensors: Tensors, prefix: str = "") -> Tensors:
    """Copies under prefixed names: snapshots may share memory, which safetensors refuses to save."""
    return {prefix + name: tensor.clone() for name, tensor in tensors.items()}
