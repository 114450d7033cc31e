"""Estimated peak memory of each stage, beside the measured one.

python tests/benchmarks/memory_estimate.py [--case CASE ...]

Each stage takes one optimizer step in its own process, on sequences of the longest length that the experiment
allows. Its measured peak is that of its manifest: of the GPU's allocator if there is one, else the process's
largest resident size. Bases of random weights are made in a temporary folder. They never end a turn, so
responses have their longest length, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from configs.load import load_experiment  # noqa: E402
from configs.schema import STAGES, Stage  # noqa: E402
from launch.deepspeed_command import guess_accelerators  # noqa: E402
from pipeline.planning.base_shapes import find_base  # noqa: E402
from pipeline.planning.machine_memory import rank_here  # noqa: E402
from pipeline.planning.stage_memory import StageMemory, estimate  # noqa: E402
from tests.benchmarks.memory import run_command, write_experiment  # noqa: E402
from tests.benchmarks.peers import importing_first  # noqa: E402

GIB = 2**30
DEMO = "smollm2-135m-instruct"
# Llamas: hidden size, MLP, layers, heads, key heads, vocabulary.
RANDOM = {
    "random-0.5b": (896, 4864, 24, 14, 2, 151_936),
    "random-1.2b": (2048, 8192, 16, 32, 8, 128_256),
}


class Case(NamedTuple):
    """A base, its batch shape, and what else changes its memory."""

    model: str
    length: int
    micro_batch_size: int
    compute_dtype: str = "float32"
    quantization: str = "nf4"
    checkpointing: bool = False


CASES = {
    "demo-short": Case(DEMO, 128, 4),
    "demo-long": Case(DEMO, 256, 8),
    "demo-bf16": Case(DEMO, 128, 8, "bfloat16"),
    "demo-checkpointing": Case(DEMO, 256, 8, checkpointing=True),
    "0.5b": Case("random-0.5b", 64, 4),
    "1.2b": Case("random-1.2b", 64, 2),
    "1.2b-bf16": Case("random-1.2b", 64, 2, "bfloat16"),
}


def main() -> int:
    names = parse().case or list(CASES)
    print("| case | stage | estimate | measured | estimate / measured | largest part |")
    print("|---|---|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory(prefix="tristage-memory-") as folder:
            for row in compare(CASES[name], Path(folder)):
                print(f"| {name} | {row} |", flush=True)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--case", nargs="*", choices=list(CASES), help="default: all, one after another")
    return parser.parse_args()


def compare(case: Case, folder: Path) -> Iterator[str]:
    """Run the three stages of a case, and yield a row of the table for each."""
    file = experiment(case, folder)
    config = load_experiment(file)
    shape = find_base(config.base).shape
    assert shape is not None
    rank = rank_here(1, guess_accelerators())
    for stage in STAGES:
        expected = estimate(config, stage, {"base": shape}, rank)
        measured = run_stage(stage, file, folder)
        yield row(expected, measured, gpu=rank.gpu)


def experiment(case: Case, folder: Path) -> Path:
    """The YAML of a case, in `folder`, with its data and its base."""
    model = case.model
    if model in RANDOM:
        make = [sys.executable, __file__, "--make", model, str(folder / model)]
        run_command(make)
        model = str(folder / model)
    sizes = {"length": case.length, "micro_batch_size": case.micro_batch_size, "steps": 1}
    file = write_experiment(folder, argparse.Namespace(model=model, quantization=case.quantization, **sizes))
    tree: dict[str, Any] = json.loads(file.read_text())
    tree["base"] |= {"compute_dtype": case.compute_dtype, "gradient_checkpointing": case.checkpointing}
    file.write_text(json.dumps(tree, indent=1))
    return file


def run_stage(stage: Stage, file: Path, folder: Path) -> int:
    """Peak bytes of a stage that runs in a process of its own."""
    options = ["--stage", stage, "--config", str(file), "--run-dir", str(folder / "run")]
    command = [sys.executable, str(ROOT / "launch" / "run_stage.py"), *options]
    done = subprocess.run(command, cwd=ROOT, env=importing_first(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{stage} ended with status {done.returncode}\n{done.stdout}{done.stderr}")
    manifest = json.loads((folder / "run" / stage / "manifest.json").read_text())
    return int(manifest["metrics"]["peak_memory_bytes"])


def row(expected: StageMemory, measured: int, *, gpu: bool) -> str:
    # torch counts what its allocator gave out: neither the CUDA context, nor the memory between tensors.
    parts = expected.phases[expected.peak_phase]
    peak = expected.peak - (parts["libraries"] + parts.get("allocator", 0) if gpu else 0)
    part, size = expected.largest_parts(1)[0]
    return (
        f"{expected.stage} | {peak / GIB:.2f} GiB | {measured / GIB:.2f} GiB | {peak / measured:.2f} | "
        f"{part} {size / GIB:.2f} GiB, while {expected.peak_phase}"
    )


def make_base(name: str, folder: str) -> None:
    """Write a Llama of random weights in bf16, with the tokenizer of the demo's base."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from stages.models.demo_models import embedded_model

    hidden, intermediate, layers, heads, key_heads, vocabulary = RANDOM[name]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded_model(DEMO)).save_pretrained(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:  # in a process of its own, so that its memory is not this one's
        make_base(*sys.argv[2:])
    else:
        sys.exit(main())
