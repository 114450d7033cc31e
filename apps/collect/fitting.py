"""Leave out what no stage could read, before people have worked on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from configs.schema import Data, Experiment, Stage
from data.batches import tokenize
from data.batches.fit import NothingFits
from data.people.round import Task
from stages.models.base import load_config
from stages.setup import load_checked_tokenizer


def fitting(tasks: Sequence[Task], stage: Stage, config: Experiment) -> list[Task]:
    """The tasks whose prompt and answers are within the limits of `data`, in tokens of the stage's base."""
    base = config.base_of(stage)
    tokenizer = load_checked_tokenizer(config, stage, base, load_config(base))
    return [task for task in tasks if _fits(task, tokenizer, config.data)]


def _fits(task: Task, tokenizer: PreTrainedTokenizerBase, data: Data) -> bool:
    rows: list[dict[str, Any]] = [{"prompt": task.prompt, "completion": text} for text in task.completions]
    read = tokenize.demonstrations if rows else tokenize.prompts
    try:
        _, counts = read(rows or [{"prompt": task.prompt}], tokenizer, data)
    except NothingFits:
        return False
    return counts.dropped == 0
