"""The merged export in vLLM: no bitsandbytes, no adapter, and the same greedy texts as in transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("vllm", reason="make test-vllm installs it")

from apps.export.export import write_export
from apps.export.formats import Export
from apps.trained_run import open_run
from tests.support.runs import environment, run_stage

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="checks the CPU build of vLLM")
PROMPTS = ["The sky is", "Once upon a time", "How do I boil an egg?", "a"]
NEW = 12
GENERATE = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=128, gpu_memory_utilization=0.2)
    greedy = SamplingParams(temperature=0, max_tokens=int(sys.argv[3]), ignore_eos=True)
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])]
    answers = llm.generate(prompts, greedy, use_tqdm=False)
    print("ANSWERS", json.dumps([list(answer.outputs[0].token_ids) for answer in answers]))
"""


def test_vllm_says_what_the_merged_model_says(wide_folder: Path, tmp_path: Path) -> None:
    run_stage("sft", tmp_path / "run", f"base.model={wide_folder}", "sft.max_steps=2")
    order = Export(open_run(tmp_path / "run"), "sft", torch.float32, say=lambda line: None)
    folder = write_export(order, "merged", tmp_path / "merged", overwrite=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    script = tmp_path / "generate.py"  # a process of its own: vLLM changes its process
    script.write_text(GENERATE)
    command = [sys.executable, str(script), str(folder), json.dumps(prompts), str(NEW)]
    variables = environment() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("ANSWERS "))
    for prompt, said in zip(prompts, json.loads(line.removeprefix("ANSWERS ")), strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
        )
        assert said == expected[0, len(prompt) :].tolist()
