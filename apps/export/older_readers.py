"""What transformers 4 needs beside what transformers 5 writes, to load an export as the same model.

transformers 5 writes the base of rotary embeddings into `rope_parameters`. transformers 4 reads `rope_theta`,
and takes 10,000 without it: another model, and no error. Its AutoTokenizer does not know the class that
transformers 5 names, and gives a model inputs that it refuses. transformers 5 reads all of these keys, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
CLASS = {"TokenizersBackend": "PreTrainedTokenizerFast"}  # in 4, and another name of the same class in 5
INPUTS = ["input_ids", "attention_mask"]  # 4 adds token_type_ids, which decoders refuse
ROTARY = ("rope_theta", "partial_rotary_factor")  # next to the others in 4


def write_for_transformers_4(folder: Path) -> None:
    """Add these keys to the files of a saved model and tokenizer."""
    config = json.loads((folder / CONFIG).read_text())
    for section in (config, config.get("text_config")):
        if isinstance(section, dict):
            section |= older_keys(section)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer = json.loads((folder / TOKENIZER).read_text())
    name = tokenizer.get("tokenizer_class")
    tokenizer["tokenizer_class"] = CLASS.get(name, name)
    tokenizer.setdefault("model_input_names", INPUTS)
    (folder / TOKENIZER).write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n")


def older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of transformers 4 that say what a section of a config says in those of transformers 5.

    Parameters that differ by layer have no form in transformers 4, and are left out.
    """
    older = {"torch_dtype": config["dtype"]} if "dtype" in config else {}
    rotary = config.get("rope_parameters")
    if not isinstance(rotary, dict) or any(isinstance(value, dict) for value in rotary.values()):
        return older
    older |= {name: rotary[name] for name in ROTARY if name in rotary}
    if rotary.get("rope_type", "default") != "default":
        older["rope_scaling"] = {name: value for name, value in rotary.items() if name not in ROTARY}
    return older
