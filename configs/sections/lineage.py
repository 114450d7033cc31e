"""The section `lineage`: the runs that this one goes on from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.sections.values import Section, Text


class Lineage(Section):
    """Which runs came before this one. `tristage round` writes it; no stage reads it."""

    parents: tuple[Text, ...] = Field(
        (), description="run directories of the earlier rounds, first to last; none in the first round"
    )
    start: Literal["sft", "ppo"] = Field(
        "ppo", description="the stage of the last of them whose policy this round starts from"
    )

    @property
    def round(self) -> int:
        """The number of this round, from 1."""
        return len(self.parents) + 1

    @property
    def words(self) -> str | None:
        """Where this round comes from, for a person; None for the first."""
        if not self.parents:
            return None
        return f"round {self.round}, from the policy of stage {self.start} in {self.parents[-1]}"
