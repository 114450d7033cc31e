"""Several sources of a stage: labels, copies, weights, and the counts of each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.schema import Experiment
from data.examples import StageData
from data.preview import rows_of
from data.sources.mixture import first_of_each, label_of, repeated
from data.sources.split import weighted
from tests.support.pipeline_runs import TREE

Row = dict[str, Any]


def experiment(folder: Path, files: Mapping[str, Sequence[Row]], **data: Any) -> Experiment:
    """The toy experiment with these files in `folder`, and with these keys of `data`."""
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = {stage: {"path": str(folder / f"{stage}.jsonl")} for stage in ("sft", "rm", "ppo")}
    return Experiment.model_validate(TREE | {"data": others | data})


def demonstrations(*numbers: int, answer: str = "a") -> list[Row]:
    return [{"prompt": f"p{number}", "completion": answer} for number in numbers]


def read(config: Experiment, stage: Any = "sft") -> tuple[list[Row], list[Row], dict[str, int], list[str]]:
    notes: list[str] = []
    kind: Any = "demonstrations" if stage == "sft" else "prompts"
    return *StageData(config, stage, notes.append).rows(kind), notes


def two(folder: Path, **keys: Any) -> Experiment:
    """20 demonstrations of the first source; 4 of the second are copies, 6 have other answers, 10 are new."""
    second = demonstrations(*range(4)) + demonstrations(*range(4, 10), *range(20, 30), answer="b")
    files = {"one.jsonl": demonstrations(*range(20)), "two.jsonl": second}
    sources = [{"path": str(folder / name), "held_out": 0} for name in files]
    return experiment(folder, files, sft=[sources[0], sources[1] | keys])


def test_copies_are_dropped_and_the_same_prompt_with_another_answer_stays(tmp_path: Path) -> None:
    train, held_out, counts, notes = read(two(tmp_path))
    assert Counter(row["source"] for row in train) == {"one": 20, "two": 16} and not held_out
    assert counts["rows_repeated"] == 4 and counts["rows_of_known_prompts"] == 6
    assert counts["sources/two/rows_train"] == 16 and counts["sources/one/rows_read"] == 20
    assert notes[-2:] == [
        "data.sft[0]: 20 rows read, 0 left out, 0 of other stages; 20 to train on, 0 held out",
        "data.sft[1]: 20 rows read, 0 left out, 0 of other stages, 4 dropped, which another source has; "
        "16 to train on, 0 held out; 6 have a prompt of an earlier source, and other answers",
    ]


def test_rows_that_are_left_out_are_counted_by_reason(tmp_path: Path) -> None:
    """Of each source and over all: empty rows, rankings that tie, and answers labelled bad."""
    pairs: list[Row] = [{"prompt": f"p {n}", "chosen": "a", "rejected": "b"} for n in range(200)]
    files = {
        "bad.jsonl": [*demonstrations(*range(5)), {"prompt": "q", "completion": "c", "label": False}],
        "empty.jsonl": [*demonstrations(*range(50, 250)), {"prompt": "", "completion": "c"}],
        "tied.jsonl": [*pairs, {"prompt": "q", "completions": ["a", "b"], "ranks": [0, 0]}],
    }
    bad, empty, tied = ({"path": str(tmp_path / name), "held_out": 0} for name in files)
    config = experiment(tmp_path, files, sft=[bad, empty], rm=[tied])
    _, _, counts, _ = read(config)
    assert counts["rows_left_out"] == 2 and counts["rows_unwanted"] == counts["rows_unusable"] == 1
    assert counts["sources/bad/rows_unwanted"] == counts["sources/empty/rows_unusable"] == 1
    assert "rows_tied" not in counts and "sources/bad/rows_unusable" not in counts
    of_rankings = StageData(config, "rm", lambda _: None).rows("rankings").counts
    assert of_rankings["rows_left_out"] == of_rankings["rows_tied"] == 1


def test_prompts_of_several_sources_are_asked_once(tmp_path: Path) -> None:
    files = {
        "a.jsonl": [{"prompt": f"p{n}"} for n in range(6)],
        "b.jsonl": [{"prompt": " p3\n"}, {"prompt": "q"}],
    }
    sources = [{"path": str(tmp_path / name), "held_out": 0} for name in files]
    config = experiment(tmp_path, files, ppo=sources, keep_apart=False)
    train, _, counts, _ = read(config, "ppo")
    assert [row["prompt"] for row in train] == ["p0", "p1", "p2", "p3", "p4", "p5", "q"]
    assert counts["rows_repeated"] == 1


@pytest.mark.parametrize(("weight", "expected"), [(1, 16), (2, 32), (0.5, 8), (2.25, 36)])
def test_a_weight_is_how_often_the_rows_of_a_source_are_seen(
    tmp_path: Path, weight: float, expected: int
) -> None:
    train, *_ = read(two(tmp_path, weight=weight))
    of_second = [json.dumps(row) for row in train if row["source"] == "two"]
    assert len(of_second) == expected
    times = set(Counter(of_second).values())
    assert times <= {int(weight), int(weight) + 1}
    assert [json.dumps(row) for row in read(two(tmp_path, weight=weight))[0]] == [
        json.dumps(row) for row in train
    ]


@pytest.mark.parametrize("weight", [2, 2.25, 0.5])
def test_a_prompt_that_is_asked_once_counts_as_often_as_a_row_is_seen(tmp_path: Path, weight: float) -> None:
    config = two(tmp_path, weight=weight)
    once = StageData(config, "sft", lambda _: None).rows("demonstrations", once=True).train
    assert len(once) == len(set(map(json.dumps, once))) == 20 + min(weight, 1) * 16
    assert repeated(config.data, "sft", once, config.seed) == read(config)[0]


def test_a_weight_that_leaves_no_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.sft\[1\].weight: 0.01 of 16 rows leaves none to train on"):
        read(two(tmp_path, weight=0.01))


def test_which_rows_a_weight_repeats_depends_on_the_seed_and_not_on_the_order() -> None:
    rows = [{"prompt": f"p{number}", "completion": "a"} for number in range(40)]

    def chosen(seed: int, order: Sequence[Row]) -> set[str]:
        return {row["prompt"] for row in weighted(order, 0.5, seed)}

    assert chosen(0, rows) == chosen(0, rows[::-1]) != chosen(1, rows)
    assert len(chosen(0, rows)) == 20


def test_each_source_holds_out_its_own_share(tmp_path: Path) -> None:
    files = {
        f"{name}.jsonl": demonstrations(*range(start, start + 40)) for name, start in (("a", 0), ("b", 40))
    }
    sources = [
        {"path": str(tmp_path / name), "held_out": held_out}
        for name, held_out in zip(files, (0.25, 5), strict=True)
    ]
    train, held_out, counts, _ = read(experiment(tmp_path, files, sft=sources))
    assert Counter(row["source"] for row in held_out) == {"a": 10, "b": 5}
    assert counts["sources/a/rows_held_out"] == 10 and counts["sources/b/rows_train"] == 35
    assert len(train) == 65


def test_sources_of_one_name_are_numbered_and_a_label_names_one(tmp_path: Path) -> None:
    sources = [{"path": "x/train.jsonl"}, {"path": "y/train.jsonl"}, {"path": "z/a b.csv.gz"}]
    sources += [{"path": "d/*.jsonl"}, {"path": "org/Set", "label": "mine"}]
    config = experiment(tmp_path, {}, sft=sources)
    labels = [part.label for part in config.data.parts("sft")]
    assert labels == ["train-1", "train-2", "a-b", "d", "mine"]
    assert [part.key for part in config.data.parts("sft")][-1] == "data.sft[4]"


def test_a_preview_shows_each_source(tmp_path: Path) -> None:
    config = two(tmp_path)
    rows = rows_of(config, "sft", "demonstrations", print)
    assert [row["source"] for row in first_of_each(rows, 5, label_of)] == ["one", "two"] * 2 + ["one"]
    of_one = [row for row in rows if row["source"] == "one"]
    assert first_of_each(of_one, 5, label_of) == of_one[:5]


def test_one_source_has_no_label(tmp_path: Path) -> None:
    config = experiment(tmp_path, {"sft.jsonl": demonstrations(*range(20))})
    train, _, counts, _ = read(config)
    assert "source" not in train[0]
    assert counts.keys() == {"rows_read", "rows_left_out", "rows_of_other_stages", "near_duplicates"}


def test_a_fault_names_its_source(tmp_path: Path) -> None:
    files = {"a.jsonl": demonstrations(1, 2, 3), "b.jsonl": [{"prompt": "p"}]}
    config = experiment(tmp_path, files, sft=[{"path": str(tmp_path / name)} for name in files])
    with pytest.raises(UserError, match=r"b\.jsonl: 1 of 1 rows cannot serve as demonstrations"):
        read(config)
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "p", "completion": "c"}) + "\n")
    planned = {"data.sft[1].path": "another digest"}
    with pytest.raises(UserError, match=r"^data\.sft\[1\]\.path: .*b\.jsonl changed while"):
        StageData(config, "sft", print, planned).rows("demonstrations")


def test_a_file_of_ones_own_is_held_out_whole(tmp_path: Path) -> None:
    """Also what the other file, which stands before it, has of it: a copy, and another answer."""
    files = {"train.jsonl": demonstrations(*range(10)), "test.jsonl": demonstrations(0, 20, 21)}
    files["train.jsonl"] += demonstrations(20, answer="b")
    first, second = ({"path": str(tmp_path / name)} for name in files)
    config = experiment(tmp_path, files, sft=[first | {"held_out": 0}, second | {"held_out": "all"}])
    train, held_out, counts, _ = read(config)
    assert [row["prompt"] for row in train] == [f"p{number}" for number in range(1, 10)]
    of_test = [(row["prompt"], row["source"]) for row in held_out]
    assert of_test == [("p0", "test"), ("p20", "test"), ("p21", "test"), ("p20", "train")]
    assert counts["sources/train/rows_repeated"] == 1 and counts["sources/test/rows_held_out"] == 3


def test_a_file_of_ones_own_may_have_every_prompt_of_the_others(tmp_path: Path) -> None:
    files = {"train.jsonl": demonstrations(0, 1), "test.jsonl": demonstrations(0, 1, 2)}
    first, second = ({"path": str(tmp_path / name)} for name in files)
    config = experiment(tmp_path, files, sft=[first | {"held_out": 0}, second | {"held_out": "all"}])
    with pytest.raises(UserError, match=r"^data\.sft: .* have no prompt that the one with held_out: all has"):
        read(config)


def test_what_is_held_out_whole_is_not_trained_on_if_an_earlier_stage_learns_it(tmp_path: Path) -> None:
    files = {"sft.jsonl": demonstrations(*range(4)), "rm.jsonl": demonstrations(*range(10, 20))}
    files["test.jsonl"] = demonstrations(2, 3, 30)
    sft, rm, test = ({"path": str(tmp_path / name), "held_out": 0} for name in files)
    config = experiment(tmp_path, files, sft=sft, rm=[rm, test | {"held_out": "all"}])
    train, held_out, counts, notes = read(config, "rm")
    assert {row["prompt"] for row in train} == {f"p{number}" for number in range(10, 20)}
    assert [row["prompt"] for row in held_out] == ["p30"] and counts["rows_kept_apart"] == 2
    assert any("2 prompts fewer are held out than held_out asks for" in note for note in notes)
