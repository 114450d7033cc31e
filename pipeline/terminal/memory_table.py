"""The table of memory, disk and download of `tristage plan`, and its warnings."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.schema import Experiment
from pipeline.planning.base_shapes import FoundBase, find_base
from pipeline.planning.plan import StagePlan
from pipeline.planning.request import Request
from pipeline.planning.stage_memory import Rank, StageMemory, estimate

GIB = 2**30
HOPELESS = 4  # an estimate that is so many times what is free leaves no doubt
REMEDIES = {
    "activations": "lower {stage}.micro_batch_size",
    "allocator": "lower {stage}.micro_batch_size",
    "logits": "lower {stage}.micro_batch_size",
    "base": "set base.quantization to nf4, or shard the base with configs/deepspeed/zero3.json",
    "merged copy": "set {rollout}.engine to hf, which is slower",
    "merging": "set {rollout}.engine to hf, which is slower",
    "KV cache": "lower {rollout}.batch_size or {rollout}.max_new_tokens",
    "one step": "lower {rollout}.batch_size",
    "vLLM": "lower {rollout}.vllm.gpu_memory_utilization",
    "adapters": "lower adapter.r",
    "gradients and Adam": "lower adapter.r",
    "libraries": "use a machine with more memory",
}


def print_memory(console: Console, request: Request, plans: Sequence[StagePlan], rank: Rank) -> None:
    """Print what each stage that will run or resume needs, and a warning for what is not there."""
    stages = [plan.stage for plan in plans if plan.starts]
    bases = {base.key: find_base(base) for stage in stages for base in request.config.bases(stage)}
    shapes = {key: found.shape for key, found in bases.items() if found.shape is not None}
    estimates = [
        estimate(request.config, stage, shapes, rank)
        for stage in stages
        if all(base.key in shapes for base in request.config.bases(stage))
    ]
    if estimates:
        console.print(_table(estimates, rank))
    for line in _downloads(request.config, bases):
        console.print(Text(line), soft_wrap=True)
    unseen = _unseen(request.config, bases)
    for line in (
        *unseen,
        *_memory_warnings(request.config, estimates, rank),
        *_disk_warnings(estimates, request.run.path),
    ):
        console.print(Text(line, style="yellow"), soft_wrap=True)


def _table(estimates: Sequence[StageMemory], rank: Rank) -> Table:
    kind = "GPU memory" if rank.gpu else "RAM"
    free = "" if rank.available is None else f"; {gib(rank.available)} of {kind} are free"
    title = f"estimated memory of a rank{free}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("stage", "peak", "while", "largest parts (GiB)", "disk"):
        table.add_column(heading, justify="right" if heading in ("peak", "disk") else "left")
    for one in estimates:
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in one.largest_parts(2))
        table.add_row(one.stage, gib(one.peak), one.peak_phase, parts, gib(one.disk))
    return table


def gib(size: float) -> str:
    """Bytes in GiB, with three digits."""
    number = size / GIB
    return (
        f"{number:.0f} GiB" if number >= 100 else f"{number:.1f} GiB" if number >= 10 else f"{number:.2f} GiB"
    )


def _downloads(config: Experiment, bases: dict[str, FoundBase]) -> Iterator[str]:
    models = {"base": config.base.model} | ({"rm.base": config.rm.base.model} if config.rm.base else {})
    for key, found in bases.items():
        if found.download:
            yield f"download: {gib(found.download)} of {models[key]}"
        if found.shape is None:
            yield f"no estimate of memory for {key}: {found.why}"


def _unseen(config: Experiment, bases: dict[str, FoundBase]) -> Iterator[str]:
    """A warning for each base that could not be checked: the run ends if it is still not there."""
    for base in (config.base, config.rm.base):
        if base is not None and base.key in bases and bases[base.key].unseen:
            yield (
                f"warning: {base.key}.model: {base.model} is not on this machine, and {bases[base.key].why}. "
                "The run needs it, and nothing of it is checked yet."
            )


def _memory_warnings(config: Experiment, estimates: Sequence[StageMemory], rank: Rank) -> Iterator[str]:
    kind = "GPU memory" if rank.gpu else "RAM"
    for one in (each.needed for each in estimates):
        if rank.available is None or one.peak <= rank.available:
            continue
        part, _ = one.largest_parts(1)[0]
        rollout, _ = config.rollouts.get(one.stage, ("", None))
        remedy = REMEDIES[part].format(stage=one.stage, rollout=rollout)
        recomputing = {base.key: base.gradient_checkpointing for base in config.bases(one.stage)}
        if part in ("activations", "allocator") and not recomputing[one.largest_base]:
            remedy += f", or set {one.largest_base}.gradient_checkpointing to true"
        need, have = gib(one.peak), gib(rank.available)
        may = "will almost certainly" if one.peak > HOPELESS * rank.available else "may"
        yield (
            f"warning: stage {one.stage} {may} run out of memory: it takes about {need}, and a rank can have "
            f"{have} of {kind}. Its largest part is {part}: {remedy}."
        )


def _disk_warnings(estimates: Sequence[StageMemory], run: Path) -> Iterator[str]:
    folder = next((path for path in (run, *run.parents) if path.exists()), Path("/"))
    need, free = sum(one.disk for one in estimates), shutil.disk_usage(folder).free
    if need > free:
        yield f"warning: the stages write about {gib(need)}, and {folder} has {gib(free)}. Free some space."
