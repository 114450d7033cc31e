"""Files of every type and compression hold the same rows; so do folders and patterns of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import UserError
from configs.schema import DATA_FILES, Columns, Source
from data.sources.loading import load_rows
from data.sources.reading import read
from data.storage.source_digest import source_digest

ROWS = [
    {"prompt": 'Grüße, "世界"', "completion": "a,\tb"},
    {"prompt": "two\nlines", "completion": "3"},
    {"prompt": "[1, 2]", "completion": "007"},
]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def separated(rows, delimiter=",", end="\r\n") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def json_lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


WRITE: dict[str, Callable[[Any], bytes]] = {
    "jsonl": json_lines,
    "json": lambda rows: json.dumps(rows).encode(),
    "csv": separated,
    "tsv": lambda rows: separated(rows, "\t", "\n"),
    "parquet": parquet,
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd,
    "": lambda content: content,
}


def of_file(name: str, rows) -> bytes:
    """The content of a file of that name."""
    _, kind, compression = (*name.lower().split("."), "")[:3]
    return COMPRESS[compression](WRITE[kind](rows))


def demonstrations(path, **source):
    return load_rows(Source(path=str(path), **source), "demonstrations", lambda note: None).rows


@pytest.mark.parametrize("ending", [*DATA_FILES, ".CSV", ".JSONL.GZ"])
def test_every_ending_has_the_same_rows(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    file.write_bytes(of_file(file.name, ROWS))
    rows = demonstrations(file)
    assert [{key: row[key] for key in ("prompt", "completion")} for row in rows] == ROWS
    assert all(row["where"].startswith(f"{file}, ") for row in rows)


def test_a_row_of_a_csv_file_is_named_by_the_line_on_which_it_begins(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + b"\n" + separated(ROWS, end="\n"))
    assert [row["where"].rpartition(", ")[2] for row in demonstrations(tmp_path / "a.csv")] == [
        "line 3",
        "line 4",
        "line 6",
    ]


def test_two_members_of_gzip_and_two_frames_of_zstandard_are_one_file(tmp_path):
    for ending, compress in (("gz", gzip.compress), ("zst", zstd)):
        file = tmp_path / f"a.jsonl.{ending}"
        file.write_bytes(compress(json_lines(ROWS[:1])) + compress(json_lines(ROWS[1:])))
        assert len(demonstrations(file)) == 3


def test_a_cell_without_text_is_no_value(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,chosen,rejected,foo\np,c,,,\nq,,a,b,\n")
    assert [row["completion"] for row in demonstrations(tmp_path / "a.csv")] == ["c", "a"]


def test_numbers_and_lists_of_cells_are_read_where_a_format_has_them(tmp_path):
    file = tmp_path / "a.csv"
    rows = [
        {"prompt": "3", "chosen": "4", "rejected": "5", "score_chosen": "2.5", "score_rejected": "1"},
        {"prompt": "4", "chosen": "4", "rejected": "5", "score_chosen": "2", "score_rejected": "1e0"},
    ]
    file.write_bytes(separated(rows))
    loaded = load_rows(Source(path=str(file)), "rankings", print).rows
    assert [row["scores"] for row in loaded] == [[2.5, 1.0], [2.0, 1.0]] and loaded[0]["prompt"] == "3"
    messages = [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}]
    file.write_bytes(separated([{"messages": json.dumps(messages)}]))
    assert demonstrations(file)[0]["prompt"] == messages[:1]
    file.write_bytes(separated([{"prompt": json.dumps(messages[:1]), "completion": "[Blue]"}]))
    (row,) = demonstrations(file)
    assert (row["prompt"], row["completion"]) == (
        messages[:1],
        [{"role": "assistant", "content": "[Blue]"}],
    )
    file.write_bytes(separated([{"prompt": "p", "completion": '{"from": "gpt", "value": "c"}'}]))
    assert demonstrations(file)[0]["completion"] == [{"role": "assistant", "content": "c"}]
    file.write_bytes(separated([{"prompt": "p", "completion": '{"a": 1}'}]))
    assert demonstrations(file)[0]["completion"] == '{"a": 1}'
    file.write_bytes(separated([{"prompt": "p", "completions": '["a", "b"]', "ranks": "[2, 1]"}]))
    assert load_rows(Source(path=str(file)), "rankings", print).rows[0]["completions"] == ["b", "a"]


@pytest.mark.parametrize("answer", ['["Paris", "London"]', '{"value": 3}', "{'role': 1}", '[{"from": "a"}]'])
def test_an_answer_of_a_cell_may_be_json_itself(tmp_path, answer):
    (tmp_path / "a.csv").write_bytes(separated([{"prompt": '["a"]', "completion": answer}]))
    (row,) = demonstrations(tmp_path / "a.csv")
    assert (row["prompt"], row["completion"]) == ('["a"]', answer)


def test_cells_longer_than_the_limit_of_python(tmp_path):
    (tmp_path / "a.csv").write_bytes(separated([{"prompt": "p" * 200_000, "completion": "c"}]))
    assert len(demonstrations(tmp_path / "a.csv")[0]["prompt"]) == 200_000


@pytest.mark.parametrize("ending", DATA_FILES)
def test_a_folder_and_a_pattern_are_read_in_sorted_order(tmp_path, ending):
    folder = tmp_path / "rows"
    (folder / "deep").mkdir(parents=True)
    for name, row in zip(("b", "a", "deep/c"), ROWS, strict=True):
        file = folder / f"{name}{ending}"
        file.write_bytes(of_file(file.name, [row]))
    (folder / "README.md").write_text("About these rows")
    for path in (folder, f"{folder}/**/*{ending}"):
        rows = demonstrations(path)
        assert [row["prompt"] for row in rows] == [ROWS[1]["prompt"], ROWS[0]["prompt"], ROWS[2]["prompt"]]
        place = "line 2" if "csv" in ending or "tsv" in ending else rows[0]["where"].rpartition(", ")[2]
        assert rows[0]["where"] == f"{folder}/a{ending}, {place}"
    assert len(demonstrations(f"{folder}/[ab]{ending}")) == 2


def test_the_names_of_files_say_the_split_of_a_folder(tmp_path):
    for split, row in (("train", ROWS[0]), ("test", ROWS[1])):
        (tmp_path / f"{split}.csv.gz").write_bytes(of_file("a.csv.gz", [row]))
    assert [row["prompt"] for row in demonstrations(tmp_path, split="test")] == ["two\nlines"]
    assert len(demonstrations(tmp_path, split="train+test")) == 2  # an expression, which `datasets` reads


def test_a_file_whose_name_has_the_characters_of_a_pattern(tmp_path):
    (tmp_path / "a[1].jsonl").write_bytes(json_lines(ROWS))
    assert len(demonstrations(tmp_path / "a[1].jsonl")) == 3


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("none*.jsonl", "no file has such a name. Correct the pattern"),
        ("*", "which is a folder. Narrow the pattern"),
        ("*.md", "which is no data file. Narrow the pattern"),
        ("a*", "differ in type. Narrow the pattern"),
    ],
)
def test_a_pattern_that_names_something_else_is_refused(tmp_path, pattern, part):
    for name in ("a.jsonl", "a.jsonl.gz", "b.md"):
        (tmp_path / name).write_bytes(of_file(name, ROWS) if name[0] == "a" else b"x")
    (tmp_path / "A").mkdir()
    with pytest.raises(UserError) as caught:
        demonstrations(f"{tmp_path}/{pattern}")
    assert str(caught.value).startswith(f"{tmp_path}/{pattern}: ") and part in str(caught.value)


def test_the_digest_of_a_pattern_changes_with_any_of_its_files(tmp_path):
    (tmp_path / "a.jsonl").write_text("1")
    pattern, seen = tmp_path / "*.jsonl", set()
    assert source_digest(tmp_path / "*.csv") is None
    seen.add(source_digest(pattern))
    (tmp_path / "other.txt").write_text("2")
    assert source_digest(pattern) in seen
    for change in (
        lambda: (tmp_path / "b.jsonl").write_text("1"),
        lambda: (tmp_path / "a.jsonl").write_text("2"),
        lambda: (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl"),
    ):
        change()
        assert source_digest(pattern) not in seen
        seen.add(source_digest(pattern))


def test_a_pattern_has_no_split():
    with pytest.raises(ValueError, match="split is of hub datasets and folders"):
        Source(path="data/*.jsonl", split="test")


# Damage. The message names the file and the last good row.


def refused(path, **source) -> str:
    with pytest.raises(UserError) as caught:
        demonstrations(path, **source)
    message = str(caught.value)
    assert message.startswith(str(path)) and len(message) < 600
    return message


MANY = [{"prompt": random.Random(n).randbytes(40).hex(), "completion": "c"} for n in range(2000)]
BOMB = b'{"prompt": "' + b"a" * 2**27


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json", "parquet"])
@pytest.mark.parametrize(
    ("compression", "damage"),  # Arrow's Zstandard has no checksum, so nothing tells a flipped bit
    [("gz", "cut"), ("gz", "flipped"), ("gz", "plain"), ("zst", "cut"), ("zst", "plain")],
)
def test_damaged_compression(tmp_path, kind, compression, damage):
    file = tmp_path / f"a.{kind}.{compression}"
    content = of_file(file.name, MANY)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0x5A
    file.write_bytes({"cut": content[:-40], "flipped": bytes(flipped), "plain": WRITE[kind](MANY)}[damage])
    message = refused(file)
    if damage != "flipped":  # garbage may come out of it before the end of its checksum
        assert "it cannot be decompressed" in message and "Compress it again" in message
    if damage == "cut" and kind in ("jsonl", "csv"):
        assert "damaged after line 1" in message


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize(("compression", "compress"), [("gz", gzip.compress), ("zst", zstd)])
def test_a_file_that_expands_without_end(tmp_path, ending, compression, compress):
    file = tmp_path / f"a.{ending}.{compression}"
    file.write_bytes(compress(b"[" + BOMB if ending == "json" else BOMB))
    assert "expands to over 200 times its size, as text does not" in refused(file)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"prompt,completion,prompt\np,c,q\n", ["the column 'prompt' stands there twice"]),
        (b",prompt,completion\n0,p,c\n", ["column 1 has no name in the first line", "index=False"]),
        (b"prompt;completion\np;c\n", ["semicolons separate the columns, not commas"]),
        (b"prompt\tcompletion\np\tc\n", ["tabs separate the columns, not commas"]),
        (b"prompt,completion\np,c\np\n", ["1 of 2 rows", "line 3: 1 cells in a table of 2 columns; put"]),
        (b"prompt,completion\np,c,d\np,c\n", ["line 2: 3 cells in a table of 2 columns"]),
        (b'prompt,completion\np,"c\np,c\n', ["a.csv, line 2: a quote opens here and never closes"]),
        (b'prompt,completion\np,"c"d\n', ["a.csv, line 2: ',' expected after '\"'. Put quotes around"]),
        (b"prompt,completion\rp,c\r", ["line 1: a carriage return stands alone"]),
        (b"prompt,completion\np,\xe9\n", ["a.csv, line 2: not UTF-8 at byte 2. Save the file as UTF-8"]),
        ("prompt,completion\np,c\n".encode("utf-16"), ["line 1: not UTF-8 at byte 0"]),
        (b"prompt,completion\n", ["it holds no rows"]),
        (b"\n\n", ["it holds no rows"]),
        (b"prompt,completion\np,a\0b\n", ["line 2: `completion` holds a NUL character"]),
        (b"prompt,completion\n\0\0\0\0", ["line 2: 1 cells in a table of 2 columns"]),
        (b"prompt,completion\np,\n", ["line 2: the keys `prompt` hold no completion"]),
        (b"prompt,completion,foo\np,c,1\n", ["the key `foo` has no place in a demonstration"]),
        (
            b"messages\n\"[{'role': 'user', 'content': 'p'}]\"\n",
            ["`messages` holds a list or message that is not JSON"],
        ),
        (
            b"prompt,completion\np,\"[{'role': 'user', 'content': 'c'}]\"\n",
            ["`completion` holds a list or message that is not JSON"],
        ),
        (
            b'prompt,completions,scores\np,"[""a"", ""b""]",' + b"9" * 5000 + b"\n",
            ["`scores` holds a number of thousands of digits"],
        ),
        (b'messages\n"[{""role"": ""user"", ""role"": ""a""}]"\n', ["the key 'role' stands 2 times"]),
        (b'prompt,completion\n"[{""role"": ""user"", ""content"": ""\\ud800""}]",c\n', ["surrogate pair"]),
    ],
)
def test_bad_csv(tmp_path, content, parts):
    (tmp_path / "a.csv").write_bytes(content)
    message = refused(tmp_path / "a.csv")
    assert all(part in message for part in parts), message


def test_pipes_and_links(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    assert "a pipe or a device, not a file. Write its rows into a file" in refused(tmp_path / "pipe.csv")
    (tmp_path / "loop.jsonl.gz").symlink_to(tmp_path / "loop.jsonl.gz")
    assert "there is no such file" in refused(tmp_path / "loop.jsonl.gz")
    assert "no such file" in refused(tmp_path / f"{'a' * 300}.csv")
    (tmp_path / "real.jsonl").write_bytes(json_lines(ROWS))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    assert len(demonstrations(tmp_path / "link.jsonl")) == 3


def test_a_pipe_in_a_folder_or_a_pattern_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(ROWS))
    os.mkfifo(tmp_path / "b.jsonl")
    assert "b.jsonl would not be read" in refused(tmp_path)
    with pytest.raises(UserError, match=r"b\.jsonl: a pipe or a device"):
        demonstrations(f"{tmp_path}/*.jsonl")


# Columns


def test_columns_name_the_keys_of_rows(tmp_path):
    file = tmp_path / "truthful.csv"
    file.write_bytes(
        separated(
            [
                {
                    "Type": "Adversarial",
                    "Category": "Nutrition",
                    "Question": "What does a watermelon seed do in the stomach?",
                    "Best Answer": "It passes through the digestive system.",
                    "Source": "https://example.org",
                }
            ]
        )
    )
    columns = Columns(prompt="Question", completion="Best Answer")
    (row,) = demonstrations(file, columns=columns)
    assert row["completion"] == "It passes through the digestive system."


@pytest.mark.parametrize("ending", DATA_FILES)
def test_columns_work_with_every_type(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    file.write_bytes(of_file(file.name, [{"q": "1 + 1?", "good": "2", "bad": "3", "a": "9"}]))
    columns = Columns(prompt="q", chosen="good", rejected="bad")
    source = Source(path=str(file), columns=columns, ignore_columns=("a",))
    (row,) = load_rows(source, "rankings", print).rows
    assert (row["prompt"], row["completions"]) == ("1 + 1?", ["2", "3"])


@pytest.mark.parametrize(
    ("row", "columns", "part"),
    [
        ({"q": "p", "completion": "c"}, {"prompt": "question"}, "no known format"),
        ({"prompt": "p", "completion": "c"}, {"prompt": "q"}, "`columns` names `q`, which no row has"),
        (
            {"q": "p", "prompt": "p", "completion": "c"},
            {"prompt": "q"},
            "and the row has both; name the other",
        ),
        (
            {"q": "p", "answer": "c", "best": "d"},
            {"prompt": "q", "completion": "best"},
            "`answer` and `best`",
        ),
        ({"q": "p", "a": ""}, {"prompt": "q", "completion": "a"}, "a completion is empty"),
        ({"q": 3, "a": "c"}, {"prompt": "q", "completion": "a"}, "`q` must be text"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, row, columns, part):
    (tmp_path / "a.jsonl").write_bytes(json_lines([row]))
    assert part in refused(tmp_path / "a.jsonl", columns=Columns(**columns))


def test_columns_that_contradict_themselves():
    with pytest.raises(ValueError, match="'a' is read as two keys"):
        Columns(prompt="a", completion="a")
    with pytest.raises(ValueError, match="'a' stands in columns and in ignore_columns"):
        Source(path="a.csv", columns=Columns(prompt="a"), ignore_columns=("a",))
    with pytest.raises(ValueError, match="promt"):
        Columns.model_validate({"promt": "a"})


def test_two_names_may_change_places(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"prompt": "c", "completion": "p"}]))
    columns = Columns(prompt="completion", completion="prompt")
    assert demonstrations(tmp_path / "a.jsonl", columns=columns)[0]["prompt"] == "p"


def test_places_of_a_single_file(tmp_path):
    (tmp_path / "a.csv.zst").write_bytes(of_file("a.csv.zst", ROWS))
    assert [place for place, _ in read(Source(path=f"{tmp_path}/a.csv.zst"))] == [
        "line 2",
        "line 3",
        "line 5",
    ]
