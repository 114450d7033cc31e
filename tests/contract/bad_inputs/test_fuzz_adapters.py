"""Whatever an adapter's config says, a role is what PEFT makes of it, or the adapter is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from stages.models.adapter_checks import USED
from tests.contract.bad_inputs.fuzzing import contents, mutated, quick, scalars, told, trees
from tests.support.roles import role_output, tiny_roles

CONFIG = "adapter_config.json"
slow_to_load = settings(quick, max_examples=25)
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IDS = torch.arange(3, 40)[None]
DEFAULTS = LoraConfig().to_dict()
keys = st.sampled_from([*sorted(DEFAULTS.keys() | USED.keys()), "of_a_later_version"])
values = (
    trees
    | scalars
    | st.sampled_from(
        [
            1,
            2,
            4,
            8,
            0.5,
            "4",
            "8",
            "all-linear",
            ".*_proj",
            "(",
            "*",
            "layers",
            "([a-z._0-9]+)+!",
            [0],
            [1, 0],
            [[0, 2]],
            list(LAYERS),
            ["q_proj"],
            {"q_proj": 4},
            True,
            "CAUSAL_LM",
            "causal_lm",
            "SEQ_CLS",
            "LORA",
            "lora",
            "IA3",
            "LOHA",
            "ADALORA",
            "PROMPT_TUNING",
            "VERA",
            "none",
            "all",
            "gaussian",
            "orthogonal",
            "0.21.0",
            "9.9.9",
            "bad version",
            -1,
            0,
            10**9,
            -0.5,
            1.5,
        ]
    )
)


@pytest.fixture(scope="module")
def folder(adapters, tmp_path_factory):
    copy = tmp_path_factory.mktemp("fuzz") / "adapter"
    shutil.copytree(adapters["sft"], copy)
    return copy


@pytest.fixture(scope="module")
def written(adapters) -> dict:
    return json.loads((adapters["sft"] / CONFIG).read_text())


def check_role(folder, tiny_folder) -> None:
    with told():
        roles = tiny_roles(quantization="none").eval()
        roles.add_from("policy", folder, trainable=False)
        assert roles.role_parameters("policy")
        base = AutoModelForCausalLM.from_pretrained(tiny_folder)
        with torch.no_grad():
            expected = PeftModel.from_pretrained(base, str(folder)).eval()(input_ids=IDS).logits
            torch.testing.assert_close(role_output(roles, "policy", IDS), expected)


@slow_to_load
@given(changes=st.dictionaries(keys, values, min_size=1, max_size=2))
def test_values(folder, written, tiny_folder, changes):
    (folder / CONFIG).write_text(json.dumps(written | changes))
    check_role(folder, tiny_folder)


@slow_to_load
@given(left_out=st.sets(keys, min_size=1, max_size=3))
def test_keys_left_out(folder, written, tiny_folder, left_out):
    (folder / CONFIG).write_text(
        json.dumps({key: value for key, value in written.items() if key not in left_out})
    )
    check_role(folder, tiny_folder)


@slow_to_load
@given(
    content=contents
    | trees.map(lambda tree: json.dumps(tree).encode())
    | mutated(json.dumps({"r": 4, "peft_type": "LORA"}).encode())
)
def test_bytes(folder, tiny_folder, content):
    (folder / CONFIG).write_bytes(content)
    check_role(folder, tiny_folder)
