"""Reading rows from files and from the hub: the same rows from each kind of file, and each error."""

import json
import re

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import UserError
from configs.schema import Source
from data.sources.bad_rows import BadRow
from data.sources.loading import load_rows
from data.sources.reading import read

ROWS = [{"prompt": "Grüße, 世界", "completion": "a"}, {"prompt": "q", "completion": "b\nb"}]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", lines(ROWS).encode(), "line"),
        ("bom.jsonl", b"\xef\xbb\xbf" + lines(ROWS).encode(), "line"),
        ("windows.jsonl", lines(ROWS).replace("\n", "\r\n").encode(), "line"),
        ("array.json", b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=2).encode(), "row"),
        ("lines.json", lines(ROWS).encode(), "line"),
        ("array.jsonl", json.dumps(ROWS).encode(), "row"),
        ("a.parquet", parquet(ROWS), "row"),
    ],
)
def test_every_kind_of_file_has_the_same_rows(tmp_path, name, content, place):
    (tmp_path / name).write_bytes(content)
    source = Source(path=str(tmp_path / name))
    assert list(read(source)) == [(f"{place} 1", ROWS[0]), (f"{place} 2", ROWS[1])]
    (row,) = load_rows(source.model_copy(update={"limit": 1}), "prompts", print).rows
    assert row == {"prompt": ROWS[0]["prompt"], "where": f"{source.path}, {place} 1"}


def test_blank_lines_are_counted_but_not_read(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" + lines(ROWS[:1]) + "  \n" + lines(ROWS[1:]))
    assert [place for place, _ in read(Source(path=f"{tmp_path}/a.jsonl"))] == ["line 2", "line 4"]


def test_parquet_gaps_and_messages(tmp_path):
    message = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "tool_calls": None}]
    mixed = [{"messages": message, "prompt": None}, {"messages": None, "prompt": "p", "completion": "c"}]
    (tmp_path / "a.parquet").write_bytes(parquet(mixed))
    rows = load_rows(Source(path=f"{tmp_path}/a.parquet"), "prompts", print).rows
    assert [row["prompt"] for row in rows] == [message[:1], "p"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"prompt": "p", }', "invalid JSON at column 17: "),
        (b'["p", "c"]', "invalid JSON at column"),
        (b'"text"', "a JSON object is expected, not str"),
        (b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
    ],
)
def test_bad_line_is_named(tmp_path, line, fault):
    if line.startswith(b"["):
        fault = "a JSON object is expected, not list"
    good_line = b'{"prompt": "p", "completion": "c"}\n'
    (tmp_path / "a.jsonl").write_bytes(good_line + line + b"\n" + good_line)
    rows = list(read(Source(path=f"{tmp_path}/a.jsonl")))
    assert isinstance(rows[1][1], BadRow) and fault in str(rows[1][1])
    with pytest.raises(UserError, match=r"a\.jsonl: 1 of 3 rows cannot serve as demonstrations") as caught:
        load_rows(Source(path=f"{tmp_path}/a.jsonl"), "demonstrations", print)
    assert f"  line 2: {fault}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("blank.jsonl", b" \n\n", "it holds no rows"),
        ("a.json", b"[]", "it holds no rows"),
        ("a.json", b'[{"prompt": "p"},\n {"prompt" "q"}]', "invalid JSON at line 2, column 12"),
        ("a.json", b'["\xff"]', "not UTF-8 at byte 2"),
        ("a.json", b"[3]", "row 1: a JSON object is expected, not int"),
        ("utf16.jsonl", '{"prompt": "p"}\n'.encode("utf-16"), "line 1: not UTF-8 at byte 0"),
        ("a.parquet", b"not parquet at all", "not a Parquet file"),
        ("a.txt", b"text", "ends in .jsonl, .json, .csv, .tsv or .parquet"),
    ],
)
def test_bad_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_rows(Source(path=str(tmp_path / name)), "prompts", print)
    assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "folder.json"])
def test_missing_file_is_named(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=f"{name}: there is no such file"):
        load_rows(Source(path=str(tmp_path / name)), "prompts", print)


# The hub, replaced by a stub


@pytest.fixture
def hub(monkeypatch):
    """Replace the hub by one with one dataset; returns the list of its calls."""
    calls = []

    def load_dataset(path, name=None, *, data_dir, split, revision=None, streaming=False):
        calls.append((path, name, data_dir, split, revision))
        if path != "someone/prompts":
            raise ConnectionError(f"Couldn't reach '{path}' on the Hub (ConnectError)\nmore")
        return datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_dataset_is_read(hub):
    source = Source(path="someone/prompts", name="short", split="test", revision="v1", limit=1)
    (row,) = load_rows(source, "prompts", print).rows
    assert row == {"prompt": "a", "where": "someone/prompts (short, test), row 1"}
    assert hub == [("someone/prompts", "short", None, "test", "v1")]


