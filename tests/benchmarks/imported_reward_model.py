"""A reward model by TRL's RewardTrainer, used as it is by `rm.from`: is it as accurate here as there?

python tests/benchmarks/imported_reward_model.py FOLDER --steps 22

The base is SmolLM2-135M-Instruct with its chat template, which writes a line break after the end of a turn. A
pair is two answers of the demo's demonstrations under another prompt, the warmer one first.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402
from trl import RewardConfig, RewardTrainer  # noqa: E402

from pipeline.terminal.summary import metric_with_interval  # noqa: E402
from stages.feedback.labellers import LABELLERS  # noqa: E402
from stages.models.demo_models import embedded_model  # noqa: E402
from tests.support.runs import ROOT, metrics  # noqa: E402

BASE, SAMPLES = "smollm2-135m-instruct", ROOT / "data" / "samples"
HELD_OUT = 100
CLEAR = 0.3  # difference of warmth between the answers of a pair
Row = dict[str, Any]


def pairs() -> list[Row]:
    """Prompts with a warmer and a colder answer."""
    rows = [json.loads(line) for line in (SAMPLES / "demo-sft.jsonl").read_text().splitlines()]
    answers = [row["completion"].strip() for row in rows]
    warmth = [one.score for one in LABELLERS["warmth"]([row["prompt"] for row in rows], answers)]
    noise = random.Random(0)

    def pair() -> list[str]:
        while True:
            one, other = sorted(noise.sample(range(len(rows)), 2), key=lambda place: -warmth[place])
            if warmth[one] - warmth[other] > CLEAR:
                return [answers[one], answers[other]]

    return [{"prompt": row["prompt"], "completions": pair()} for row in rows]


def train(rows: list[Row], held_out: list[Row], folder: Path, steps: int) -> dict[str, float]:
    """Train with TRL, save into `folder`, and return TRL's own figures on `held_out`."""
    torch.manual_seed(0)
    base = embedded_model(BASE)
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32),
        args=RewardConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=10,
            learning_rate=5e-4,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([_turns(row) for row in rows]),
        eval_dataset=Dataset.from_list([_turns(row) for row in held_out]),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS"),
    )
    trainer.train()
    trainer.save_model(str(folder))
    figures = trainer.evaluate()
    return {name: float(figures[f"eval_{name}"]) for name in ("accuracy", "margin", "loss")}


def _turns(row: Row) -> Row:
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in row["completions"])
    return {"prompt": [{"role": "user", "content": row["prompt"]}], "chosen": chosen, "rejected": rejected}


def used_as_it_is(folder: Path, reward_model: Path, quantization: str) -> dict[str, float]:
    """The final figures of stage rm with `rm.from` and `rm.max_steps: 0`."""
    run_dir = folder / quantization
    overrides = (
        *(f"base={{model: {BASE}, quantization: {quantization}, compute_dtype: float32}}", "data.chat=true"),
        *("data.max_length=128", "data.max_prompt_length=96", "adapter={r: 16, alpha: 32}"),
        *(f"data.sft={{path: {SAMPLES}/demo-sft.jsonl, limit: 32, held_out: 8}}", "sft.max_steps=0"),
        *("sft.packing=false", f"data.rm={{path: {folder}/held-out.jsonl, held_out: {HELD_OUT - 1}}}"),
        *("rm.batch_size=1", "rm.normalization_prompts=16", "rm.rankings.labeller=file"),
        *(f"rm.from={reward_model}", "rm.max_steps=0", "tracking.wandb=disabled"),
    )
    for stage in ("sft", "rm"):
        words = ["--stage", stage, "--config", str(ROOT / "configs/demo.yaml"), "--run-dir", str(run_dir)]
        script = str(ROOT / "launch" / "run_stage.py")
        subprocess.run([sys.executable, script, *words, *overrides], check=True)
    return metrics(run_dir / "rm" / "manifest.json")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=22)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = pairs()
    (folder / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[-HELD_OUT:]))
    print("TRL:", train(rows[:-HELD_OUT], rows[-HELD_OUT:], folder / "trl", arguments.steps))
    for quantization in ("none", "nf4"):
        figures = used_as_it_is(folder, folder / "trl", quantization)
        for name in ("accuracy", "margin", "eval_loss"):
            print(f"rm.from, {quantization}, {name}: {metric_with_interval(figures, name)}")


if __name__ == "__main__":
    main()
