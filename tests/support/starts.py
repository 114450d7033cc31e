"""Adapters over the tiny model that other programs wrote, for stages that start from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from tests.support.runs import ROOT

ATTENTION = ("q_proj", "v_proj")  # as in TRL's examples


def lora(task: str, **changes: Any) -> LoraConfig:
    """The shape of the tiny experiment's adapter, on attention alone."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": list(ATTENTION), "task_type": task}
    return LoraConfig(**options | changes)


def write_policy(base: Path, folder: Path, seed: int = 5) -> Path:
    """An adapter by PEFT alone, whose weights do something."""
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lora("CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def train_with_trl(base: Path, tokenizer: Any, folder: Path, steps: int = 4) -> Path:
    """A reward model by TRL's RewardTrainer, over all linear layers, after a few steps."""
    torch.manual_seed(7)
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    rows = [json.loads(line) for line in (ROOT / "data/samples/tiny.jsonl").read_text().splitlines()]
    pairs = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["completions"][0]}],
            "rejected": [{"role": "assistant", "content": row["completions"][-1]}],
        }
        for row in rows
    ]
    arguments = RewardConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = RewardTrainer(
        model=classifier,
        args=arguments,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=lora("SEQ_CLS", target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model(str(folder))
    return folder
