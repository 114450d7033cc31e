"""LoftQ's start: the closest product to what quantization took, by PEFT's own decomposition and by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft.utils.loftq_utils import _low_rank_decomposition
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from configs.errors import UserError
from configs.schema import Adapter, Base
from stages.models.loftq import adapted_layers, check_stored, closest_product, take_up_rounding
from stages.models.roles import Roles
from stages.sampling.merged_model import merged_weight
from tests.support.roles import base_hash, role_output, tiny_roles

IDS = torch.arange(3, 40)[None]


def tiny_base(folder: Path | str = "tiny-random", quantization: str = "nf4") -> Base:
    return Base(model=str(folder), quantization=quantization, compute_dtype="float32")


def started(quantization: str = "nf4", **adapter: object) -> Roles:
    torch.manual_seed(1)
    roles = tiny_roles(quantization=quantization).eval()
    roles.add_new("policy", Adapter(**{"r": 4, "alpha": 8.0, **adapter}))
    take_up_rounding(roles, "policy", tiny_base(quantization=quantization))
    return roles


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
@pytest.mark.parametrize("rank", [1, 4, 20])
def test_the_product_is_that_of_peft(shape: tuple[int, int], rank: int) -> None:
    """PEFT takes a whole SVD. The product is unique; its factors are not."""
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    b, a = closest_product(matrix, rank)
    theirs = _low_rank_decomposition(matrix, min(rank, *shape))
    torch.testing.assert_close(b @ a, theirs["L"] @ theirs["R"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b.norm(), a.norm(), rtol=1e-3, atol=1e-3)


def test_a_rounding_of_rank_two_is_taken_up_whole() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(9, 2) @ torch.randn(2, 7)
    b, a = closest_product(matrix, 4)
    torch.testing.assert_close(b @ a, matrix, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("quantization", "rslora", "dora"),
    [("nf4", False, False), ("nf4", True, False), ("nf4", False, True), ("int8", False, False)],
)
def test_the_policy_starts_nearer_to_the_unquantized_base(
    quantization: str, rslora: bool, dora: bool, tiny_folder: Path
) -> None:
    roles = started(quantization, rslora=rslora, dora=dora)
    whole = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    for name, layer in adapted_layers(roles, "policy"):
        weight = whole.get_submodule(name).weight
        before, after = ((merged_weight(layer, role) - weight).norm() for role in ("base", "policy"))
        assert after < before
    with torch.no_grad():
        expected = whole(input_ids=IDS).logits
        near, far = ((role_output(roles, role, IDS) - expected).norm() for role in ("policy", "base"))
    assert near < far


def test_the_share_taken_up_is_told(tiny_folder: Path) -> None:
    """By hand: the squared singular values beyond the rank are what is left."""
    roles = tiny_roles().eval()
    roles.add_new("policy", Adapter(r=4, alpha=8.0))
    fit = take_up_rounding(roles, "policy", tiny_base())
    weights = load_file(tiny_folder / "model.safetensors")
    values = [
        torch.linalg.svdvals(weights[f"{name}.weight"].float() - merged_weight(layer, "base"))
        for name, layer in adapted_layers(roles, "policy")
    ]
    assert fit.before == pytest.approx(sum(float(v.square().sum()) for v in values) ** 0.5, rel=1e-4)
    assert fit.after == pytest.approx(sum(float(v[4:].square().sum()) for v in values) ** 0.5, rel=1e-4)
    assert 0 < fit.after < fit.before


def test_the_base_stays_as_it_is() -> None:
    roles = tiny_roles()
    roles.add_new("policy", Adapter(r=4))
    before = base_hash(roles)
    take_up_rounding(roles, "policy", tiny_base())
    assert base_hash(roles) == before


def test_other_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    roles = tiny_roles()
    roles.add_new("policy", Adapter(r=4))
    save_file(weights | {name: torch.randn_like(weights[name])}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"up_proj\.weight in .* is not the weight that"):
        take_up_rounding(roles, "policy", tiny_base(folder))
    save_file({key: value for key, value in weights.items() if key != name}, file, {"format": "pt"})
    for refused in (take_up_rounding, check_stored):
        with pytest.raises(UserError, match=r"adapter\.init: loftq reads .* have no model\.layers\.0"):
            refused(roles, "policy", tiny_base(folder))
