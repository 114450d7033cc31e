"""How well the labellers of a published data set agree, which bounds what a reward model can reach there.

MT-Bench has a row for each judgement, so its labels are one person's. PandaLM has three votes in a row, whose
majority is the label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from configs.schema import Source
from data.people.agreement import ordered_agreement
from data.sources.bad_rows import BadRow
from data.sources.keys import opened, read_fields
from data.sources.messages import last_text
from data.sources.published import BEST_FIRST
from data.sources.reading import read
from data.sources.split import prompt_key
from stages.maths.statistics import Figure, figure, means_by

Row = dict[str, Any]
JUDGE = "judge"  # the key of MT-Bench
VOTES = ("annotator1", "annotator2", "annotator3")  # the keys of PandaLM


def judges_agree(rows: Sequence[Row], judges: Mapping[str, str]) -> Figure | None:
    """How often two judges of the same two answers order them alike, a mean over prompts.

    Of several judgements by one judge, the first counts. Judgements that tie are not among the rows.

    Args:
        rows: rankings, best first. Those of more than two answers are not compared.
        judges: who judged each row, by the row's `where`.

    Returns:
        None if no two judges ordered the same answers.
    """
    winners: dict[tuple[str, frozenset[str]], dict[str, str]] = {}
    for row in rows:
        judge, answers = judges.get(row["where"]), [last_text(answer) for answer in row["completions"]]
        if judge is not None and len(answers) == 2:
            of_pair = winners.setdefault((prompt_key(row["prompt"]), frozenset(answers)), {})
            of_pair.setdefault(judge, answers[0])
    return _mean_over_prompts(
        [
            (prompt, float(one == other))
            for (prompt, _), by_judge in winners.items()
            for one, other in combinations(by_judge.values(), 2)
        ]
    )


def voters_agree(source: Source) -> Figure | None:
    """How often two of PandaLM's three annotators order the answers alike, a mean over prompts.

    As after people's rankings, votes for a tie do not count. Rows whose three votes differ are left out as
    rankings, and count here.

    Returns:
        None if no row has three votes of which two order the answers.
    """
    columns, ignored = source.columns.names, frozenset(source.ignore_columns)
    shares = []
    for _, row in read(source):
        if isinstance(row, BadRow) or not all(key in row and key not in ignored for key in VOTES):
            continue
        fields = read_fields(opened(row, ignored, columns), ignored, columns)
        orders = [BEST_FIRST.get(fields.get(key, 0), [0, 0]) for key in VOTES]
        prompt = repr((fields.get("prompt"), fields.get("input")))
        both = [ordered_agreement(one, other) for one, other in combinations(orders, 2)]
        shares += [(prompt, share) for share in both if share is not None]
    return _mean_over_prompts(shares)


def _mean_over_prompts(shares: Sequence[tuple[str, float]]) -> Figure | None:
    """The mean and interval over prompts of `(prompt, share)`; None without any."""
    if not shares:
        return None
    return figure(means_by([prompt for prompt, _ in shares], [share for _, share in shares]))
