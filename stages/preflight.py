"""Try what stages will read and call, before any of them trains: bases, data, functions, endpoints.

`main` runs in a process of its own, which the user's code may end, and whose memory is free again afterwards.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from configs.judge_file import read_judge
from configs.schema import JUDGE_FILES, Base, Experiment, Reward, Stage
from data.batches import tokenize
from data.examples import StageData, read_examples, some_rows
from data.sources.folders import size_of
from data.sources.formats import Kind
from data.sources.loading import MAX_BYTES, SOME_ROWS
from data.sources.reading import is_local
from stages.feedback.endpoint_judge import EndpointJudge
from stages.feedback.judgements import as_judgements
from stages.feedback.reward_endpoint import Endpoint
from stages.feedback.reward_loss import check_labels
from stages.feedback.user_functions import as_numbers, load_function
from stages.feedback.warm_ending import READER
from stages.models.base import empty_base, is_downloaded, load_config
from stages.models.demo_models import embedded_model
from stages.models.roles import Role, Roles
from stages.models.start_adapters import add_start
from stages.setup import load_checked_tokenizer

PROMPTS = ["How are you?", "Name a colour."]
COMPLETIONS = ["I am well, thank you.", ""]  # a policy may end its turn at once
MOST_REPEATS = 100  # of an example in one batch; more can only be a slip

Check = tuple[str, Callable[[], list[str]]]  # a name, and a function that returns remarks or raises UserError


def main(results: int) -> None:
    """Read `{"experiment", "stages", "only_feedback"}`; write a line of JSON before and after each check.

    The line before has the check's name, the one after its fault or null, and its remarks.

    Args:
        results: descriptor of the file for these lines.
    """
    with os.fdopen(results, "w") as lines:
        order = json.load(sys.stdin)
        config, stages = Experiment.model_validate(order["experiment"]), order["stages"]
        checks = () if order["only_feedback"] else material(config, stages)
        for name, check in (*checks, *feedback(config, stages)):
            lines.write(json.dumps(name) + "\n")
            lines.flush()  # the check may end this process
            fault, remarks = None, list[str]()
            try:
                remarks = check()
            except UserError as error:
                fault = str(error)
            except OSError as error:  # a disk that fails, or a file that only seems to be one
                fault = f"{name}: {error!s:.200}"
            lines.write(json.dumps([fault, remarks]) + "\n")


def material(config: Experiment, stages: Sequence[Stage]) -> Iterator[Check]:
    """Checks of the tokenizers, chat templates, rows and given adapters of the stages.

    A base that is not here yet is left to the stage, which downloads it. So is data of the hub.
    """
    tokenizers = _Tokenizers(config)
    for stage in stages:
        for base in filter(is_downloaded, config.bases(stage)):
            yield f"{base.key}: {base.model}", _base(tokenizers, stage, base)
            if config.adapter.target_modules != "all-linear" and stage not in config.starts:
                yield f"adapter.target_modules, on {base.key}", _targets(config, base)
        if stage in config.starts and is_downloaded(config.base_of(stage)):
            yield f"{stage}.from: {config.starts[stage]}", _start(config, stage)
    sources = {(data, kind): base for stage in stages for data, kind, base in sources_of(config, stage)}
    for (data_stage, kind), base in sources.items():
        if any(map(is_local, config.data.sources(data_stage))):
            yield f"data.{data_stage}", _data(tokenizers, data_stage, kind, base)


def feedback(config: Experiment, stages: Sequence[Stage]) -> Iterator[Check]:
    """Checks of labellers and rewards: each function and endpoint that the stages call judges two answers."""
    for key, name in config.labellers(stages).items():
        if name == "warm_ending":
            yield f"{key}: {name}", _reader
    for key, code in config.users_code(stages):
        source = code.source if isinstance(code, Reward) else code
        if not isinstance(code, Reward) and source.endswith(JUDGE_FILES):
            yield f"{key}: {source}", _judge(Path(source), key, config.rm.rankings.completions)
        elif isinstance(code, Reward) and "://" in source:
            yield f"{key}: {source}", _endpoint(code)
        else:
            yield f"{key}: {source}", _function(source, key)


def check_material(config: Experiment, stage: Stage) -> None:
    """Make the checks of `material` in this process.

    Raises:
        UserError: one line for each fault.
    """
    faults = []
    for _, check in material(config, [stage]):
        try:
            check()
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))


def sources_of(config: Experiment, stage: Stage) -> Iterator[tuple[Stage, Kind, Base]]:
    """The data that a stage reads, what the rows serve as, and the base whose tokenizer reads them."""
    if stage == "sft" or (stage == "ppo" and config.ppo.ptx_coef):
        yield "sft", "demonstrations", config.base
    if stage == "rm" and config.rm.rankings.labeller == "file":
        yield "rm", "rankings", config.base_of("rm")
    elif stage == "rm":
        yield "rm", "prompts", config.base
    if stage in ("ppo", "best"):
        yield "ppo", "prompts", config.base


def main_source(config: Experiment, stage: Stage) -> tuple[Stage, Kind, Base]:
    """The last of `sources_of`: what the stage trains on."""
    return list(sources_of(config, stage))[-1]


def tokenizer_of(config: Experiment, stage: Stage, base: Base) -> PreTrainedTokenizerBase:
    """The tokenizer of a base of the stage; see `load_checked_tokenizer`."""
    return _Tokenizers(config).load(stage, base)


class _Tokenizers:
    """The checked tokenizers of bases, each loaded once for a stage."""

    def __init__(self, config: Experiment) -> None:
        self.config = config
        self._loaded: dict[tuple[Stage, str], PreTrainedTokenizerBase] = {}

    def load(self, stage: Stage, base: Base) -> PreTrainedTokenizerBase:
        """See `load_checked_tokenizer`."""
        key = stage, base.key
        if key not in self._loaded:
            self._loaded[key] = load_checked_tokenizer(self.config, stage, base, load_config(base))
        return self._loaded[key]


def _base(tokenizers: _Tokenizers, stage: Stage, base: Base) -> Callable[[], list[str]]:
    def check() -> list[str]:
        tokenizers.load(stage, base)
        return []

    return check


def _targets(config: Experiment, base: Base) -> Callable[[], list[str]]:
    """Give the base's layers, without its weights, an adapter on the layers that the user names."""

    def check() -> list[str]:
        roles = Roles(empty_base(base))
        linear = [name for name, module in roles.causal.named_modules() if isinstance(module, nn.Linear)]
        roles.add_new(Role.POLICY, config.adapter)
        adapted = [name for name, module in roles.causal.named_modules() if isinstance(module, LoraLayer)]
        for target in config.adapter.target_modules:
            if not any(f".{name}".endswith(f".{target}") for name in adapted):
                layers = sorted({name.rsplit(".", 1)[-1] for name in linear})
                raise UserError(
                    f"adapter.target_modules: {target}: no linear layer of {base.model} has this name. Its "
                    f"layers are {', '.join(layers)}."
                )
        return []

    return check


