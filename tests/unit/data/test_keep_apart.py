"""No prompt that a stage trains on is held out by it or by another stage, for random mixtures."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from configs.schema import STAGES, Experiment, Stage
from data.examples import StageData, kind_of, ranked_by_people
from data.sources.split import prompt_key, stage_split
from data.sources.unit import unit
from tests.support.pipeline_runs import TREE

Row = dict[str, Any]
PROMPTS = st.sampled_from([f"prompt {number}" for number in range(16)])
SPACES = st.sampled_from(["", " ", "\n"])  # which are no difference


@st.composite
def ranking(draw: st.DrawFn) -> Row:
    answers = draw(st.lists(st.sampled_from("abcd"), min_size=2, max_size=3, unique=True))
    return {"prompt": draw(PROMPTS) + draw(SPACES), "completions": answers}


@st.composite
def conversation(draw: st.DrawFn) -> Row:
    turns = [
        {"role": role, "content": text}
        for asked in draw(st.lists(PROMPTS, min_size=1, max_size=3))
        for role, text in (("user", asked), ("assistant", "a"))
    ]
    return {"messages": turns}


FILES = st.lists(st.lists(ranking(), min_size=1, max_size=14), min_size=2, max_size=4)
HELD_OUT = st.sampled_from([0, 0.2, 0.5, 1, 3])


@st.composite
def sources(draw: st.DrawFn, files: int) -> list[Row]:
    numbers = draw(st.lists(st.integers(0, files - 1), min_size=1, max_size=3, unique=True))
    return [
        {
            "path": f"{number}.jsonl",
            "held_out": draw(HELD_OUT if place == 0 else HELD_OUT | st.just("all")),
            "limit": draw(st.sampled_from([None, 2, 6])),
            "weight": draw(st.sampled_from([1, 0.5, 2])),
        }
        for place, number in enumerate(numbers)
    ]


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[list[Row]], Row]:
    """Files, the last of which has conversations and is of SFT alone, and the section `data`."""
    files = draw(FILES)
    data: Row = {stage: draw(sources(len(files))) for stage in STAGES}
    if draw(st.booleans()):
        data["sft"] = [
            *data["sft"],
            {"path": f"{len(files)}.jsonl", "held_out": draw(HELD_OUT | st.just("all"))},
        ]
    files = [*files, draw(st.lists(conversation(), min_size=1, max_size=8))]
    data["shares"] = draw(
        st.sampled_from([{"sft": 0.2, "rm": 0.4, "ppo": 0.4}, {"sft": 0.5, "rm": 0.3, "ppo": 0.1}])
    )
    data["train_on"] = draw(st.sampled_from(["all", "last"]))
    return files, data


def experiment(folder: Path, files: list[list[Row]], data: Row) -> Experiment:
    for number, rows in enumerate(files):
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    placed = data | {
        stage: [source | {"path": str(folder / source["path"])} for source in data[stage]] for stage in STAGES
    }
    return Experiment.model_validate(TREE | {"data": placed})


def asked(row: Row, train_on: str) -> set[str]:
    """The prompts whose answers in a row are learned or judged, by another way than the code's."""
    found = {prompt_key(row["prompt"] or row.get("completion", ""))}
    if train_on == "all":
        for position in row.get("learned", []):
            found.add(prompt_key(row["prompt"][:position]))
    return found


def sides(config: Experiment, stage: Stage) -> tuple[set[str], set[str]] | None:
    """The prompts that a stage trains on, and that it holds out; None if it refuses the data."""
    try:
        train, held_out, _ = StageData(config, stage, lambda note: None).rows(kind_of(config, stage))
    except UserError:
        return None
    train_on = config.data.train_on
    return tuple(set().union(*(asked(row, train_on) for row in rows)) for rows in (train, held_out))  # type: ignore[return-value]


@given(mixtures())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_prompt_is_trained_on_and_held_out(tmp_path_factory: pytest.TempPathFactory, mixture: Any) -> None:
    config = experiment(tmp_path_factory.mktemp("mixture"), *mixture)
    found = {stage: both for stage in STAGES if (both := sides(config, stage))}
    assume(len(found) > 1)
    for one, other in product(found, found):
        assert not found[one][0] & found[other][1], f"{one} trains on what {other} holds out"


def rows(*numbers: int) -> list[Row]:
    return [{"prompt": f"prompt {number}", "completions": ["a", "b"]} for number in numbers]


def of_stages(folder: Path, sft: Row, rm: Row, ppo: Row, **keys: Any) -> Experiment:
    """Each stage reads the same 40 prompts, from a file of its own."""
    stages = {"sft": [sft], "rm": [rm], "ppo": [ppo]}
    data = {stage: [{"path": f"{i}.jsonl"} | of[0]] for i, (stage, of) in enumerate(stages.items())}
    return experiment(folder, [rows(*range(40))] * 3, data | keys)


