"""Metrics of a step over the whole global batch, from the parts that ranks have seen."""

from __future__ import annotations

from collections.abc import Mapping

from stages.distributed.ranks import Ranks
from stages.maths.statistics import Mean


def reduce_means(means: Mapping[str, Mean], ranks: Ranks) -> dict[str, float]:
    """Each mean over the terms of all ranks. Every rank must call, with the same names."""
    totals = ranks.sum({name: mean.total for name, mean in means.items()})
    counts = ranks.sum({name: mean.count for name, mean in means.items()})
    return {name: Mean(totals[name], counts[name]).value for name in means}
