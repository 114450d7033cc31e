"""How far an exported classifier is from the reward model: the mean, and the order of answers."""

from __future__ import annotations

import pytest
import torch

from apps.export import formats
from apps.export.classifier_check import ScoreDifference, score_difference
from apps.export.export import write_export
from apps.export.formats import Export
from apps.trained_run import open_run
from configs.errors import UserError


def test_the_order_counts_where_scores_are_further_apart_than_the_bound() -> None:
    found = score_difference([0.0, 0.05, 1.2, 1.1], [0.05, 0.0, 1.0, 1.2], bound=0.1)
    # 0 and 1 are 0.05 apart, which is within the bound; 2 and 3 are 0.2 apart, and swapped.
    assert (found.largest, found.mean) == pytest.approx((0.2, 0.1))
    assert (found.texts, found.swapped) == (4, 1)
    assert score_difference([1.0, 1.0], [1.0, 2.0], bound=0.1).swapped == 1  # a tie is another order
    assert score_difference([1.0, 2.0], [1.0, 2.0], bound=0.1).swapped == 0


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (ScoreDifference(0.6, 0.2, 8, 0), "by 0.2 in the mean"),
        (ScoreDifference(0.6, 0.05, 8, 2), "2 pairs of answers have another order"),
    ],
)
def test_a_classifier_that_is_off_is_not_written(run_dir, tmp_path, monkeypatch, scores, message) -> None:
    monkeypatch.setattr(formats, "compare_classifier", lambda *_: scores)
    order = Export(open_run(run_dir), "rm", torch.bfloat16, say=lambda line: None)
    with pytest.raises(UserError, match=message):
        write_export(order, "reward", tmp_path / "out", overwrite=False)
    assert not (tmp_path / "out").exists()