def test_the_property_can_fail(tmp_path: Path) -> None:
    config = of_stages(tmp_path, {"held_out": 4}, {"held_out": 8}, {"held_out": 12}, keep_apart=False)
    sft, rm = sides(config, "sft"), sides(config, "rm")
    assert sft and rm and sft[0] & rm[1]


def test_a_later_stage_follows_the_sides_of_earlier_ones(tmp_path: Path) -> None:
    """SFT trains on 36 of the prompts, so the reward model can hold out no more than the other 4."""
    config = of_stages(tmp_path, {"held_out": 4}, {"held_out": 8}, {"held_out": 2})
    found = {stage: sides(config, stage) for stage in STAGES}
    assert found["sft"] and found["rm"] and found["ppo"]
    assert found["rm"][1] == found["sft"][1] and len(found["rm"][1]) == 4
    # Two of the four are held out by PPO. The other two are in no training.
    assert found["ppo"][1] < found["sft"][1] and (len(found["ppo"][0]), len(found["ppo"][1])) == (36, 2)


def test_fewer_held_out_prompts_than_asked_for_are_noted(tmp_path: Path) -> None:
    config = of_stages(tmp_path, {"held_out": 4}, {"held_out": 8}, {})
    notes: list[str] = []
    StageData(config, "rm", notes.append).rows("prompts")
    assert any(note.startswith("data.rm: 4 prompts fewer are held out than held_out asks") for note in notes)


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    config = of_stages(tmp_path, {"held_out": 4}, {"held_out": 4}, {"held_out": 1})
    notes: list[str] = []
    counts = StageData(config, "ppo", notes.append).rows("prompts").counts
    assert counts["rows_kept_apart"] == 3
    assert any("3 dropped, to keep prompts apart from other stages" in note for note in notes)


def test_no_prompt_left_to_hold_out_is_refused(tmp_path: Path) -> None:
    config = of_stages(tmp_path, {"held_out": 0}, {"held_out": 4}, {})
    with pytest.raises(UserError, match=r"^data\.rm: .* earlier stages train on all of them, which leaves"):
        StageData(config, "rm", print).rows("prompts")


def test_no_prompt_left_to_train_on_is_refused(tmp_path: Path) -> None:
    data = {
        "sft": [{"path": "0.jsonl", "held_out": 30}],
        "rm": [{"path": "1.jsonl"}],
        "ppo": [{"path": "2.jsonl"}],
    }
    files = [rows(*range(40)), rows(0), rows(99)]
    of_sft = sides(experiment(tmp_path, files, data), "sft")
    assert of_sft
    files[1] = [{"prompt": prompt, "completions": ["a", "b"]} for prompt in sorted(of_sft[1])[:3]]
    config = experiment(tmp_path, files, data)
    with pytest.raises(UserError, match=r"^data\.rm: .* earlier stages hold all of them out, which leaves"):
        StageData(config, "rm", print).rows("prompts")


def test_a_turn_is_context_if_its_prompt_is_held_out(tmp_path: Path) -> None:
    """A first turn asks what a row of its own asks. It is learned only if that row is trained on."""
    turns = [
        {
            "messages": [
                {"role": "user", "content": f"prompt {number}"},
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": "And then?"},
                {"role": "assistant", "content": "b"},
            ]
        }
        for number in range(40)
    ]
    data = {"sft": [{"path": "0.jsonl", "held_out": 10}, {"path": "1.jsonl", "held_out": 0}]}
    data |= {stage: [{"path": "2.jsonl"}] for stage in ("rm", "ppo")}
    config = experiment(tmp_path, [rows(*range(40)), turns, rows(99)], data)
    notes: list[str] = []
    train, held_out, counts = StageData(config, "sft", notes.append).rows("demonstrations")
    conversations = [row for row in train if row["source"] == "1"]
    judged = {row["prompt"] for row in held_out}
    assert len(conversations) == 40 and counts["turns_kept_apart"] == 10
    for row in conversations:
        assert row["learned"] == ([] if row["prompt"][0]["content"] in judged else [1])


def under(system: str, row: Row) -> Row:
    """The row with a system message before its prompt."""
    turns = [{"role": "system", "content": system}, {"role": "user", "content": row["prompt"]}]
    return row | {"prompt": turns}


