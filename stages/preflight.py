"""Try what stages will read and call, before any of them trains: bases, data, functions, endpoints.

`main` runs in a process of its own, which the user's code may end, and whose memory is free again afterwards.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedTokenizerBase

from configs.error_messages import Keys, overlap, undotted
from configs.errors import UserError
from configs.judge_file import read_judge
from configs.schema import STAGES, Base, Data, Experiment, Reward, Stage, labeller_kind
from data.batches import tokenize
from data.batches.fit import NothingFits
from data.examples import StageData, kind_of, read_examples, some_rows
from data.sources.formats import Kind, Row
from data.sources.hub import hub_shows, streamed
from data.sources.loading import SOME_ROWS, is_large
from data.sources.reading import NotLoaded, is_local
from data.sources.text import counted
from stages.feedback.earlier_rankings import with_earlier
from stages.feedback.endpoint_judge import EndpointJudge
from stages.feedback.judgements import as_judgements
from stages.feedback.reward_endpoint import Endpoint
from stages.feedback.reward_loss import check_labels
from stages.feedback.user_functions import as_numbers, load_function
from stages.feedback.warm_ending import READER
from stages.models.base import empty_base, is_downloaded, load_config, model_folder
from stages.models.base_files import check_weights, weight_files
from stages.models.demo_models import embedded_model
from stages.models.loftq import check_stored
from stages.models.roles import Role, Roles
from stages.models.start_adapters import add_reward_start, add_start
from stages.sampling.decoding_batch import check_joinable
from stages.sampling.vllm_checks import check_vllm
from stages.setup import load_checked_tokenizer

PROMPTS = ["How are you?", "Name a colour."]
COMPLETIONS = ["I am well, thank you.", ""]  # a policy may end its turn at once
RANKINGS = ("rm", "rankings")  # they say whether data.rm holds rankings or prompts
MOST_WEIGHTS = 8 * 2**30  # bytes that are read before a stage starts, in some seconds
CHOSEN_ENGINES = ("vllm", "continuous")  # auto takes what the base and this machine can do
MOST_REPEATS = 100  # of an example in one batch; more can only be a slip

TOKENS = [("data", key) for key in Data.model_fields if key not in (*STAGES, "shares")]  # how text is read


class Check(NamedTuple):
    """One check.

    Attributes:
        group: of its fault in the message, see `pipeline.planning.faults`.
        name: what is checked.
        reads: keys without which it means nothing.
        run: returns remarks, or raises UserError.
    """

    group: str
    name: str
    reads: Sequence[Keys]
    run: Callable[[], list[str]]

    def depends_on(self, wrong: Iterable[Keys]) -> bool:
        """Whether one of the wrong keys is among those that this reads."""
        return any(overlap(read, keys) for read in self.reads for keys in wrong)


def main(results: int) -> None:
    """Read an order, and write a line of JSON before and after each of its checks.

    The order is `{"experiment", "stages", "only_feedback", "wrong", "done"}`: `wrong` are keys with a fault,
    and `done` is the number of checks that an earlier process has made. The line before a check has its group
    and name, the one after it its fault or null, and its remarks.

    Args:
        results: descriptor of the file for these lines.
    """
    with os.fdopen(results, "w") as lines:
        order = json.load(sys.stdin)
        config, stages = Experiment.model_validate(order["experiment"]), order["stages"]
        wrong = list(map(tuple, order["wrong"]))
        first = () if order["only_feedback"] else material(config, stages, wrong)
        checks = [check for check in (*first, *feedback(config, stages)) if not check.depends_on(wrong)]
        for check in checks[order["done"] :]:
            lines.write(json.dumps([check.group, check.name]) + "\n")
            lines.flush()  # the check may end this process
            fault, remarks = None, list[str]()
            try:
                remarks = check.run()
            except UserError as error:
                fault = str(error)
            except OSError as error:  # a disk that fails, or a file that only seems to be one
                fault = f"{check.name}: {error!s:.200}"
            lines.write(json.dumps([fault, remarks]) + "\n")


def material(config: Experiment, stages: Sequence[Stage], wrong: Iterable[Keys] = ()) -> Iterator[Check]:
    """Checks of the tokenizers, chat templates, rows, given adapters and rollout engines of the stages.

    A base that is not here yet is left to the stage, which downloads it. Of data of the hub, the first rows
    are read. If a base or its template is wrong, rows are read, and not tokenized.
    """
    tokenizers = _Tokenizers(config, wrong)
    for stage in stages:
        for base in filter(is_downloaded, config.bases(stage)):
            group, name = "bases and chat templates", f"{base.key}: {base.model}"
            yield Check(group, name, reads_of(base), _base(tokenizers, stage, base))
            if config.adapter.target_modules != "all-linear" and stage not in config.starts:
                name, reads = f"adapter.target_modules, on {base.key}", [("adapter",), _keys(base)]
                yield Check("adapters", name, reads, _targets(config, base))
        key, rollout = config.rollouts.get(stage, ("", None))
        if rollout and rollout.engine in CHOSEN_ENGINES:
            reads = [undotted(key), _keys(config.base), ("adapter",)]
            yield Check("machine", f"{key}.engine: {rollout.engine}", reads, _engine(config, stage))
        base = config.base_of(stage)
        reads = [("adapter",), _keys(base)]
        if stage in config.starts and is_downloaded(base):
            name = f"{stage}.from: {config.starts[stage]}"
            yield Check("adapters", name, [(stage, "from"), *reads], _start(config, stage))
        elif _has_new_adapter(config, stage) and is_downloaded(base):
            yield Check("adapters", f"adapter on {base.model}", reads, _new_adapter(config, base))
    if "rm" in stages and config.rm.rankings.earlier:
        reads = [(*RANKINGS, "earlier"), _keys(config.base)]
        yield Check("data", "rm.rankings.earlier", reads, _earlier(tokenizers))
    sources = {(data, kind): base for stage in stages for data, kind, base in sources_of(config, stage)}
    for (data_stage, kind), base in sources.items():
        reads = [("data", data_stage), ("data", "shares"), *([RANKINGS] if data_stage == "rm" else [])]
        yield Check("data", f"data.{data_stage}", reads, _data(tokenizers, data_stage, kind, base))


def reads_of(base: Base) -> list[Keys]:
    """The keys that say how a base tokenizes."""
    return [_keys(base), *TOKENS]


def _keys(base: Base) -> Keys:
    return tuple(base.key.split("."))


def feedback(config: Experiment, stages: Sequence[Stage]) -> Iterator[Check]:
    """Checks of labellers and rewards: each function and endpoint that the stages call judges two answers."""
    for key, name in config.labellers(stages).items():
        if name == "warm_ending":
            yield _feedback_check(key, name, _reader)
    for key, code in config.users_code(stages):
        source = code.source if isinstance(code, Reward) else code
        if not isinstance(code, Reward) and labeller_kind(source) == "endpoint":
            yield _feedback_check(key, source, _judge(Path(source), key, config.rm.rankings.completions))
        elif isinstance(code, Reward) and code.kind == "endpoint":
            yield _feedback_check(key, source, _endpoint(code))
        else:
            yield _feedback_check(key, source, _function(source, key))


def _feedback_check(key: str, source: str, run: Callable[[], list[str]]) -> Check:
    return Check("labellers, judges and rewards", f"{key}: {source}", [undotted(key)], run)


def check_material(config: Experiment, stage: Stage) -> None:
    """Make the checks of `material` in this process.

    Raises:
        UserError: one line for each fault.
    """
    faults = []
    for check in material(config, [stage]):
        try:
            check.run()
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))


def sources_of(config: Experiment, stage: Stage) -> Iterator[tuple[Stage, Kind, Base]]:
    """The data that a stage reads, what the rows serve as, and the base whose tokenizer reads them."""
    if stage == "ppo" and config.ppo.ptx_coef:
        yield "sft", kind_of(config, "sft"), config.base
    kind = kind_of(config, stage)
    base = config.base_of("rm") if kind == "rankings" else config.base
    yield "ppo" if stage == "best" else stage, kind, base


def main_source(config: Experiment, stage: Stage) -> tuple[Stage, Kind, Base]:
    """The last of `sources_of`: what the stage trains on."""
    return list(sources_of(config, stage))[-1]


def tokenizer_of(config: Experiment, stage: Stage, base: Base) -> PreTrainedTokenizerBase:
    """The tokenizer of a base of the stage; see `load_checked_tokenizer`."""
    return _Tokenizers(config).load(stage, base)


class _Tokenizers:
    """The checked tokenizers of bases, each loaded once for a stage."""

    def __init__(self, config: Experiment, wrong: Iterable[Keys] = ()) -> None:
        self.config, self._wrong = config, wrong
        self._loaded: dict[tuple[Stage, str], PreTrainedTokenizerBase] = {}

    def load(self, stage: Stage, base: Base) -> PreTrainedTokenizerBase:
        """See `load_checked_tokenizer`."""
        key = stage, base.key
        if key not in self._loaded:
            self._loaded[key] = load_checked_tokenizer(self.config, stage, base, load_config(base))
        return self._loaded[key]

    def usable(self, base: Base) -> bool:
        """Whether the base is here, and no key that says how it tokenizes is wrong."""
        return is_downloaded(base) and not any(
            overlap(read, keys) for read in reads_of(base) for keys in self._wrong
        )


def _base(tokenizers: _Tokenizers, stage: Stage, base: Base) -> Callable[[], list[str]]:
    """Load the tokenizer. The first stage reads the policy's base by itself, but not the reward model's."""

    def check() -> list[str]:
        tokenizers.load(stage, base)
        if base.key == tokenizers.config.base.key:
            return []
        folder = model_folder(base)
        if sum(file.stat().st_size for file in weight_files(base, folder)) > MOST_WEIGHTS:
            return [f"{base.key}: large; its weights are checked when stage {stage} starts"]
        check_weights(base, folder)
        return []

    return check


def _engine(config: Experiment, stage: Stage) -> Callable[[], list[str]]:
    """Ask what the stage itself asks first, of a machine like this one."""

    def check() -> list[str]:
        check_vllm(config, stage, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        if is_downloaded(config.base):
            check_joinable(config, stage, load_config(config.base))
        return []

    return check


def _earlier(tokenizers: _Tokenizers) -> Callable[[], list[str]]:
    """Read the rankings of earlier rounds, which were sampled in the tokens of the policy's base."""

    def check() -> list[str]:
        base, rm = tokenizers.config.base, tokenizers.config.rm
        tokenizer = tokenizers.load("sft", base) if tokenizers.usable(base) else None
        train, held_out, _ = with_earlier([], [], rm.rankings.earlier, tokenizer)
        check_labels(rm.loss, [(row["prompt"], row.get("scores")) for row in (*train, *held_out)])
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
        roles = Roles(empty_base(config.base_of(stage)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that a weight copied onto `meta` goes nowhere
            if stage == "rm":
                add_reward_start(roles, config.rm, Path(config.starts[stage]))
            else:
                add_start(roles, Role.POLICY, f"{stage}.from", Path(config.starts[stage]))
        return []

    return check


def _has_new_adapter(config: Experiment, stage: Stage) -> bool:
    """Whether the stage makes an adapter of a kind that a base may not have."""
    makes_one = stage == "sft" or (stage == "rm" and config.rm.base is not None)
    return makes_one and (config.adapter.dora or config.adapter.init == "loftq")


def _new_adapter(config: Experiment, base: Base) -> Callable[[], list[str]]:
    """Add a new adapter to the base's layers, without the base's weights, and find what LoftQ will read."""

    def check() -> list[str]:
        roles = Roles(empty_base(base))
        roles.add_new(Role.POLICY, config.adapter)
        if config.adapter.init == "loftq" and base.quantization != "none":
            check_stored(roles, Role.POLICY, base)
        return []

    return check


def _data(tokenizers: _Tokenizers, stage: Stage, kind: Kind, base: Base) -> Callable[[], list[str]]:
    """Read and tokenize the rows; of large or remote data, or without a tokenizer, only a part of this."""
    config, remarks = tokenizers.config, list[str]()

    def check() -> list[str]:
        tokenizer, refusal = None, None
        try:
            tokenizer = tokenizers.load(stage, base) if tokenizers.usable(base) else None
        except UserError as error:  # the rows are read all the same
            refusal = error
        parts = config.data.parts(stage)
        if any(is_large(part.source) or not is_local(part.source) for part in parts):
            some = _some_rows(config, stage, kind, remarks)
            if tokenizer is not None and some:
                with suppress(NothingFits):  # later rows may be shorter
                    _check_scores(config, kind, tokenize.TOKENIZE[kind](some, tokenizer, config.data)[0])
        elif tokenizer is None:
            StageData(config, stage, remarks.append, only_checks=True).rows(kind)
        else:
            data = StageData(config, stage, remarks.append, only_checks=True)
            train, held_out, _ = read_examples(data, kind, tokenize.TOKENIZE[kind], tokenizer)
            _check_sizes(config, stage, len(train), len(held_out))
            _check_scores(config, kind, [*train, *held_out])
        if refusal:
            raise refusal
        return remarks

    return check


def _some_rows(config: Experiment, stage: Stage, kind: Kind, remarks: list[str]) -> list[Row]:
    """The first rows of each source; a remark tells of each that is large or of the hub."""
    rows: list[Row] = []
    for part in config.data.parts(stage):
        name = f"{part.key}: {part.source.path}"
        if is_local(part.source):
            rows += some_rows(config, stage, kind, [part])
            if is_large(part.source):
                remarks.append(f"{part.key}: large; only its first {SOME_ROWS:,} rows were read")
        elif not hub_shows(part.source):
            remarks.append(
                f"warning: {name} is no file of this machine, and the hub did not answer. The run needs it, "
                "unless the cache has it, and nothing of it is checked yet."
            )
        elif "[" in part.source.split:
            remarks.append(f"{name} is on the hub; its rows are not read yet, as `split` is a slice")
        else:
            try:
                rows += some_rows(config, stage, kind, [part._replace(source=streamed(part.source))])
            except NotLoaded:  # the stage does not stream it
                remarks.append(f"warning: {name} is on the hub, and its first rows could not be read yet")
            else:
                remarks.append(f"{name} is on the hub; only its first rows were read, {SOME_ROWS:,} at most")
    return rows


def _check_scores(config: Experiment, kind: Kind, examples: Sequence[Any]) -> None:
    if kind == "rankings":
        check_labels(config.rm.loss, [(one.prompt, one.labels) for one in examples])


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
                f"{key}: {size:,}, but data.{stage} has only {counted(examples, 'example')} for it. Lower it "
                f"to {examples:,} or less."
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
