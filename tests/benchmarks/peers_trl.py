"""TRL's side of each comparison.

Functions import the libraries because the two sides need different ones.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from typing import Any

from tests.benchmarks.peers_workload import ROOT, Seconds, prompt, sequences


def trl_options(arguments: argparse.Namespace, **options: Any) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(ROOT / "runs" / "benchmarks" / "out"),
        "use_cpu": not gpu,
        "bf16": gpu,
        "per_device_train_batch_size": arguments.micro,
        "gradient_accumulation_steps": arguments.batch // arguments.micro,
        "gradient_checkpointing": False,
        "learning_rate": 1e-4,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }


def trl_model(arguments: argparse.Namespace, kind: str, nf4: bool, **options: Any) -> Any:
    import torch
    import transformers

    gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if gpu else torch.float32
    if nf4:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    automatic = getattr(transformers, f"AutoModelFor{kind}")
    device_map = {"": "cuda" if gpu else "cpu"}
    return automatic.from_pretrained(arguments.model, dtype=dtype, device_map=device_map, **options)


def lora(task: str | None) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task)


def trl_timed(trainer: Any) -> Seconds:
    """Seconds from the end of one step of `train` to the end of the next."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    return [after - before for before, after in pairwise(ends)]


def with_fp32_adapter(trainer: Any) -> Any:
    """The trainer with its adapter in fp32, as here. TRL rounds an adapter over a quantized base to bf16.

    CPUs without bf16 units would be many times slower in bf16. On a GPU, bf16 halves the adapter and its
    moments.
    """
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def trl_tokenizer(arguments: argparse.Namespace) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(arguments.model)


def sft_trl(arguments: argparse.Namespace) -> Seconds:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = []
    for i, response in enumerate(sequences(arguments, arguments.batch)):
        ids = prompt(arguments, i)
        rows.append({"input_ids": ids + response, "completion_mask": [0] * len(ids) + [1] * len(response)})
    options = trl_options(arguments, max_steps=1 + arguments.steps, max_length=4096)
    trainer = SFTTrainer(
        model=trl_model(arguments, "CausalLM", nf4=True),
        args=SFTConfig(completion_only_loss=True, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=trl_tokenizer(arguments),
        peft_config=lora("CAUSAL_LM"),
    )
    return trl_timed(with_fp32_adapter(trainer))


def rm_trl(arguments: argparse.Namespace) -> Seconds:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    completion_ids = list(sequences(arguments, arguments.batch))
    rows = [
        {
            "chosen_ids": prompt(arguments, i) + completion_ids[2 * i],
            "rejected_ids": prompt(arguments, i) + completion_ids[2 * i + 1],
        }
        for i in range(arguments.batch // 2)
    ]
    micro_batch = {"per_device_train_batch_size": arguments.micro // 2}  # pairs
    options = trl_options(arguments, max_steps=1 + arguments.steps, max_length=4096, **micro_batch)
    trainer = RewardTrainer(
        model=trl_model(arguments, "SequenceClassification", nf4=True, num_labels=1),
        args=RewardConfig(**options),
        train_dataset=Dataset.from_list(rows),
        processing_class=trl_tokenizer(arguments),
        peft_config=lora("SEQ_CLS"),
    )
    return trl_timed(with_fp32_adapter(trainer))


def ppo_trl(arguments: argparse.Namespace) -> Seconds:
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rows = [{"input_ids": prompt(arguments, i)} for i in range(arguments.batch)]
    reward, value = (
        trl_model(arguments, "SequenceClassification", nf4=False, num_labels=1) for _ in range(2)
    )
    return trl_timed(
        PPOTrainer(
            args=PPOConfig(
                **trl_options(arguments),
                total_episodes=arguments.batch * (1 + arguments.steps),
                num_ppo_epochs=1,
                num_mini_batches=1,
                response_length=arguments.response,
                local_rollout_forward_batch_size=arguments.batch,
                num_sample_generations=0,
                temperature=1.0,
            ),
            processing_class=trl_tokenizer(arguments),
            model=trl_model(arguments, "CausalLM", nf4=False),
            ref_model=None,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows),
            peft_config=lora("CAUSAL_LM"),
        )
    )