@pytest.mark.parametrize("systems", [("", "Be brief."), ("Be brief.", ""), ("Be brief.", "Be kind.")])
def test_a_question_is_kept_apart_whatever_its_system_message(tmp_path: Path, systems: Any) -> None:
    """SFT trains on 36 of 40 questions; what it holds out is all that PPO may hold out of them."""
    plain = rows(*range(40))
    files = [[under(one, row) if one else row for row in plain] for one in systems]
    held_out = {"sft": 4, "rm": 0, "ppo": 12}
    places = {"sft": "0.jsonl", "rm": "2.jsonl", "ppo": "1.jsonl"}
    data = {stage: [{"path": path, "held_out": held_out[stage]}] for stage, path in places.items()}
    config = experiment(tmp_path, [*files, rows(*range(50, 60))], data)
    found = {}
    for stage in ("sft", "ppo"):
        split = StageData(config, stage, print).rows(kind_of(config, stage))
        found[stage] = [
            {
                row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
                for row in part
            }
            for part in split[:2]
        ]
    assert len(found["sft"][0]) == 36
    assert found["ppo"][1] == found["sft"][1] and not found["ppo"][0] & found["sft"][1]


def test_within_a_stage_the_hash_sees_the_system_message() -> None:
    """A run that was split before is split the same way."""
    data = Experiment.model_validate(TREE).data
    split_rows = [under(system, row) for row in rows(*range(40)) for system in ("Be brief.", "Be kind.")]
    keys = [prompt_key(row["prompt"]) for row in split_rows]
    split = stage_split(data, "sft", split_rows, 0)
    chosen = sorted(keys, key=lambda key: unit(0, "held_out", key))[: len(split.held_out)]
    assert chosen and {prompt_key(row["prompt"]) for row in split.held_out} == set(chosen)


def test_a_source_that_is_gone_is_named(tmp_path: Path) -> None:
    config = of_stages(tmp_path, {}, {}, {})
    (tmp_path / "0.jsonl").unlink()
    notes: list[str] = []
    found = StageData(config, "rm", notes.append).rows("prompts")
    assert found.counts["stages_not_compared"] == 1
    assert any(
        note.startswith("data.rm: its prompts are not compared with those of data.sft: ") for note in notes
    )


def test_near_duplicates_are_counted_and_stay(tmp_path: Path) -> None:
    text = "please write a short poem about the sea and the small boats that sail on it in spring number"
    near = [{"prompt": f"{text.upper()}, {number}!", "completions": ["a", "b"]} for number in range(20)]
    plain = [{"prompt": f"{text} {number}", "completions": ["a", "b"]} for number in range(20)]
    data = {"sft": [{"path": "0.jsonl", "held_out": 0}, {"path": "1.jsonl", "held_out": 5}]}
    data |= {stage: [{"path": "2.jsonl"}] for stage in ("rm", "ppo")}
    config = experiment(tmp_path, [near, plain, rows(99)], data)
    notes: list[str] = []
    found = StageData(config, "sft", notes.append).rows("demonstrations")
    assert found.counts["near_duplicates"] == len(found.held_out) == 5
    (note,) = (note for note in notes if "nearly repeat" in note)
    assert note.count(" held out, ") == 3 and "None is removed" in note


def test_a_sample_of_many_prompts_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("data.examples", "data.sources.near_duplicates"):
        monkeypatch.setattr(f"{module}.MOST", 3)
    data: Row = {stage: [{"path": "0.jsonl", "held_out": 4}] for stage in STAGES}
    notes: list[str] = []
    StageData(experiment(tmp_path, [rows(*range(30))], data), "rm", notes.append).rows("rankings")
    said = [note for note in notes if note.startswith("data.near_duplicates: 3 of ")]
    assert said[0].endswith(" training prompts were compared")
    assert said[1] == "data.near_duplicates: 3 of 4 held-out prompts were compared"


def test_ppo_stays_apart_from_what_people_ranked(tmp_path: Path) -> None:
    """They may have ranked answers to prompts that are not in data.rm."""
    config = of_stages(tmp_path, {"held_out": 0}, {"held_out": 0}, {"held_out": 8})
    of_ppo = [f"prompt {number}" for number in range(100, 140)]
    (tmp_path / "2.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in of_ppo))
    first = StageData(config, "ppo", print).rows("prompts")
    learned, unlearned = first.held_out[0]["prompt"], first.train[0]["prompt"]
    answers = {"completions": ["a", "b"], "ranks": [0, 1]}
    ranked = [
        {"split": split, "prompt": prompt, **answers}
        for split, prompt in (("train", learned), ("held_out", unlearned))
    ]
    rankings = config.rm.rankings.model_copy(update={"labeller": "people"})
    config = config.model_copy(update={"rm": config.rm.model_copy(update={"rankings": rankings})})
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm/rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ranked))
    file = ranked_by_people(config, "ppo", tmp_path)
    train, held_out, _ = StageData(config, "ppo", print, ranked=file).rows("prompts")
    assert learned not in {row["prompt"] for row in held_out}
    assert unlearned in {row["prompt"] for row in held_out} and len(held_out) == 8
    assert {row["prompt"] for row in train} | {row["prompt"] for row in held_out} == set(of_ppo)
    assert ranked_by_people(config, "rm", tmp_path) is None