def _start(config: Experiment, stage: Stage) -> Callable[[], list[str]]:
    """Load the adapter that the stage starts from over the base's layers, without the base's weights."""

    def check() -> list[str]:
        role = Role.REWARD if stage == "rm" else Role.POLICY
        roles = Roles(empty_base(config.base_of(stage)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that a weight copied onto `meta` goes nowhere
            add_start(roles, role, f"{stage}.from", Path(config.starts[stage]))
        return []

    return check


def _data(tokenizers: _Tokenizers, stage: Stage, kind: Kind, base: Base) -> Callable[[], list[str]]:
    """Read and tokenize the rows; of a large source, or without a tokenizer, only a part of this."""
    config, remarks = tokenizers.config, list[str]()
    parts = [part for part in config.data.parts(stage) if is_local(part.source)]
    in_part = len(parts) < len(config.data.parts(stage))

    def check() -> list[str]:
        tokenizer = tokenizers.load(stage, base) if is_downloaded(base) else None
        large = [key for key, _, source in parts if size_of(source.path) > MAX_BYTES]
        if large or in_part:
            rows = some_rows(config, stage, kind)
            remarks.extend(f"{key}: large; only its first {SOME_ROWS:,} rows were read" for key in large)
            if tokenizer is not None:
                some, _ = tokenize.TOKENIZE[kind](rows, tokenizer, config.data)
                _check_scores(config, kind, some)
        elif tokenizer is None:
            StageData(config, stage, remarks.append, only_checks=True).rows(kind)
        else:
            data = StageData(config, stage, remarks.append, only_checks=True)
            train, held_out, _ = read_examples(data, kind, tokenize.TOKENIZE[kind], tokenizer)
            _check_sizes(config, stage, len(train), len(held_out))
            _check_scores(config, kind, [*train, *held_out])
        return remarks

    return check


def _check_scores(config: Experiment, kind: Kind, examples: Sequence[Any]) -> None:
    if kind == "rankings":
        check_labels(config.rm.loss, examples)


def _check_sizes(config: Experiment, stage: Stage, train: int, held_out: int) -> None:
    """Raise UserError if a batch of `stage` can only be a slip, because it repeats its examples so often."""
    sizes = {
        "sft": [("sft.batch_size", config.sft.batch_size, train)],
        "rm": [
            ("rm.batch_size", config.rm.batch_size, train),
            ("rm.normalization_prompts", config.rm.normalization_prompts, held_out or train),
        ],
        "ppo": [("ppo.batch_size", config.ppo.batch_size, train)],
    }
    for key, size, examples in sizes.get(stage, []):
        if size > MOST_REPEATS * examples:
            raise UserError(
                f"{key}: {size:,}, but data.{stage} has only {examples:,} examples for it. Lower it to "
                f"{examples:,} or less."
            )


def _reader() -> list[str]:
    embedded_model(READER)
    return []


def _function(path: str, key: str) -> Callable[[], list[str]]:
    def check() -> list[str]:
        if key == "ppo.rewards":
            load_function(path, key, as_numbers)(PROMPTS, COMPLETIONS)
        else:
            load_function(path, key, as_judgements)(PROMPTS, COMPLETIONS)
        return []

    return check


def _judge(file: Path, key: str, completions: int) -> Callable[[], list[str]]:
    def check() -> list[str]:
        judge = EndpointJudge(read_judge(file, key).model_copy(update={"retries": 0}), key)
        return [judge.try_once(completions)]

    return check


def _endpoint(term: Reward) -> Callable[[], list[str]]:
    def check() -> list[str]:
        Endpoint(term.model_copy(update={"retries": 0}))(PROMPTS, COMPLETIONS)
        return []

    return check
