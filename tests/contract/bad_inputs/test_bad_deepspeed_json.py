"""DeepSpeed JSON files that no stage can follow: the message of `tristage plan` about each."""

from __future__ import annotations

import json

import pytest

from tests.contract.bad_inputs.entry import VALID, check_message, experiment, plan_error, tristage

ZERO = [
    (None, "cannot read", "No such file or directory; name a DeepSpeed JSON"),
    (b"{stage: 2}", "not JSON: Expecting property name"),
    (b"\xff\xfe", "not UTF-8 at byte 0"),
    (b"[1]", "must hold a JSON object, not [1]"),
    (b"[" * 100000, "nested too deeply"),
    (b'{"steps_per_print": NaN}', "NaN is not a JSON number"),
    (b'{"zero_optimization": {}, "zero_optimization": {"stage": 3}}', "'zero_optimization' is given twice"),
    (b'{"train_batch_size": 8}', "train_batch_size: set <stage>.batch_size in the experiment instead"),
    (b'{"bf16": {"enabled": true}}', "bf16: set base.compute_dtype in the experiment instead"),
    (b'{"zero_optimisation": {"stage": 3}}', "unsupported key; did you mean zero_optimization?"),
    *(
        (f'{{"{key}": {{"enabled": true}}}}'.encode(), f"{key}: unknown or unsupported key; ")
        for key in (
            *("elasticity", "compression_training", "sparse_gradients", "curriculum_learning", "autotuning"),
            *("progressive_layer_drop", "data_efficiency", "hybrid_engine", "tensorboard", "flops_profiler"),
            *(
                "gradient_allreduce_op",
                "eigenvalue",
                "zero_optimization ",
                "Zero_Optimization",
                "",
                "$schema",
            ),
        )
    ),
    (b'{"wall_clock_breakdown": 1}', "wall_clock_breakdown: 1 is not allowed; write true or false"),
    (b'{"communication_data_type": "int4"}', "communication_data_type: 'int4' is not allowed; write one of"),
    (b'{"communication_data_type": [1]}', "communication_data_type: [1] is not allowed"),
    (b'{"steps_per_print": 10}', "steps_per_print: set <stage>.logging_steps in the experiment instead"),
    (json.dumps({f"k{i}": 1 for i in range(500)}).encode(), "k0: unknown or unsupported key", "and 495 more"),
    (b"{" + b" " * 2**20 + b"}", "longer than 1,048,576 bytes"),
    (b'{"zero_optimization": true}', "zero_optimization: must be an object"),
    (b'{"zero_optimization": {"stage": 5}}', "zero_optimization.stage: 5 is not a ZeRO stage"),
    (b'{"zero_optimization": {"stage": "two"}}', "zero_optimization.stage: 'two' is not a ZeRO stage"),
    (
        b'{"zero_optimization": {"stage": 1, "overlap_comm": true}}',
        "zero_optimization.overlap_comm: DeepSpeed overlaps in stages 2 and 3 only; leave it out",
    ),
    (
        b'{"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}',
        "zero_optimization.offload_optimizer: ZeRO stage 0 does not offload; set stage 1 or above",
    ),
    (
        b'{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}',
        "'nvme' is not supported",
    ),
    (
        b'{"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}',
        "ZeRO stage 2 does not offload; set stage 3 or above",
    ),
]


@pytest.mark.parametrize(("content", "parts"), [(content, parts) for content, *parts in ZERO])
def test_deepspeed_json(content, parts, tmp_path):
    zero = tmp_path / "zero.json"
    if content is not None:
        zero.write_bytes(content)
    check_message(plan_error(tmp_path, VALID, f"deepspeed.config={zero}"), str(zero), *parts)


def test_an_error_of_deepspeed_is_a_message_too(tmp_path):
    from configs.errors import UserError
    from configs.schema import DeepSpeed
    from stages.training.optimizer import deepspeed_options

    zero = tmp_path / "zero.json"
    zero.write_text(json.dumps({"zero_optimization": {"stage": 2, "stagge": 1}}))
    with pytest.raises(UserError) as caught:
        deepspeed_options(DeepSpeed(config=str(zero)))
    check_message(str(caught.value), f"{zero}: zero_optimization.stagge: ")


def test_stage_1_is_fine(tmp_path):
    zero = tmp_path / "zero.json"
    zero.write_text('{"zero_optimization": {"stage": 1}}')
    status, _, stderr = tristage("plan", "--config", experiment(tmp_path), f"deepspeed.config={zero}")
    assert (status, stderr) == (0, "")
