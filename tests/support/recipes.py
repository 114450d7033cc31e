"""A launcher runs this: the three recipes one after another in one process group.

deepspeed recipes.py UPSTREAM OUT DEEPSPEED_JSON go|ppo|stop|stop-again|resume [key=value ...]

Every stage reads the adapters in UPSTREAM, so that stages are compared independently. It writes to OUT/STAGE.
`go` runs all stages; `ppo` runs only PPO; `stop` ends SFT and RM at a step that is logged and not yet saved,
and PPO with SIGKILL to all processes; `resume` resumes in the same folders; `stop-again` resumes and ends at
a later step. Rank 0 appends to OUT/STAGE/begun the step that training begins at. Each rank writes
OUT/STAGE/rankN.json: how much of the base it holds.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch  # noqa: E402

from pipeline.processes import logs  # noqa: E402

logs.silence()

from configs.load import load_experiment  # noqa: E402
from configs.schema import STAGES, DeepSpeed, Stage  # noqa: E402
from pipeline.tracking.metric_files import FileSink  # noqa: E402
from stages.context import Context  # noqa: E402
from stages.distributed.process_group import init_distributed  # noqa: E402
from stages.distributed.ranks import Ranks  # noqa: E402
from stages.training.engine import Engine  # noqa: E402

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml"
STOP_AT = {"stop": {"sft": 3, "rm": 3, "ppo": 2}, "stop-again": {"sft": 5, "rm": 4, "ppo": 3}}
UPSTREAM = {"sft": (), "rm": ("sft",), "ppo": ("sft", "rm")}


class Stop(Exception):
    """Ends the stage."""


class Tracker:
    """Writes files on rank 0, as the pipeline does, and ends the stage at step `stop_at`."""

    def __init__(self, folder: Path, rank: int, stop_at: int | None, kill: bool) -> None:
        self._folder, self._sink = folder, FileSink(folder) if rank == 0 else None
        self._stop_at, self._kill = stop_at, kill

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if self._sink:
            self._sink.log(metrics, step)
        if step == self._stop_at and "learning_rate" in metrics:
            if self._kill:
                os.killpg(os.getpgid(0), signal.SIGKILL)
            raise Stop

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        if self._sink:
            self._sink.samples(rows, step)

    def rewind(self, step: int) -> None:
        if self._sink:
            self._sink.rewind(step)

    def phase(self, title: str, total: int, done: int = 0) -> None:
        if self._sink and title.endswith("training"):
            with (self._folder / "begun").open("a") as stream:
                stream.write(f"{done}\n")

    def advance(self, units: int = 1, **figures: float) -> None: ...
    def note(self, message: str) -> None: ...


def base_weight_sizes(engine: Engine) -> dict[str, dict[str, int]]:
    """Of each 4-bit weight of the base: its elements in all, in this rank's shard, and in memory now."""
    sizes = {}
    parameter: Any  # of DeepSpeed's own kind under ZeRO-3
    for name, parameter in engine.models.named_parameters():
        if "quant_state" in vars(parameter):
            sharded = engine.zero_stage == 3
            sizes[name] = {
                "whole": parameter.ds_numel if sharded else parameter.numel(),
                "shard": parameter.ds_tensor.numel() if sharded else parameter.numel(),
                "held": parameter.numel(),
            }
    return sizes


def packed_bytes() -> int:
    """Bytes of 4-bit weights in this process, with views of them and scales."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if issubclass(type(tensor), torch.Tensor) and tensor.dtype == torch.uint8
    }
    return sum(storages.values())


def run(stage: Stage, upstream: Path, out: Path, overrides: Sequence[str], mode: str, ranks: Ranks) -> None:
    folder = out / stage
    folder.mkdir(parents=True, exist_ok=True)
    engines: list[Engine] = []
    packed: list[int] = []
    earlier = packed_bytes()  # what DeepSpeed remembers of the stages before
    initialize, backward = Engine.__init__, Engine.backward

    def initialize_and_record(self: Engine, *args: Any, **kwargs: Any) -> None:
        initialize(self, *args, **kwargs)
        engines.append(self)

    def weigh_and_backward(self: Engine, loss: torch.Tensor) -> None:
        if not packed:
            packed.append(packed_bytes() - earlier)
        backward(self, loss)

    Engine.__init__ = initialize_and_record  # type: ignore[method-assign]
    Engine.backward = weigh_and_backward  # type: ignore[method-assign]
    config = load_experiment(TINY, overrides)
    tracker = Tracker(folder, ranks.rank, STOP_AT.get(mode, {}).get(stage), kill=stage == "ppo")
    resume = mode in ("resume", "stop-again")
    inputs = {name: upstream / name / "adapter" for name in UPSTREAM[stage]}
    recipe = importlib.import_module(f"stages.{stage}").run
    try:
        outcome = recipe(Context(config, stage, folder, inputs, tracker, resume, ranks))
    except Stop:
        return
    finally:
        Engine.__init__ = initialize  # type: ignore[method-assign]
        Engine.backward = backward  # type: ignore[method-assign]
    weights = {"kept": packed[0], "weights": base_weight_sizes(engines[0])}
    (folder / f"rank{ranks.rank}.json").write_text(json.dumps(weights))
    if ranks.rank == 0:
        (folder / "manifest.json").write_text(json.dumps({"metrics": outcome.metrics}))


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    upstream, out, deepspeed, mode, *overrides = arguments
    ranks = init_distributed(DeepSpeed())
    for stage in ("ppo",) if mode == "ppo" else STAGES:
        run(stage, Path(upstream), Path(out), [f"deepspeed.config={deepspeed}", *overrides], mode, ranks)
