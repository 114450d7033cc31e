"""A request to run stages: an experiment, a run directory, and whether to repeat finished work."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

from configs.schema import Experiment, Stage
from data.people.round import Kind
from data.storage.source_digest import source_digest
from pipeline.state.manifest import source_hashes
from pipeline.state.run_directory import RunDirectory

TRISTAGE = "tristage"
RUN_STAGE = Path(__file__).resolve().parents[2] / "launch" / "run_stage.py"
NEXT_STAGE: dict[Stage, Stage] = {"sft": "rm", "rm": "ppo"}


@dataclass(frozen=True)
class Request:
    """An experiment, its run directory, and the options of the command line.

    Attributes:
        arguments: `--config`, `--run-dir` and overrides as given. Suggested commands repeat them.
        force: run a finished stage again.
        fresh: start an interrupted stage from step 0.
        caller: TRISTAGE, or the launcher that the user called, such as `torchrun --nproc-per-node 2`.
            Suggested commands have its form.
    """

    config: Experiment
    run: RunDirectory
    arguments: str = ""
    force: bool = False
    fresh: bool = False
    caller: str = "deepspeed"

    @cached_property
    def source_hashes(self) -> Callable[[Stage], dict[str, str]]:
        """`source_hashes(stage)`: SHA-256 of the stage's local files by configuration key, hashed once."""
        return cache(partial(source_hashes, self.config, digest_of=cache(source_digest)))

    def command(self, stage: Stage, *switches: str) -> str:
        """The command line that runs `stage` of this request. `tristage run` does not know `best`."""
        if self.caller == TRISTAGE and stage != "best":
            return self._line(f"tristage run --from {stage} --until {stage}", *switches)
        launcher = "deepspeed" if self.caller == TRISTAGE else self.caller
        return self._line(f"{launcher} {shlex.quote(_from_here(RUN_STAGE))} --stage {stage}", *switches)

    def next_command(self, stage: Stage) -> str:
        """The command line to call after `stage` has finished."""
        if stage == "best":
            return self._fine_tune_command()
        if stage not in NEXT_STAGE:
            return self._line("tristage report")
        following = NEXT_STAGE[stage]
        if self.caller == TRISTAGE:
            return self._line(f"tristage run --from {following}")
        return self.command(following)

    def collect_command(self, kind: Kind) -> str:
        """The command line by which people rank the answers of SFT, or judge pairs."""
        return self._line(f"tristage collect {kind}")

    def _fine_tune_command(self) -> str:
        """SFT on the answers that `best` has picked, in its own run directory."""
        run_dir, config_file = self.run.path, self.run.config_file
        request = replace(self, arguments=f"--config {config_file} --run-dir {run_dir}-best")
        file = self.run.output("best") / "train.jsonl"
        _, label, source = self.config.data.parts("sft")[0]
        keys = (
            "name",
            "data_dir",
            "split",
            "revision",
            "streaming",
            "ignore_columns",
            "columns",
            "task",
            "format",
            "rank_by",
            "min_rating",
        )
        other_rows = label or source.changed(*keys)  # only an item of a list has a label
        return f"{request.command('sft')} " + (
            f"'data.sft={{path: {file}}}'" if other_rows else f"data.sft.path={file}"
        )

    def _line(self, *words: str) -> str:
        program, *switches = words
        return " ".join(filter(None, [program, self.arguments, *switches]))


def _from_here(file: Path) -> str:
    """The path of a file, short if it lies below the working directory."""
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)
