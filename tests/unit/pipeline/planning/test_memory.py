"""The parts of a stage's memory, against numbers worked out by hand and against what torch allocates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.planning import memory
from pipeline.planning.base_shapes import shape_of
from pipeline.planning.known_bases import KNOWN
from pipeline.planning.memory import BaseShape, Linear, Precision
from stages.models.queries import TokenQuery
from stages.models.roles import Role
from tests.support.roles import new_role, tiny_roles


def shape(config: dict) -> BaseShape:
    found = shape_of(config)
    assert found is not None
    return found


# Two layers of width 4, with two query heads and one key head of width 2, an MLP of 6, and 10 tokens.
SMALL = shape(
    {
        "hidden_size": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 6,
        "vocab_size": 10,
        "tie_word_embeddings": True,
    }
)


def test_parameters_by_hand() -> None:
    # A layer: q 4x4, k and v 4x2 each, o 4x4, three of 4x6: 16 + 16 + 16 + 72 = 120.
    assert SMALL.packable == 240
    # Embeddings 10x4, which are the head, too; two norms of each layer and the last one, of 4 each.
    assert SMALL.plain == 40 + 5 * 4
    assert SMALL.parameters == 300


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_are_those_of_transformers(name: str) -> None:
    known = shape(KNOWN[name])
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**KNOWN[name]))
    assert known.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_base_by_hand() -> None:
    # 60 parameters stay in bf16. Each of 240 takes half a byte, 1/64 for its scale, 4/16384 for the next.
    assert memory.base_bytes(SMALL, Precision("nf4", 2)) == 120 + round(240 / 64 + 240 * 4 / 16_384) + 120
    assert memory.base_bytes(SMALL, Precision("none", 4)) == 1200
    assert memory.base_bytes(SMALL, Precision("int8", 2)) == 240 + 240 + 120


def test_adapter_and_optimizer_by_hand() -> None:
    # r (in + out): q 8, k 6, v 6, o 8, and three of 10 are 58, twice over two layers.
    assert memory.adapter_parameters(SMALL, 3, None) == 2 * 3 * 58
    assert memory.adapter_parameters(SMALL, 3, ("q_proj", "v_proj")) == 2 * 3 * 14
    assert memory.optimizer_bytes(100, 0, 1) == 400 + 800  # gradients, two moments
    # ZeRO-2 on 4 ranks: a fourth of gradients, moments and fp32 copy, beside the flat parameters.
    assert memory.optimizer_bytes(100, 2, 4) == 100 + 300 + 400


def test_cache_by_hand() -> None:
    # Keys and values of width 2, 3 sequences of 8 + 32 tokens, bf16; two layers, and one while it grows.
    assert memory.cache_bytes(SMALL, 2, 3, 8) == 3 * (2 * 3 * 40 * 2 * 2)


def test_large_layers_are_not_on_the_heap() -> None:
    assert memory.merged_on_the_heap(SMALL, 4) == 240 * 4
    # Of a layer of Llama 3.2 1B in fp32, k and v have 4 MiB each, q and o 16 MiB, the MLP's three 64 MiB.
    large = shape(
        {
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 8192,
            "vocab_size": 10,
        }
    )
    assert memory.merged_on_the_heap(large, 4) == 16 * 40 * 2**20


def test_merged_copy_by_hand() -> None:
    assert memory.merged_bytes(SMALL, Precision("nf4", 4), packs=False) == 240 * 4
    assert memory.merged_bytes(SMALL, Precision("nf4", 4), packs=True) == (240 + 40) * 4


def test_logits_in_tiles_do_not_grow_with_the_vocabulary() -> None:
    def of(vocabulary: int, *, tiled: bool) -> int:
        one = BaseShape(1, 8, 1, vocabulary, 8, 8, 8, True, (Linear("q_proj", 8, 8),), 1, True, 1)
        return memory.logit_bytes(one, 4, 100, tiled=tiled, gpu=False)

    assert of(50_000, tiled=True) == of(100_000, tiled=True)
    assert of(100_000, tiled=False) == 4 * 4 * 100 * 100_000


def test_packed_weights_take_what_bitsandbytes_allocates() -> None:
    roles = tiny_roles(quantization="nf4")
    tiny = shape(roles.causal.config.to_dict())
    held = 0
    for parameter in roles.causal.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            held += state.absmax.nbytes + state.state2.absmax.nbytes
        held += parameter.nbytes
    assert memory.base_bytes(tiny, Precision("nf4", 4)) == pytest.approx(held, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_saved_activations_are_those_that_autograd_keeps(checkpointing: bool) -> None:
    roles = new_role(tiny_roles(), Role.POLICY, 0).train()
    if checkpointing:
        roles.causal.gradient_checkpointing_enable({"use_reentrant": False})
    sequences, length = 4, 64
    ids = torch.randint(3, 300, (sequences, length))
    mask = torch.ones_like(ids)
    mask[0, -8:] = 0  # padding, so that attention has a mask
    kept = saved_bytes(roles, TokenQuery(Role.POLICY, ids, mask, targets=ids[:, 1:]))
    tiny = shape(roles.causal.config.to_dict())
    tokens = sequences * length
    states = tokens * tiny.hidden * 4
    if checkpointing:  # the inputs of both layers, of the last norm and of the head
        expected = (tiny.layers + 2) * states
    else:
        layer = tokens * memory.saved_by_layer(tiny, 4, roles.lora_rank)
        expected = tiny.layers * (layer + sequences * length**2 * 4)
    assert kept == pytest.approx(expected, rel=0.03)


def saved_bytes(roles, query: TokenQuery) -> int:
    """Bytes of the tensors that a forward keeps for backward; each memory once, parameters not."""
    own = {parameter.untyped_storage().data_ptr() for parameter in roles.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        statistics = roles(query)
    assert statistics.logprobs.requires_grad
    return sum(size for _, size in kept.values())
