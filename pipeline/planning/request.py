"""What a command asks for: an experiment, a run directory, and whether to repeat finished work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial

from configs.schema import Experiment, Stage
from pipeline.state.manifest import source_hashes
from pipeline.state.run_directory import RunDirectory


@dataclass(frozen=True)
class Request:
    """An experiment, its run directory, and the options of the command line.

    Attributes:
        arguments: `--config`, `--run-dir` and overrides as given. Suggested commands repeat them.
        force: run a finished stage again.
        fresh: start an interrupted stage from step 0.
    """

    config: Experiment
    run: RunDirectory
    arguments: str = ""
    force: bool = False
    fresh: bool = False

    @cached_property
    def source_hashes(self) -> Callable[[Stage], dict[str, str]]:
        """`source_hashes(stage)`: SHA-256 of the stage's local files by configuration key, hashed once."""
        return cache(partial(source_hashes, self.config))

    def command(self, stage: Stage, *switches: str) -> str:
        """The command line that runs `stage` of this request."""
        return " ".join(
            ["deepspeed launch/run_stage.py --stage", stage, *filter(None, [self.arguments]), *switches]
        )
