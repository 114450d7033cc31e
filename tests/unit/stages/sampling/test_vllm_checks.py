"""What vLLM cannot do here is told before training, in one line that names key and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import Stage
from stages.sampling import vllm_checks
from tests.contract.bad_inputs.entry import check_message
from tests.support import vllm_stub
from tests.support.roles import tiny_roles
from tests.support.runs import TINY

CPU, GPU = torch.device("cpu"), torch.device("cuda")
NONE = "base.quantization=none"
VLLM = "ppo.rollout.engine=vllm"
TOP_K = "ppo.rollout.top_k=5"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine that has all that vLLM needs, until a test takes something away."""
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    has: dict[str, Any] = {"modules": {"vllm", "vllm_bnb_plugin"}, "device": CPU, "bf16": True}
    monkeypatch.setattr(vllm_checks, "find_spec", lambda name: name if name in has["modules"] else None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has["bf16"])
    vllm_stub.install(monkeypatch)
    return has


def check(machine: dict[str, Any], stage: Stage, *overrides: str) -> None:
    config = load_experiment(TINY, ["base.compute_dtype=bfloat16", *overrides])
    vllm_checks.check_vllm(config, stage, machine["device"])


@pytest.mark.parametrize(
    ("modules", "missing"), [([], "vllm"), (["vllm"], "vllm_bnb_plugin")], ids=["vllm", "plugin"]
)
def test_without_a_module(modules, missing, machine) -> None:
    check(machine, "ppo", VLLM)
    machine["modules"] = modules
    with pytest.raises(UserError) as caught:
        check(machine, "ppo", VLLM)
    check_message(
        str(caught.value),
        f"ppo.rollout.engine: vllm: there is no Python module {missing} here; install it",
        "docs/reference/vllm.md, or choose auto",
    )


@pytest.mark.parametrize(
    ("place", "overrides", "fault"),
    [
        (
            (GPU, {"device_type": "cpu"}, True),
            [],
            "the vLLM that is installed is for cpu, and the stage computes on",
        ),
        ((CPU, {"device_type": "cuda"}, True), [], "the vLLM that is installed is for cuda, and the stage"),
        ((CPU, {"device_type": ""}, True), [], "the vLLM that is installed finds no device that it supports"),
        (
            (CPU, {"supported_dtypes": [torch.float32]}, True),
            [],
            "it does not compute in bfloat16 here; set base.co",
        ),
        (
            (GPU, {"device_type": "cuda"}, True),
            [NONE, "base.compute_dtype=float32"],
            "its LoRA on a GPU is for bf16; run on a GPU that computes in bf16",
        ),
        (
            (CPU, {}, False),
            [NONE, TOP_K],
            "it does not report here which tokens it could sample, and in bfloat16",
        ),
    ],
    ids=["cpu build", "cuda build", "no device", "dtype", "fp32 on a GPU", "masks"],
)
def test_machine_that_vllm_does_not_run_on(place, overrides, fault, machine, monkeypatch) -> None:
    """`place` is the device of the stage, what vLLM says of its platform, and whether Triton is installed."""
    machine["device"], platform, triton = place
    vllm_stub.install(monkeypatch, vllm_stub.Platform(**platform), triton)
    with pytest.raises(UserError) as caught:
        check(machine, "ppo", VLLM, *overrides)
    check_message(str(caught.value), f"ppo.rollout.engine: vllm: {fault}", ", or choose auto.")


@pytest.mark.parametrize(
    ("device", "triton", "overrides"),
    [
        (CPU, False, [NONE, "base.compute_dtype=float32", TOP_K]),
        (CPU, True, [TOP_K]),
        (CPU, False, []),
        (GPU, True, [TOP_K]),
    ],
)
def test_machine_that_vllm_runs_on(device, triton, overrides, machine, monkeypatch) -> None:
    vllm_stub.install(monkeypatch, vllm_stub.Platform(device.type), triton)
    machine["device"] = device
    check(machine, "ppo", VLLM, *overrides)


def test_hardware_without_bf16_cannot_serve_nf4(machine, monkeypatch) -> None:
    """`auto` is fp32 there, which the plugin cannot pack."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(
        UserError, match=r"it computes in bf16 on an NF4 base; set base.compute_dtype to bfloat16"
    ):
        check(machine, "ppo", VLLM, "base.compute_dtype=auto")
    check(machine, "ppo", VLLM, "base.compute_dtype=auto", NONE)


@pytest.mark.parametrize(
    ("stage", "override", "key"),
    [
        ("rm", "rm.rankings.rollout.engine=vllm", "rm.rankings.rollout.engine"),
        ("best", "ppo.rollout.engine=vllm", "ppo.rollout.engine"),
        ("best", "best.rollout={engine: vllm, max_new_tokens: 4}", "best.rollout.engine"),
    ],
)
def test_key_of_the_stage_that_samples(stage: Stage, override, key, machine) -> None:
    machine["device"] = GPU
    with pytest.raises(UserError, match=f"^{key}: vllm: the vLLM that is installed is for cpu"):
        check(machine, stage, override)


def test_stage_that_does_not_sample_with_it_needs_nothing(machine) -> None:
    machine.update(modules=set())
    check(machine, "sft", VLLM)
    check(machine, "rm", VLLM)
    check(machine, "best", VLLM, "best.rollout={max_new_tokens: 4}")
    check(machine, "ppo")


def test_plugin_is_for_a_quantized_base_alone(machine) -> None:
    machine["modules"] = {"vllm"}
    check(machine, "ppo", VLLM, NONE)


# Adapters


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return tiny_roles(quantization="none").causal


def check_adapter(base: PreTrainedModel, stage: Stage, folder: Path | None, *overrides: str) -> None:
    config = load_experiment(TINY, [NONE, *overrides])
    vllm_checks.check_vllm_adapter(config, stage, base, folder)


def write_config(folder: Path, original: Path, **options: Any) -> Path:
    folder.mkdir()
    for file in original.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    written = json.loads((original / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(written | options))
    return folder


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"r": 513}, "rank"),
        ({"target_modules": ["q_proj", "lm_head"]}, "it is on lm_head"),
        ({"target_modules": ["embed_tokens"]}, "it is on model.embed_tokens"),
        ({"target_modules": ".*embed_tokens"}, "it is on model.embed_tokens"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_adapter_that_vllm_does_not_take(options, reason, machine, base, adapters, tmp_path) -> None:
    folder = write_config(tmp_path / "adapter", adapters["sft"], **options)
    for stage in ("ppo", "best"):
        with pytest.raises(UserError) as caught:
            check_adapter(base, stage, folder, VLLM)
        check_message(
            str(caught.value),
            f"{folder}: vllm does not take this adapter: ",
            reason,
            "set ppo.rollout.engine to auto",
        )
    check_adapter(base, "rm", folder, VLLM)
    check_adapter(base, "ppo", folder)


def test_adapter_of_the_sft_stage_is_taken(machine, base, adapters) -> None:
    check_adapter(base, "ppo", adapters["sft"], VLLM)


def test_embeddings_are_found_by_what_they_are(machine) -> None:
    """Their names differ between bases. The first stage already says so, before it trains."""
    base = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(
        UserError, match=r"^ppo.rollout.engine: vllm takes no adapter on transformer.wte; leave"
    ):
        check_adapter(base, "sft", None, VLLM, "adapter.target_modules=[c_attn, wte]")
    check_adapter(base, "sft", None, VLLM, "adapter.target_modules=[c_attn, wpe]")
    check_adapter(base, "sft", None, "adapter.target_modules=[c_attn, wte]")
