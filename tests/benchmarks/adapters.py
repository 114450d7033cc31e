"""Ways to fine-tune, compared on the demo's SFT: what trains, how long a step takes, what it learns and says.

python tests/benchmarks/adapters.py FOLDER --steps 24

Each row is one SFT stage on SmolLM2-135M: as many steps on the same examples in the same order. Then PEFT
itself, without this program's roles, loads the result over the base. The held-out loss and the greedy answers
are PEFT's. A step's time is its CPU seconds, the median of all steps but the first. Learning rates are one
choice for each method, from its paper or PEFT's examples, and not tuned.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors import safe_open  # noqa: E402

from configs.load import load_experiment  # noqa: E402
from data.batches import tokenize  # noqa: E402
from data.examples import StageData, read_examples  # noqa: E402
from pipeline.terminal.summary import metric_with_interval  # noqa: E402
from stages.maths.statistics import mean_with_interval  # noqa: E402
from stages.models.base import load_base, load_tokenizer  # noqa: E402
from tests.support.runs import ROOT  # noqa: E402

CONFIG = ROOT / "configs" / "demo.yaml"
GREEDY_TOKENS, ANSWERS = 24, 3
UNQUANTIZED = "base.quantization=none"
COMMON = ("sft.packing=false", "sft.batch_size=12", "sft.micro_batch_size=12", "sft.eval_steps=null")
MIB = 2**20


@dataclass(frozen=True)
class Way:
    """One way to fine-tune: its name in the table, and what it changes of the demo."""

    name: str
    overrides: tuple[str, ...]


WAYS = (
    Way("LoRA", ()),
    Way("LoRA, LoftQ start", ("adapter.init=loftq",)),
    Way("rsLoRA", ("adapter.rslora=true",)),
    Way("LoRA+", ("sft.lora_plus_ratio=16", "sft.learning_rate=1e-4")),
    Way("DoRA", ("adapter.dora=true",)),
    Way("DoRA, LoftQ start", ("adapter.dora=true", "adapter.init=loftq")),
    Way("AdaLoRA", ("sft.method=adalora", "sft.learning_rate=2e-3")),
    Way("IA3", ("sft.method=ia3", "sft.learning_rate=5e-3")),
    Way("BitFit", ("sft.method=bitfit", "sft.learning_rate=2e-3")),
    Way("prefix tuning", ("sft.method=prefix", "sft.learning_rate=1e-2")),
    Way("prompt tuning", ("sft.method=prompt", "sft.learning_rate=1e-2")),
    Way("p-tuning", ("sft.method=p_tuning", "sft.learning_rate=1e-3")),
    Way("LoRA, base not quantized", (UNQUANTIZED,)),
    Way("random subset, base not quantized", ("sft.method=random_subset", UNQUANTIZED)),
)


def train(way: Way, steps: int, run_dir: Path) -> None:
    """Stage SFT in a process of its own, whose peak memory the manifest has."""
    words = ["--stage", "sft", "--config", str(CONFIG), "--run-dir", str(run_dir), f"sft.max_steps={steps}"]
    script = str(ROOT / "tests" / "support" / "timed_stage.py")
    subprocess.run(
        [sys.executable, script, *words, *COMMON, *way.overrides, "tracking.wandb=disabled"], check=True
    )


@torch.no_grad()
def measured(way: Way, run_dir: Path) -> dict[str, Any]:
    """The figures of a finished stage; the loss and the answers by PEFT alone."""
    config = load_experiment(CONFIG, [*COMMON, *way.overrides])
    manifest = json.loads((run_dir / "sft" / "manifest.json").read_text())["metrics"]
    tokenizer = load_tokenizer(config.base)
    source = StageData(config, "sft", lambda _: None)
    held_out = read_examples(source, "demonstrations", tokenize.demonstrations, tokenizer).held_out
    base = load_base(config.base, torch.device("cpu"))
    model = PeftModel.from_pretrained(base, str(run_dir / "sft" / "adapter")).eval()
    losses = [_loss(model, one) for one in held_out]
    answers = [_answer(model, tokenizer, one.prompt_ids) for one in held_out[:ANSWERS]]
    return {
        "trained": _trained(run_dir),
        "of base": base.num_parameters(),
        "seconds": median(seconds for seconds, _ in json.loads((run_dir / "steps.json").read_text())[1:]),
        "peak": manifest["peak_memory_bytes"] / MIB,
        "loss": metric_with_interval(mean_with_interval("loss", losses), "loss"),
        "n": len(losses),
        "rate": config.sft.learning_rate,
        "answers": answers,
        "prompts": [tokenizer.decode(one.prompt_ids) for one in held_out[:ANSWERS]],
    }


def _trained(run_dir: Path) -> int:
    """Parameters in the newest checkpoint that have Adam's moments: those that trained."""
    file = sorted((run_dir / "sft" / "checkpoints").glob("step-*"))[-1] / "tensors.safetensors"
    with safe_open(file, "pt") as tensors:
        names = [name for name in tensors.keys() if "exp_avg_sq/" in name]  # noqa: SIM118 - no mapping
        return sum(tensors.get_tensor(name).numel() for name in names)


def _loss(model: PeftModel, example: tokenize.Demonstration) -> float:
    """Mean negative log-likelihood of a demonstration's answer, in nats per token."""
    ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    count = len(example.completion_ids)
    logprobs = logits[0, -count - 1 : -1].float().log_softmax(-1)
    return -float(logprobs.gather(1, ids[0, -count:, None]).mean())


def _answer(model: PeftModel, tokenizer: Any, prompt: list[int]) -> str:
    ids = torch.tensor([prompt])
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": GREEDY_TOKENS}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    output = model.generate(input_ids=ids, **ends, **options)
    start = len(prompt) if output.shape[1] > len(prompt) else 0
    return str(tokenizer.decode(output[0, start:], skip_special_tokens=True)).strip()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--only", action="append", help="name of a row; may be repeated")
    arguments = parser.parse_args()
    wanted = arguments.only or [way.name for way in WAYS]
    results: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        run_dir = arguments.folder.resolve() / way.name.replace(" ", "-").replace(",", "")
        file = run_dir / "measured.json"
        if way.name in wanted and not file.exists():
            train(way, arguments.steps, run_dir)
            file.write_text(json.dumps(measured(way, run_dir)))
        if file.exists():
            results[way.name] = json.loads(file.read_text())
    show(results)


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the table and the answers."""
    lora = results["LoRA"]["seconds"]
    print("| what | trained, % | time per step, LoRA = 1 | peak, MiB | held-out loss [95 %] | rate |")
    for name, row in results.items():
        share = 100 * row["trained"] / row["of base"]
        print(
            f"| {name} | {share:.3g} | {row['seconds'] / lora:.2f} | {row['peak']:.0f} | "
            f"{row['loss']} | {row['rate']:g} |"
        )
    first = next(iter(results.values()))
    for number, prompt in enumerate(first["prompts"]):
        print(f"\n{prompt}")
        for name, row in results.items():
            print(f"  {name}: {row['answers'][number]}")
    print(f"\nn = {first['n']} held-out demonstrations")


if __name__ == "__main__":
    main()
