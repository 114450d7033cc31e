"""The memory that a base needs at the default settings, as `tristage plan` estimates it."""

from __future__ import annotations

from configs.schema import STAGES, Experiment
from docs.generators.markdown import code, table
from pipeline.planning.base_shapes import BaseShape, shape_of
from pipeline.planning.known_bases import KNOWN
from pipeline.planning.stage_memory import Rank, estimate
from pipeline.terminal.format import show_number
from pipeline.terminal.memory_table import gib

MODELS = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-3B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen3-8B",
)
LARGEST_ON_CPU = 2 * 10**9  # parameters
GIB = 2**30
PRECISION = f"A GPU counts in bf16, a CPU in fp32. A CPU is too slow above {LARGEST_ON_CPU // 10**9}B."


def hardware(kind: str) -> str:
    """The largest stage of each base in a `short` table, or each of its stages in a `full` one."""
    return {"short": _short, "full": _full}[kind]()


def _short() -> str:
    head = ("base", "GPU, 4 bits", "and `gradient_checkpointing`", "GPU, not quantized", "CPU, 4 bits")
    rows = [
        [
            _name(model),
            _largest(model, "nf4", gpu=True),
            _largest(model, "nf4", gpu=True, checkpointing=True),
            _largest(model, "none", gpu=True),
            _largest(model, "nf4", gpu=False),
        ]
        for model in MODELS
    ]
    about = f"Estimated GiB of the largest stage, at the defaults: {_settings()}. {PRECISION}"
    less = "A lower `micro_batch_size` takes less."
    return f"{about} {less}\n\n{table(head, rows)}"


def _full() -> str:
    rows = []
    for model in MODELS:
        for gpu in (True, False):
            for quantization in ("nf4", "none"):
                if gpu or _shape(model).parameters <= LARGEST_ON_CPU:
                    peaks = map(gib, _peaks(model, quantization, gpu=gpu))
                    rows.append([code(model), "GPU" if gpu else "CPU", code(quantization), *peaks])
    rollout = _experiment(MODELS[0], "nf4").ppo.rollout
    sampled = f"{rollout.batch_size} answers of {rollout.max_new_tokens} new tokens, sampled together"
    head = ("base", "on", "quantization", "SFT", "RM", "PPO")
    return f"At the defaults: {_settings()}, {sampled}. {PRECISION}\n\n{table(head, rows)}"


def _settings() -> str:
    """What the estimates of all stages are for."""
    config = _experiment(MODELS[0], "nf4")
    sequences = f"{config.ppo.micro_batch_size} sequences of {config.data.max_length:,} tokens"
    return f"rank {config.adapter.r}, {sequences} in one forward"


def _largest(model: str, quantization: str, *, gpu: bool, checkpointing: bool = False) -> str:
    if not gpu and _shape(model).parameters > LARGEST_ON_CPU:
        return "–"
    return show_number(max(_peaks(model, quantization, gpu=gpu, checkpointing=checkpointing)) / GIB)


def _peaks(model: str, quantization: str, *, gpu: bool, checkpointing: bool = False) -> list[int]:
    """The peak of each stage in bytes."""
    config, rank = _experiment(model, quantization, checkpointing), Rank(gpu=gpu, bf16=gpu)
    return [estimate(config, stage, {"base": _shape(model)}, rank).peak for stage in STAGES]


def _shape(model: str) -> BaseShape:
    shape = shape_of(KNOWN[model])
    assert shape is not None
    return shape


def _name(model: str) -> str:
    """`Qwen2.5-1.5B` of `Qwen/Qwen2.5-1.5B-Instruct`."""
    return model.partition("/")[2].removesuffix("-Instruct")


def _experiment(model: str, quantization: str, checkpointing: bool = False) -> Experiment:
    """An experiment that sets nothing else."""
    return Experiment.model_validate(
        {
            "name": "hardware",
            "base": {
                "model": model,
                "quantization": quantization,
                "gradient_checkpointing": checkpointing,
            },
            "data": {stage: {"path": f"{stage}.jsonl"} for stage in STAGES},
        }
    )
