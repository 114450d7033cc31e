"""How to load an export: the part of its card that people copy."""

from __future__ import annotations

import json

from apps.export.card import base_name
from apps.trained_run import TrainedRun
from configs.schema import EMBEDDINGS, VLLM_LORA_RANKS, Adapter, Base, Rollout, Stage, vllm_lora_rank
from stages.models.demo_models import EMBEDDED

PLACE = "BASE_FOLDER"


def merged(run: TrainedRun) -> str:
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
    """The card's lines on the PEFT adapter of a policy: its base, in transformers and in vLLM."""
    base, dtype = run.config.base_of(stage), dtype_name(run, stage)
    quantization = {
        "nf4": """BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype="DTYPE",
)""",
        "int8": "BitsAndBytesConfig(load_in_8bit=True)",
        "none": "None",
    }[base.quantization].replace("DTYPE", dtype)
    revision = f', revision="{base.revision}"' if base.revision else ""
    return f"""{_base_of_adapter(base)}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

quantization = {quantization}
base = AutoModelForCausalLM.from_pretrained(
    "{_loadable(base)}"{revision}, quantization_config=quantization, dtype="{dtype}"
)
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

Sample with {_sampling(run.config.ppo.rollout)}. These are part of the policy.

{_vllm(base, run.config.adapter, f"{run.config.name}-{stage}")}"""


def _vllm(base: Base, lora: Adapter, name: str) -> str:
    """The card's lines on the adapter in vLLM, or why vLLM would not compute what was trained."""
    refused = {
        "an int8 base": base.quantization == "int8",
        "a base with its own code": base.trust_remote_code,
        "an adapter on embeddings": any(part.endswith(EMBEDDINGS) for part in lora.target_modules),
        "DoRA": lora.dora,
        f"an adapter of rank {lora.r}": lora.r > VLLM_LORA_RANKS[-1],
    }
    if reasons := [what for what, is_so in refused.items() if is_so]:
        return f"vLLM does not take {' or '.join(reasons)}. For vLLM, export with `--format merged`."
    plugin, flags = "", f" --revision {base.revision}" if base.revision else ""
    if base.quantization == "nf4":
        plugin = " and `vllm-bnb-plugin`, which vLLM 0.32 needs for NF4"
        flags += " --quantization bitsandbytes --load-format bitsandbytes"
    return f"""With vLLM{plugin}:

```sh
vllm serve {_loadable(base)}{flags} \\
    --enable-lora --max-lora-rank {vllm_lora_rank(lora.r)} --lora-modules {name}=FOLDER
```"""


def reward_adapter(run: TrainedRun, pooling: str, members: int) -> str:
    """The card's lines on the adapter of a reward model: its head, and what reads it."""
    base = run.config.base_of("rm")
    where = "at the token that ends the answer" if pooling == "last" else "of each token of the answer"
    mean = "" if pooling == "last" else " The score is the mean over these tokens."
    several = (
        ""
        if members == 1
        else f" It is an ensemble: `member-2` to `member-{members}` hold an adapter and a head each, and the "
        "score is the mean of all members."
    )
    flag = "" if base.quantization == "nf4" else f" --quantization {base.quantization}"
    return f"""{_base_of_adapter(base)}

It is a LoRA adapter with a scalar head in `head.safetensors`: score = weight · h + bias. h is the base's last
hidden state, after the final norm, {where}.{mean}{several}

```sh
tristage evaluate rm --rm FOLDER{flag} --data preferences.jsonl
```

scores answers with it, if `base_model_name_or_path` in `adapter_config.json` is the base's id or folder.
Stage rm of another run starts from it with `rm.from`."""


def _base_of_adapter(base: Base) -> str:
    """Which base an adapter belongs to, in words."""
    belongs = f"The adapter belongs to `{base_name(base)}`, quantized as `{base.quantization}`."
    if base.model not in EMBEDDED:
        return belongs
    return (
        f"{belongs} That is a model inside Tristage, and not on a hub. In a checkout of Tristage, `python -m "
        f"stages.models.demo_models {base.model}` prints its folder, which {PLACE} stands for. Of a policy, "
        "an export with `--format merged` needs no base."
    )


def _loadable(base: Base) -> str:
    """The name with which other programs load the base."""
    return PLACE if base.model in EMBEDDED else base_name(base)


def dtype_name(run: TrainedRun, stage: Stage) -> str:
    """The dtype of the base's activations in training."""
    chosen = run.require(stage).compute_dtype or run.config.base_of(stage).compute_dtype
    return "bfloat16" if chosen == "auto" else chosen


def reward(run: TrainedRun, constant: float, ending: str) -> str:
    """The card's lines on a classifier that reads `ending` after an answer."""
    chat = run.chat
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


def gguf(run: TrainedRun, name: str, warning: str | None) -> str:
    """The card's lines on a GGUF file.

    Args:
        warning: see `guessed_template`; None if the Modelfile has the template.
    """
    command = f"llama-cli -m {name} --jinja" if run.chat else f'llama-completion -m {name} -no-cnv -p "..."'
    return f"""With Ollama, in this folder:

```sh
ollama create {run.config.name} -f Modelfile
ollama run {run.config.name}
```

{warning or "The Modelfile builds prompts as the training did. It was not tried in Ollama."}

With llama.cpp: `{command}`. In Python: `llama_cpp.Llama("{name}")`.

Sample with {_sampling(run.config.ppo.rollout)}. These are part of the policy."""


def guessed_template(run: TrainedRun, name: str) -> str:
    """What to know of Ollama if the Modelfile has no template."""
    return (
        "Ollama guesses the chat template of this model. Ollama has no Jinja, and the template of the "
        "training is not ChatML. The guess was not checked. It may be another template, or none. See it with "
        f"`ollama show --template {run.config.name}`, or use llama.cpp, which renders the template itself: "
        f"`llama-server -m {name} --jinja`."
    )


def _inputs(run: TrainedRun) -> str:
    if run.chat:
        return """inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "..."}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""
    return 'inputs = tokenizer("...", return_tensors="pt")  # a text to continue: no chat template'


def _sampling(rollout: Rollout) -> str:
    top_k = f", top-k {rollout.top_k}" if rollout.top_k else ""
    return f"temperature {rollout.temperature:g}, top-p {rollout.top_p:g}{top_k}"
