"""Prints the hardware table of the docs: python -m pipeline.terminal.hardware_table

Every cell is an estimate for the settings in the line above the table. docs/reference/memory.md says how far
estimates are from measured peaks.
"""

from __future__ import annotations

from configs.schema import STAGES, Experiment
from pipeline.planning.base_shapes import shape_of
from pipeline.planning.known_bases import KNOWN
from pipeline.planning.stage_memory import Rank, estimate
from pipeline.processes.streams import say
from pipeline.terminal.memory_table import gib

MODELS = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-3B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen3-8B",
)
LARGEST_ON_CPU = 2 * 10**9  # parameters; a CPU would take days for more
SIZES = {"max_length": 512, "max_prompt_length": 256}
MICRO_BATCH, NEW_TOKENS, ROLLOUT_BATCH = 4, 256, 32
SETTINGS = (
    f"Adapters of rank 16; {MICRO_BATCH} sequences of {SIZES['max_length']} tokens in one forward, "
    f"{ROLLOUT_BATCH} in one rollout of {NEW_TOKENS} new tokens; no gradient checkpointing; bf16 on a GPU, "
    "fp32 on a CPU."
)


def main() -> None:
    say(f"{SETTINGS} All cells are estimates.\n")
    say("| base | parameters | on | quantization | SFT | RM | PPO |\n|---|---|---|---|---|---|---|")
    for model in MODELS:
        for gpu in (True, False):
            for quantization in ("nf4", "none"):
                if row := _row(model, quantization, gpu=gpu):
                    say(row)


def _row(model: str, quantization: str, *, gpu: bool) -> str | None:
    shape = shape_of(KNOWN[model])
    assert shape is not None
    if not gpu and shape.parameters > LARGEST_ON_CPU:
        return None
    config = _experiment(model, quantization)
    rank = Rank(gpu=gpu, bf16=gpu)
    peaks = [gib(estimate(config, stage, {"base": shape}, rank).peak) for stage in STAGES]
    size = shape.parameters / 1e9
    cells = [model, f"{size:.2g}B", "GPU" if gpu else "CPU", quantization, *peaks]
    return f"| {' | '.join(cells)} |"


def _experiment(model: str, quantization: str) -> Experiment:
    """`SETTINGS` on a base."""
    rollout = {"max_new_tokens": NEW_TOKENS, "batch_size": ROLLOUT_BATCH}
    training = {"micro_batch_size": MICRO_BATCH}
    dtype = {"compute_dtype": "auto"}
    return Experiment.model_validate(
        {
            "name": "hardware",
            "base": {"model": model, "quantization": quantization} | dtype,
            "data": {stage: {"path": f"{stage}.jsonl"} for stage in STAGES} | SIZES,
            "sft": training,
            "rm": training,
            "ppo": training | {"rollout": rollout},
        }
    )


if __name__ == "__main__":
    main()
