"""Sizes that `plan` counts with are those that stages allocate, which only torch could import."""

from pipeline.planning import memory, stage_memory
from stages.models import token_statistics
from stages.sampling import decoding_batch, merged_model


def test_the_plan_counts_with_the_sizes_of_the_stages():
    assert memory.SPARE == decoding_batch.SPARE
    assert (memory.TILE, memory.CPU_TILE) == (token_statistics.TILE, token_statistics.CPU_TILE)
    assert stage_memory.MARGIN == merged_model.MARGIN
