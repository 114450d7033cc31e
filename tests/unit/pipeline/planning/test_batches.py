"""Batch arithmetic against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import UserError
from pipeline.planning.batches import batches, check_batches
from tests.support.pipeline_runs import toy


def rows(path: Path, count: int) -> str:
    path.write_text('{"prompt": "p"}\n' * count + "\n")
    return str(path)


def test_sft(tmp_path: Path) -> None:
    # 110 rows less 10 held out are 100; twice that in batches of 16 are 12.5 steps, rounded as by hand to 12.
    config = toy(
        data__sft__path=rows(tmp_path / "a.jsonl", 110),
        data__sft__held_out=10,
        sft__epochs=2.0,
        sft__batch_size=16,
        sft__micro_batch_size=3,
        data__max_length=100,
        data__max_prompt_length=50,
    )
    sizes = batches(config, "sft", world=2)
    assert (sizes.steps, sizes.about, sizes.sequences) == (12, True, 16)
    # Each of 2 ranks takes 8, in passes of 3, 3 and 2.
    assert (sizes.micro_batches, sizes.micro_batch, sizes.tokens) == (3, 3, 300)


def test_max_steps_settles_the_number(tmp_path: Path) -> None:
    config = toy(data__sft__path=rows(tmp_path / "a.jsonl", 1000), sft__batch_size=10, sft__max_steps=5)
    assert (batches(config, "sft", 1).steps, batches(config, "sft", 1).about) == (5, False)


def test_hub_data_has_no_known_number_of_steps() -> None:
    assert batches(toy(data__sft__path="owner/dataset"), "sft", 1).steps is None


def test_rows_of_tables_and_of_patterns_are_counted(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", 30)
    rows(tmp_path / "b.jsonl", 20)
    (tmp_path / "c.csv").write_text("prompt,completion\n" + "p,c\n" * 50)
    table = pa.Table.from_pylist([{"prompt": "p", "completion": "c"}] * 50)
    pq.write_table(table, tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes(b"PAR1")
    steps = {}
    for name in ("*.jsonl", "c.csv", "d.parquet", "e.parquet", "none*"):
        source = {"data__sft__path": f"{tmp_path}/{name}", "data__sft__held_out": 0}
        steps[name] = batches(toy(**source, sft__epochs=1.0, sft__batch_size=5), "sft", 1).steps
    assert steps == {"*.jsonl": 10, "c.csv": 10, "d.parquet": 10, "e.parquet": None, "none*": None}


def test_rm_counts_completions() -> None:
    # 8 prompts of 4 completions; a micro-batch of 10 sequences holds 2 whole prompts.
    config = toy(rm__batch_size=8, rm__micro_batch_size=10, rm__rankings__labeller="warmth")
    sizes = batches(config, "rm", world=1)
    assert (sizes.sequences, sizes.micro_batches, sizes.micro_batch) == (32, 4, 8)


def test_ppo() -> None:
    # 10 iterations of 3 passes over 2 minibatches of 16 sequences; of 4 ranks, each takes 4: 3 and then 1.
    config = toy(
        ppo__iterations=10, ppo__epochs=3, ppo__batch_size=32, ppo__minibatches=2, ppo__micro_batch_size=3
    )
    sizes = batches(config, "ppo", world=4)
    assert (sizes.steps, sizes.sequences, sizes.micro_batches, sizes.micro_batch) == (60, 16, 2, 3)


def test_shared_source_is_divided(tmp_path: Path) -> None:
    path = rows(tmp_path / "all.jsonl", 100)
    config = toy(
        data__sft__path=path,
        data__rm__path=path,
        data__ppo__path=path,
        data__rm__held_out=0,
        rm__batch_size=4,
    )
    assert batches(config, "rm", 1).steps == 10, "a share of 0.4 of 100 rows in batches of 4"


@pytest.mark.parametrize("stage", ["sft", "rm", "ppo"])
def test_batch_must_divide_among_ranks(stage) -> None:
    config = toy(**{f"{stage}__batch_size": 6})
    check_batches(config, stage, 3)
    with pytest.raises(UserError, match=f"{stage}.batch_size: 6 .* 4 ranks.* such as 8"):
        check_batches(config, stage, 4)


def test_demonstrations_of_an_update_must_divide_among_ranks() -> None:
    config = toy(ppo__batch_size=8, ppo__ptx_coef=0.5, ppo__ptx_batch_size=6)
    check_batches(config, "ppo", 2)
    with pytest.raises(UserError, match=r"ppo\.ptx_batch_size: 6 .* 4 ranks.* such as 8"):
        check_batches(config, "ppo", 4)


def test_minibatch_must_divide_among_ranks() -> None:
    config = toy(ppo__batch_size=8, ppo__minibatches=4)
    check_batches(config, "ppo", 2)
    with pytest.raises(UserError, match=r"a minibatch of 2 .* 4 ranks"):
        check_batches(config, "ppo", 4)
