"""Open the reward model that `--rm` names: a run, an adapter folder, a classifier's folder, or a hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from apps.answers.prompts import window_of
from apps.evaluate.reward_models.classifier import Classifier, check_head, naming, open_classifier
from apps.evaluate.reward_models.heads import named_base, open_adapter, open_run_scorer, tokenizer_of
from apps.evaluate.reward_models.scorer import Scorer
from apps.trained_run import TrainedRun, open_run
from configs.errors import UserError
from configs.schema import Data, Source
from data.storage.adapter_names import ADAPTER_FILE, CONFIG_FILE, HEAD_FILE
from stages.internals.transformers import find_file
from stages.models.base import load_config, load_tokenizer
from stages.models.base_checks import check_folder, loading


@dataclass(frozen=True)
class HowRead:
    """How rows become tokens, as far as the user says so; None is as the model is made for.

    Attributes:
        chat: plain text is a turn of a chat.
        max_length: rows that are longer are left out.
        quantization: of the base of an adapter.
    """

    chat: bool | None = None
    max_length: int | None = None
    quantization: str | None = None


def run_of(name: str | None, run_dir: Path | None) -> TrainedRun | None:
    """The run that `--rm` names, or whose adapter it names; without a name, that in `run_dir`.

    Returns:
        None if the name is no run's.

    Raises:
        UserError: there is no run in `run_dir`, or stage rm has not finished there.
    """
    path = Path(name or run_dir or "")
    folder = path
    if name and not (path / "config.yaml").is_file():
        folder = path.absolute().parent.parent  # RUN/rm/adapter
        if path.absolute() != folder / "rm" / "adapter" or not (folder / "config.yaml").is_file():
            return None
    run = open_run(folder)
    run.require("rm")
    return run


def open_scorer(name: str | None, run: TrainedRun | None, how: HowRead) -> Scorer:
    """Open the reward model of `run`, or else the one that `name` names.

    Raises:
        UserError: it is none, or it cannot be loaded. The message names it.
    """
    if run is not None:
        changes = {"chat": how.chat, "max_length": how.max_length}
        kept = {key: value for key, value in changes.items() if value is not None}
        return open_run_scorer(run, _limited(run.config.data, kept))
    assert name is not None
    with naming(name):
        folder = _folder(name)
        if (folder / CONFIG_FILE).is_file():
            base = named_base(folder, how.quantization)
            return open_adapter(folder, base, _data(how, tokenizer_of(folder, base), load_config(base)))
        return _classifier(name, how)


def _folder(name: str) -> Path:
    """The folder of `name`; of a hub adapter, its copy on this machine.

    Raises:
        UserError: there is no such folder, and no such hub model that can be reached.
    """
    path = Path(name)
    if path.is_dir() or path.is_absolute() or path.exists():
        if not path.is_dir():
            reason = "a file, not a folder" if path.exists() else "there is no such folder"
            raise UserError(f"--rm {name}: {reason}. Name a run, a folder or a hub id.")
        return path
    with loading(Classifier(model=name), "files"):
        config = find_file(name, CONFIG_FILE, None)
        if config is None:
            return path
        for file in (
            ADAPTER_FILE,
            HEAD_FILE,
            "tokenizer_config.json",
            "tokenizer.json",
        ):
            find_file(name, file, None)  # each is put beside the config
    return config.parent


def _classifier(name: str, how: HowRead) -> Scorer:
    config = Classifier.model_validate({"model": name, "quantization": "none"})
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(
            f"--rm {name}: neither a run (it has no config.yaml), nor an adapter (no {CONFIG_FILE}), nor a "
            "model (no config.json). Name a run, a folder or a hub id."
        )
    check_folder(config)
    model_config = load_config(config)
    check_head(name, model_config)
    tokenizer = load_tokenizer(config, pairs=True)
    return open_classifier(config, name, tokenizer, _data(how, tokenizer, model_config))


def _data(how: HowRead, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> Data:
    """How rows become tokens: in the chat template if there is one, up to the context window."""
    chat = tokenizer.chat_template is not None if how.chat is None else how.chat
    nowhere = Source(path="none.jsonl")
    data = Data(sft=nowhere, rm=nowhere, ppo=nowhere, chat=chat)
    return _limited(data, {"max_length": how.max_length or window_of(config)})


def _limited(data: Data, changes: dict[str, Any]) -> Data:
    """The settings with `changes`. A prompt may take all of a new length but one token."""
    if "max_length" in changes:
        changes = changes | {"max_prompt_length": changes["max_length"] - 1}
    return data.model_copy(update=changes)