def test_a_folder_of_a_hub_dataset_is_read(hub):
    (row,) = load_rows(Source(path="someone/prompts", data_dir="harmless", limit=1), "prompts", print).rows
    assert row["where"] == "someone/prompts (harmless, train), row 1"
    assert hub == [("someone/prompts", None, "harmless", "train", None)]


@pytest.fixture
def streamed(monkeypatch, tmp_path):
    """A hub with one data set of 5,000 rows; returns its folder, beside which it would be stored."""
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(f'{{"prompt": "{n}?"}}\n' for n in range(5_000)))
    load_dataset = datasets.load_dataset

    def from_folder(path, *args, **options):
        return load_dataset(str(folder), *args, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    return folder


def test_a_hub_dataset_is_streamed_up_to_the_limit(streamed):
    source = Source(path="someone/large", streaming=True, limit=3, held_out=1)
    loaded = load_rows(source, "prompts", print)
    assert [row["prompt"] for row in loaded.rows] == ["0?", "1?", "2?"] and loaded.read == 3
    assert loaded.rows[2]["where"] == "someone/large (train), row 3"
    assert not [*streamed.parent.rglob("*.arrow")]


def test_a_stream_that_breaks_off_is_one_clear_error(streamed):
    with (streamed / "train.jsonl").open("a") as rows:
        rows.write('{"prompt": "cut')
    with pytest.raises(
        UserError, match=r"hub dataset someone/large \(train\) could not be loaded: .*network"
    ):
        load_rows(Source(path="someone/large", streaming=True, limit=9_999), "prompts", print)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"path": "someone/large"}, "streaming needs `limit`"),
        ({"path": "a.jsonl", "limit": 9}, "streaming is of hub datasets, and the path is a file"),
    ],
)
def test_what_cannot_be_streamed(settings, part):
    with pytest.raises(ValueError, match=part):
        Source(streaming=True, **settings)


def test_a_local_folder_is_not_streamed(tmp_path):
    with pytest.raises(UserError, match="`streaming` is of hub datasets"):
        load_rows(Source(path=str(tmp_path), streaming=True, limit=9), "prompts", print)


def test_a_local_folder_has_no_data_dir(tmp_path):
    with pytest.raises(UserError, match="`data_dir` is of hub datasets"):
        load_rows(Source(path=str(tmp_path), data_dir="deep"), "prompts", print)


@pytest.mark.parametrize(
    ("feature", "column", "part"),
    [
        (datasets.Audio(), "voice", "the key `voice` has no place in a prompt"),
        (datasets.Video(), "video", "`video`: images, sound and video are not supported"),
        (datasets.List(datasets.Image()), "pages", "the key `pages` has no place in a prompt"),
    ],
)
def test_a_column_of_the_hub_that_is_no_text_is_refused_and_not_decoded(monkeypatch, feature, column, part):
    file = {"bytes": b"x", "path": None}
    values = [file] if isinstance(feature, datasets.List) else file
    columns = datasets.Features({"prompt": datasets.Value("string"), column: feature})
    table = pa.Table.from_pylist([{"prompt": "a", column: values}], schema=columns.arrow_schema)
    dataset = datasets.Dataset(datasets.table.InMemoryTable(table))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    with pytest.raises(UserError, match=part):
        load_rows(Source(path="someone/prompts"), "prompts", print)
    (row,) = load_rows(Source(path="someone/prompts", ignore_columns=(column,)), "prompts", print).rows
    assert row["prompt"] == "a"


def test_bad_hub_row_is_named(hub):
    message = r"someone/prompts \(train\): 1 of 3 rows cannot serve as prompts.\n  row 2: the prompt is empty"
    with pytest.raises(UserError, match=message):
        load_rows(Source(path="someone/prompts"), "prompts", print)


def test_unreachable_hub_is_one_clear_error(hub):
    with pytest.raises(UserError) as caught:
        load_rows(Source(path="no/such"), "prompts", print)
    assert str(caught.value) == (
        "hub dataset no/such (train) could not be loaded: Couldn't reach 'no/such' on the Hub (ConnectError)."
        " Check its id, `name`, `data_dir`, `split` and `revision`, and the network; a local file's path "
        "must end in .jsonl, .json, .csv, .tsv or .parquet."
    )
