"""How rows are loaded: their places, what is left out, and what an error says about bad ones."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import UserError
from configs.schema import Columns, Source
from data.sources.loading import load_rows
from tests.support.turns import assistant, user


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))


def demonstration(number):
    return {"prompt": f"p{number}", "completion": f"c{number}"}


def refuse(message):
    raise AssertionError(f"nothing to note, but: {message}")


def test_rows_have_their_place(tmp_path):
    source = write(tmp_path / "a.jsonl", [demonstration(1), demonstration(2)])
    assert load_rows(source, "demonstrations", refuse).rows == [
        {"prompt": "p1", "completion": "c1", "where": f"{tmp_path}/a.jsonl, line 1"},
        {"prompt": "p2", "completion": "c2", "where": f"{tmp_path}/a.jsonl, line 2"},
    ]


def test_an_error_has_one_line_for_each_fault_and_the_remedy(tmp_path):
    faulty = [{"prompt": "p"}, {"body": "t"}, {"prompt": "p"}, {"prompt": "p"}]
    source = write(tmp_path / "a.jsonl", [demonstration(1), *faulty])
    with pytest.raises(UserError) as caught:
        load_rows(source, "demonstrations", refuse)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path}/a.jsonl: 4 of 5 rows cannot serve as demonstrations."
    assert lines[1] == "  line 2 and 2 more: the keys `prompt` hold no completion"
    assert lines[2] == "  line 3: no known format has these keys: `body`"
    assert "Correct or remove them. Accepted as demonstrations: `prompt` and `completion`" in lines[3]


def test_an_error_shows_five_faults(tmp_path):
    source = write(tmp_path / "a.jsonl", [{f"key{number}": 1} for number in range(7)])
    with pytest.raises(UserError) as caught:
        load_rows(source, "demonstrations", refuse)
    lines = str(caught.value).splitlines()
    assert lines[1:6] == [f"  line {n + 1}: no known format has these keys: `key{n}`" for n in range(5)]
    assert lines[6] == "  and 2 more reasons"


def test_one_unusable_row_in_a_hundred_is_left_out_and_reported(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": ""}, *map(demonstration, range(99))])
    notes: list[str] = []
    assert len(load_rows(source, "demonstrations", notes.append).rows) == 99
    assert notes == [f"{tmp_path}/a.jsonl: left out 1 of 100 rows.\n  line 1: a completion is empty"]


def test_one_unusable_row_in_fifty_is_an_error(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": ""}, *map(demonstration, range(49))])
    with pytest.raises(UserError, match=r"1 of 50 rows cannot serve.*\n  line 1: a completion is empty"):
        load_rows(source, "demonstrations", refuse)


def test_one_unreadable_row_in_a_thousand_is_an_error(tmp_path):
    source = write(tmp_path / "a.jsonl", [*map(demonstration, range(999)), {"prompt": "p"}])
    with pytest.raises(UserError, match=r"1 of 1000 rows cannot serve.*\n  line 1000: the keys"):
        load_rows(source, "demonstrations", refuse)


def test_an_unusable_row_of_rankings_may_still_be_a_prompt(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "same", "rejected": "same"}])
    assert [row["prompt"] for row in load_rows(source, "prompts", refuse).rows] == ["p"]
    with pytest.raises(UserError, match="`chosen` equals `rejected`"):
        load_rows(source, "rankings", refuse)


def test_rows_that_say_so_themselves_are_left_out_and_counted(tmp_path):
    rated = [{**demonstration(number), "label": number % 2} for number in range(10)]
    notes: list[str] = []
    loaded = load_rows(write(tmp_path / "a.jsonl", rated), "demonstrations", notes.append)
    assert [row["prompt"] for row in loaded.rows] == ["p1", "p3", "p5", "p7", "p9"]
    assert (loaded.read, loaded.left_out) == (10, 5)
    assert notes == [
        f"{tmp_path}/a.jsonl: left out 5 of 10 rows.\n  line 1 and 4 more: the answer is rated bad (`label`)"
    ]


@pytest.mark.parametrize("empty", [{}, {"label": ""}, {"label": None}, {"kto_tag": []}])
def test_rows_without_a_label_beside_rated_ones_are_counted(tmp_path, empty):
    rows = [
        {**demonstration(1), "label": True},
        {**demonstration(2), **empty},
        {**demonstration(3), "label": 0},
    ]
    source, notes = write(tmp_path / "a.jsonl", rows), list[str]()
    assert [row["prompt"] for row in load_rows(source, "demonstrations", notes.append).rows] == ["p1", "p2"]
    assert notes[-1].startswith(
        f"{tmp_path}/a.jsonl: 1 of 3 rows have no `label`, as other rows do, and count"
    )
    load_rows(source, "prompts", refuse)
    ignoring = source.model_copy(update={"ignore_columns": ("label",)})
    assert len(load_rows(ignoring, "demonstrations", refuse).rows) == 3


def test_preferences_beside_rated_answers_need_no_label(tmp_path):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    source = write(tmp_path / "a.jsonl", [{**demonstration(1), "label": True}, pair])
    assert len(load_rows(source, "demonstrations", refuse).rows) == 2


def test_answers_below_the_least_rating_are_left_out_and_counted(tmp_path):
    rated = [{**demonstration(number), "rating": number} for number in range(1, 8)]
    rated.append({"messages": [user("Sky?"), assistant("Blue.")], "rating": 6.5})
    source, notes = write(tmp_path / "a.jsonl", rated), list[str]()
    loaded = load_rows(source.model_copy(update={"min_rating": 6}), "demonstrations", notes.append)
    assert [row["prompt"] for row in loaded.rows] == ["p6", "p7", [user("Sky?")]]
    assert notes == [
        f"{tmp_path}/a.jsonl: left out 5 of 8 rows.\n  line 1 and 4 more: the answer is rated below "
        "`min_rating`"
    ]
    assert len(load_rows(source, "prompts", refuse).rows) == 8
    with pytest.raises(UserError, match="`rating` says how good the answer is; set `min_rating`"):
        load_rows(source, "demonstrations", refuse)


@pytest.mark.parametrize("rating", [{}, {"rating": "7"}, {"rating": True}, {"rating": float("nan")}])
def test_with_a_least_rating_each_row_must_have_one(tmp_path, rating):
    source = write(tmp_path / "a.jsonl", [{**demonstration(1), **rating}])
    with pytest.raises(UserError, match=r"each row needs a `rating` that is a number|NaN"):
        load_rows(source.model_copy(update={"min_rating": 1}), "demonstrations", refuse)


def test_a_source_that_is_left_out_as_a_whole_is_an_error(tmp_path):
    source = write(tmp_path / "a.jsonl", [{**demonstration(number), "label": 0} for number in range(3)])
    with pytest.raises(
        UserError, match=r"3 of 3 rows cannot serve.*\n  line 1 and 2 more: the answer is rated bad"
    ):
        load_rows(source, "demonstrations", refuse)


def test_ignored_columns_are_left_out_of_rows_and_messages(tmp_path):
    row = {"messages": [user("Sky?"), {**assistant("Blue."), "mood": "calm"}], "score": 3, "chosen": "x"}
    ignored = ("mood", "score", "chosen")
    source = write(tmp_path / "a.jsonl", [row]).model_copy(update={"ignore_columns": ignored})
    (read,) = load_rows(source, "demonstrations", refuse).rows
    assert (read["prompt"], read["completion"]) == ([user("Sky?")], [assistant("Blue.")])


@pytest.mark.parametrize("key", ["reasoning_content", "name", "tool_calls", "loss"])
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_key_of_messages_alone_can_be_ignored(tmp_path, key, ending):
    messages = [user("Sky?"), {**assistant("Blue."), key: "x"}]
    file = tmp_path / f"a.{ending}"
    if ending == "jsonl":
        file.write_text(json.dumps({"messages": messages}))
    elif ending == "csv":
        quoted = json.dumps(messages).replace('"', '""')
        file.write_text(f'messages\n"{quoted}"\n')
    else:
        pq.write_table(pa.Table.from_pylist([{"messages": messages}]), file)
    with pytest.raises(UserError, match="name it in `ignore_columns`"):
        load_rows(Source(path=str(file)), "demonstrations", refuse)
    (read,) = load_rows(Source(path=str(file), ignore_columns=(key,)), "demonstrations", refuse).rows
    assert read["completion"] == [assistant("Blue.")]


def test_an_ignored_column_that_no_row_has_is_an_error(tmp_path):
    source = write(tmp_path / "a.jsonl", [demonstration(1)]).model_copy(update={"ignore_columns": ("scor",)})
    with pytest.raises(UserError, match=r"a\.jsonl: `ignore_columns` names `scor`, which no row has"):
        load_rows(source, "demonstrations", refuse)


def test_a_row_beyond_the_limit_may_have_a_key_that_is_ignored(tmp_path):
    rows = [demonstration(1), demonstration(2), {**demonstration(3), "score": 1}]
    source = write(tmp_path / "a.jsonl", rows)
    limited = source.model_copy(update={"ignore_columns": ("score",), "limit": 2})
    assert len(load_rows(limited, "demonstrations", refuse).rows) == 2


def test_keys_that_tell_where_a_row_is_from_are_named_once(tmp_path):
    rows = [{**demonstration(n), "id": n, "topic": "Sea", "Source": "a", "notes": ""} for n in range(3)]
    source, notes = write(tmp_path / "a.jsonl", rows), list[str]()
    load_rows(source, "demonstrations", notes.append)
    assert notes == [f"{tmp_path}/a.jsonl: not read: `topic`, `Source`"]
    load_rows(source.model_copy(update={"ignore_columns": ("topic", "Source")}), "demonstrations", refuse)
    read = Columns(input="topic")
    notes.clear()
    load_rows(source.model_copy(update={"columns": read}), "demonstrations", notes.append)
    assert notes == [f"{tmp_path}/a.jsonl: not read: `Source`"]


def test_keys_of_messages_that_are_not_read_are_named(tmp_path):
    row = {"messages": [user("Sky?"), {**assistant("Blue."), "tag": "rejected", "comments": "", "id": 7}]}
    pair = {"prompt": "p", "chosen": [assistant("a")], "rejected": [{**assistant("b"), "model": "m"}]}
    source, notes = write(tmp_path / "a.jsonl", [row, row, pair]), list[str]()
    load_rows(source, "demonstrations", notes.append)
    assert notes == [f"{tmp_path}/a.jsonl: not read: `messages[].tag`, `rejected[].model`"]
    load_rows(source.model_copy(update={"ignore_columns": ("tag", "model")}), "demonstrations", refuse)


def test_the_limit_counts_the_rows_of_the_stage(tmp_path):
    source = write(tmp_path / "a.jsonl", map(demonstration, range(10))).model_copy(update={"limit": 3})
    loaded = load_rows(source, "demonstrations", refuse, lambda row: int(row["prompt"][1:]) % 2 == 1)
    assert [row["prompt"] for row in loaded.rows] == ["p1", "p3", "p5"]
    assert (loaded.read, loaded.of_other_stages) == (6, 3)  # and nothing beyond


def test_a_split_of_the_rows_own_is_ignored_with_a_note(tmp_path):
    rows = [{**demonstration(1), "split": "train"}, {**demonstration(2), "split": "test"}, demonstration(3)]
    source = write(tmp_path / "a.jsonl", rows)
    notes: list[str] = []
    assert len(load_rows(source, "demonstrations", notes.append).rows) == 3
    (note,) = notes
    assert note.startswith(f"{tmp_path}/a.jsonl: 2 rows have `split`, which is ignored: `held_out`")
    load_rows(source.model_copy(update={"ignore_columns": ("split",)}), "demonstrations", refuse)
