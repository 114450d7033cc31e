"""What an estimate of a stage's memory must do when its experiment or machine changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from configs.load import load_experiment
from configs.schema import Base, Experiment, Stage
from pipeline.planning.base_shapes import BaseShape, find_base, shape_of
from pipeline.planning.known_bases import KNOWN
from pipeline.planning.stage_memory import Rank, StageMemory, completions_of, estimate
from tests.support.pipeline_runs import toy

GIB = 2**30
CPU = Rank(gpu=False, bf16=False, available=100 * GIB)
CONFIGS = Path(__file__).resolve().parents[4] / "configs"


def of(stage="ppo", rank=CPU, base="Qwen/Qwen2.5-0.5B-Instruct", **changes) -> StageMemory:
    return estimate(toy(**changes), stage, {"base": shape(base)}, rank)


def shape(name: str) -> BaseShape:
    found = shape_of(KNOWN[name])
    assert found is not None
    return found


def test_twice_the_micro_batch_is_twice_the_activations() -> None:
    one, two = (of("sft", sft__micro_batch_size=size).phases["training"]["activations"] for size in (4, 8))
    assert two / one == pytest.approx(2, rel=0.02)


def test_checkpointing_keeps_one_layer_and_the_inputs_of_the_others() -> None:
    whole, part = (
        of("sft", base__gradient_checkpointing=on).phases["training"]["activations"] for on in (False, True)
    )
    assert part < whole / 8


def test_ppo_holds_four_adapters_and_trains_two() -> None:
    sft, ppo = of("sft").phases["training"], of("ppo").phases["training"]
    assert ppo["adapters"] == 4 * sft["adapters"]
    assert ppo["gradients and Adam"] == 2 * sft["gradients and Adam"]
    assert of("ppo", ppo__critic="shared").phases["training"]["adapters"] == 3 * sft["adapters"]


def test_adapters_that_stages_start_from_have_their_own_size(tmp_path: Path) -> None:
    names = ("sft", "rm", "ppo")
    for size, name in zip((200, 300, 400), names, strict=True):
        (tmp_path / name).mkdir()
        save_file({"a.lora_A.weight": torch.zeros(size)}, tmp_path / name / "adapter_model.safetensors")
    given = {f"{name}__from": str(tmp_path / name) for name in names}

    def adapters(stage: Stage, **changes: str) -> int:
        return of(stage, **given | changes).phases["training"]["adapters"] // 4

    assert adapters("sft") == 200
    assert adapters("rm") == 200 + 300
    assert adapters("ppo") == 400 + 200 + 2 * 300, "policy, reference, reward model and critic"
    assert adapters("ppo", ppo__reference="from") == 2 * 400 + 200 + 2 * 300, "SFT is compared at the end"
    assert of("ppo", **given).disk == 4 * (4 * 3 * (400 + 300) + 400)
    assert of("sft", sft__from=str(tmp_path)).phases == of("sft").phases, "a check says what is wrong"


def test_zero_3_shards_the_base() -> None:
    shapes = {"base": shape("Qwen/Qwen3-8B")}
    config = load_experiment(CONFIGS / "qwen3-8b.yaml")
    one, eight = (
        estimate(config, "sft", shapes, Rank(gpu=True, bf16=True, ranks=ranks)).phases["training"]["base"]
        for ranks in (1, 8)
    )
    assert eight == one // 8


def test_auto_samples_on_a_merged_copy_only_if_it_fits_twice() -> None:
    copy = of().phases["sampling"]["merged copy"]
    small = Rank(gpu=False, bf16=False, available=copy)
    assert "merged copy" not in of(rank=small).phases["sampling"]
    assert "merged copy" in of(rank=small, ppo__rollout={"engine": "merged"}).phases["sampling"]
    assert "merged copy" not in of(base__quantization="int8").phases["sampling"]


def test_truncated_sampling_needs_all_logits() -> None:
    tiled, whole = (of(ppo__rollout=rollout).phases["training"]["logits"] for rollout in ({}, {"top_k": 50}))
    assert whole > 20 * tiled


def test_disk_is_that_of_checkpoints_and_the_adapter() -> None:
    adapter = of("sft").phases["training"]["adapters"]
    # Parameters and two moments, in two checkpoints, the best one, and one that is being written.
    assert of("sft").disk == 4 * 3 * adapter + adapter
    assert of("sft", sft__keep_checkpoints=4).disk == 6 * 3 * adapter + adapter


def test_mapped_files_count_but_need_not_be_free() -> None:
    sizes = {"data__max_length": 128, "data__max_prompt_length": 64}
    stage = of("sft", base="Qwen/Qwen2.5-7B-Instruct", sft__micro_batch_size=1, **sizes)
    assert stage.peak_phase == "loading"
    assert stage.peak - stage.phases["loading"]["files of the base"] <= stage.needed.peak < stage.peak


def test_completions_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rm.jsonl"
    file.write_text(json.dumps({"prompt": "p", "completions": ["a", "b", "c"]}) + "\n")
    assert completions_of(toy(data__rm__path=str(file))) == 3
    file.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    assert completions_of(toy(data__rm__path=str(file))) == 2
    assert completions_of(toy(rm__rankings={"labeller": "warmth", "completions": 7})) == 7


# Reading the sizes of a base


def test_headers_count_exactly(tiny_folder, tmp_path) -> None:
    found = find_base(Base(model=str(tiny_folder)))
    weights = sum(file.stat().st_size for file in Path(tiny_folder).glob("*.safetensors"))
    assert found.shape is not None
    assert found.shape.stored == pytest.approx(weights, rel=0.05)
    assert (found.download, found.shape.tied) == (0, True)


@pytest.mark.parametrize(
    "config",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"hidden_size": "64"}',
        b'{"hidden_size": -1, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 1}',
        b'{"hidden_size": 1e400, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 1}',
        b'{"text_config": 3}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_damaged_config_has_no_shape(config: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(config)
    found = find_base(Base(model=str(tmp_path)))
    assert found.shape is None
    assert found.why


def test_a_damaged_header_has_no_shape(tiny_folder, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((Path(tiny_folder) / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00hello")
    assert find_base(Base(model=str(tmp_path))).shape is None


def test_a_known_base_needs_no_hub(monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr("requests.get", unreachable)
    found = find_base(Base(model="Qwen/Qwen3-8B"))
    assert found.shape == shape("Qwen/Qwen3-8B")
    assert found.download == 2 * found.shape.parameters
    unknown = find_base(Base(model="nobody/knows-it"))
    assert (unknown.shape, unknown.download) == (None, None)
    assert "the hub did not answer" in unknown.why


def test_both_bases_of_an_experiment_count() -> None:
    tree = toy().model_dump() | {"rm": {"base": {"model": "Qwen/Qwen2.5-1.5B-Instruct"}}}
    config = Experiment.model_validate(tree)
    shapes = {"base": shape("Qwen/Qwen2.5-0.5B-Instruct"), "rm.base": shape("Qwen/Qwen2.5-1.5B-Instruct")}
    assert (
        estimate(config, "ppo", shapes, CPU).phases["training"]["base"] > 2 * of().phases["training"]["base"]
    )


def two_bases(*recomputing: str) -> Experiment:
    """A small policy and a large reward model; the bases that recompute activations."""
    keys = {key: {"gradient_checkpointing": key in recomputing} for key in ("base", "rm.base")}
    rm = {"base": {"model": "Qwen/Qwen2.5-1.5B-Instruct", **keys["rm.base"]}}
    tree = toy().model_dump() | {"rm": rm}
    return Experiment.model_validate(tree | {"base": tree["base"] | keys["base"]})


def test_checkpointing_is_of_the_base_that_has_it() -> None:
    shapes = {"base": shape("Qwen/Qwen2.5-0.5B-Instruct"), "rm.base": shape("Qwen/Qwen2.5-1.5B-Instruct")}

    def activations(stage: Stage, *recomputing: str) -> int:
        return estimate(two_bases(*recomputing), stage, shapes, CPU).phases["training"]["activations"]

    assert activations("rm", "base") == activations("rm") > 8 * activations("rm", "rm.base")
    assert activations("sft", "rm.base") == activations("sft") > 8 * activations("sft", "base")
    # PPO trains both; the policy is the larger once the critic recomputes.
    assert activations("ppo", "base") == activations("ppo") > activations("ppo", "rm.base")
    for recomputing, largest in {(): "rm.base", ("rm.base",): "base"}.items():
        assert estimate(two_bases(*recomputing), "ppo", shapes, CPU).largest_base == largest


# Peaks of torch's allocator on an H200, in GiB: tests/benchmarks/peers.py on a Llama of 1.2 billion random
# weights in NF4, 16 sequences of 256 + 128 tokens in one forward (rankings: 8 of two completions each).
RECORDED = {"sft": 11.30, "rm": 7.91, "ppo": 10.92}


@pytest.mark.parametrize("stage", RECORDED)
def test_recorded_peaks_of_a_gpu(stage) -> None:
    llama = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    }
    sizes = {"data__max_length": 384, "data__max_prompt_length": 256, "ppo__rollout": {"max_new_tokens": 128}}
    micro = {f"{each}__micro_batch_size": 16 for each in RECORDED}
    found = shape_of(llama)
    assert found is not None
    parts = estimate(toy(**sizes, **micro), stage, {"base": found}, Rank(gpu=True, bf16=True)).phases[
        "training"
    ]
    # That counter leaves out the CUDA context and the memory between tensors.
    peak = sum(parts.values()) - parts["libraries"] - parts["allocator"]
    assert peak / GIB == pytest.approx(RECORDED[stage], rel=0.15)
