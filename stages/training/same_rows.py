"""A stage resumes on the rows on which it began: its checkpoints hold a digest of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from configs.errors import UserError
from configs.identity import split_keys
from configs.schema import data_stage
from data.batches.tokenize import Demonstration, Prompt, Ranking
from stages.context import Context
from stages.training.checkpoint import Checkpoint, State

ROWS = "rows"  # its part of a checkpoint
KEYS_SHOWN = 4
Example = Demonstration | Ranking | Prompt


@dataclass(frozen=True)
class SameRows:
    """The training and held-out rows of a stage, as its checkpoints remember them.

    Attributes:
        digest: SHA-256 of the rows, in order.
    """

    context: Context
    digest: str

    def state_dict(self) -> State:
        return State({"sha256": self.digest, "keys": split_keys(self.context.config, self.context.stage)})

    def load_state_dict(self, state: State) -> None:
        """Raise UserError if the checkpoint is of other rows. One of an earlier version does not tell."""
        if state.values.get("sha256", self.digest) == self.digest:
            return
        before, now = state.values["keys"], split_keys(self.context.config, self.context.stage)
        changed = [key for key in before | now if before.get(key) != now.get(key)]
        raise other_rows(self.context, [f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed])


def check_rows(
    context: Context, checkpoint: Checkpoint | None, train: Sequence[Example], held_out: Sequence[Example]
) -> SameRows:
    """The rows of a stage, which must be those of the checkpoint from which it resumes."""
    rows = SameRows(context, _digest(train, held_out))
    if checkpoint is not None:
        rows.load_state_dict(checkpoint.part(ROWS))
    return rows


def other_rows(context: Context, changed: Sequence[str] = ()) -> UserError:
    """The refusal to resume on other rows.

    Args:
        changed: what changed in the configuration, as far as that is known.
    """
    keys = " or ".join(f"data.{data_stage(one)}" for one in context.config.data_behind(context.stage))
    why = "; ".join(changed[:KEYS_SHOWN]) or f"a key or a file of {keys} is not what it was"
    return UserError(
        f"stage {context.stage}: its training and held-out prompts are not those on which it began. "
        f"Changed: {why}. Restore that to resume, or start over with --fresh."
    )


def _digest(*parts: Sequence[Example]) -> str:
    """A digest of the token ids of all rows."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} rows\n".encode())
        for one in part:
            ids = one.prompt_ids if isinstance(one, Prompt) else [one.prompt_ids, one.completion_ids]
            digest.update(f"{ids}\n".encode())
    return digest.hexdigest()
