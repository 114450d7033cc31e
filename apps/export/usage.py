"""How to load an export: the part of its card that people copy, and Ollama's Modelfile."""

from __future__ import annotations

import json

from apps.export.card import base_name
from apps.trained_run import TrainedRun
from configs.schema import Rollout, Stage


def merged(run: TrainedRun, stage: Stage) -> str:
    """The card's lines on a merged model."""
    rollout = run.config.ppo.rollout
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
{_inputs(run)}
output = model.generate(**inputs)  # {_sampling(rollout)}: part of the policy
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

With vLLM: `vllm serve FOLDER`. It needs no bitsandbytes."""


def adapter(run: TrainedRun, stage: Stage) -> str:
    """The card's lines on a PEFT adapter: the base that it needs, in transformers and in vLLM."""
    base, rank = run.config.base_of(stage), run.config.adapter.r
    name = f"{run.config.name}-{stage}"
    quantization = {
        "nf4": """BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype="auto",
)""",
        "int8": "BitsAndBytesConfig(load_in_8bit=True)",
        "none": "None",
    }[base.quantization].replace('"auto"', f'"{_dtype(base.compute_dtype)}"')
    flags = "" if base.quantization == "none" else " --quantization bitsandbytes --load-format bitsandbytes"
    return f"""The adapter belongs to `{base_name(base)}`, quantized as `{base.quantization}`.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

quantization = {quantization}
base = AutoModelForCausalLM.from_pretrained(
    "{base_name(base)}", quantization_config=quantization, dtype="{_dtype(base.compute_dtype)}"
)
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

Sample with {_sampling(run.config.ppo.rollout)}. These are part of the policy.

With vLLM:

```sh
vllm serve {base_name(base)}{flags} \\
    --enable-lora --max-lora-rank {rank} --lora-modules {name}=FOLDER
```"""


def reward(run: TrainedRun, constant: float, ending: str) -> str:
    """The card's lines on a classifier that reads `ending` after an answer."""
    chat = run.config.data.chat
    text = (
        'tokenizer.apply_chat_template([{"role": "user", "content": prompt}, '
        '{"role": "assistant", "content": answer}], tokenize=False)'
        if chat
        else f"prompt + answer + {json.dumps(ending)}"
    )
    special = ", add_special_tokens=False" if chat else ""
    return f"""```python
from transformers import pipeline

classify = pipeline("text-classification", model="FOLDER")
tokenizer = classify.tokenizer
text = {text}
print(classify(text, function_to_apply="none"{special}))  # [{{"label": "score", "score": ...}}]
```

The score in training was this number plus {constant:.6g}. The constant cancels if two answers are compared.
With it, answers of the SFT policy have mean 0 and deviation 1.

`AutoModelForSequenceClassification.from_pretrained("FOLDER")` loads it. So do TRL and RewardBench."""


def gguf(run: TrainedRun, name: str) -> str:
    """The card's lines on a GGUF file."""
    return f"""With Ollama, in this folder:

```sh
ollama create {run.config.name} -f Modelfile
ollama run {run.config.name}
```

With llama.cpp: `llama-cli -m {name}`. In Python: `llama_cpp.Llama("{name}")`.

Sample with {_sampling(run.config.ppo.rollout)}. These are part of the policy."""


def modelfile(run: TrainedRun, name: str) -> str:
    """Ollama's Modelfile. Without a chat, the prompt is continued as it is."""
    rollout, lines = run.config.ppo.rollout, [f"FROM ./{name}"]
    if not run.config.data.chat:
        lines.append('TEMPLATE "{{ .Prompt }}"')
    lines += [f"PARAMETER temperature {rollout.temperature:g}", f"PARAMETER top_p {rollout.top_p:g}"]
    lines += [f"PARAMETER top_k {rollout.top_k or 0}", f"PARAMETER num_predict {rollout.max_new_tokens}"]
    lines.append("PARAMETER repeat_penalty 1")  # Ollama's own would change the policy
    return "\n".join(lines) + "\n"


def _inputs(run: TrainedRun) -> str:
    if run.config.data.chat:
        return """inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "..."}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""
    return 'inputs = tokenizer("...", return_tensors="pt")  # a text to continue: no chat template'


def _sampling(rollout: Rollout) -> str:
    top_k = f", top-k {rollout.top_k}" if rollout.top_k else ""
    return f"temperature {rollout.temperature:g}, top-p {rollout.top_p:g}{top_k}"


def _dtype(choice: str) -> str:
    return "bfloat16" if choice == "auto" else choice
