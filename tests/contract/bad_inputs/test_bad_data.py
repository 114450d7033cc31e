"""Bad data: the error about each case. The file stays unchanged."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import UserError
from configs.schema import Data, Source
from data.batches import tokenize
from data.sources.folders import size_of
from data.sources.loading import load_rows
from data.sources.split import stage_split
from tests.contract.bad_inputs.entry import check_message
from tests.support.turns import assistant, user

D, R, P = "demonstrations", "rankings", "prompts"
GOOD = {"prompt": "p", "completion": "c"}
K = {"prompt": "p", "completions": ["a", "b", "c"]}


def system(text):
    return {"role": "system", "content": text}


def parquet(rows, damage=0):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    content = bytearray(sink.getvalue().to_pybytes())
    for at in range(len(content) // 4, len(content) // 4 + damage):
        content[at] ^= 0x5A
    return bytes(content)


def doubled():
    """A file with two columns of one name."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays([pa.array(["p"]), pa.array(["q"])], ["prompt", "prompt"]), sink)
    return sink.getvalue().to_pybytes()


MANY = [{"prompt": f"prompt {n} " * 20, "completion": "c"} for n in range(5000)]

FILES: list[tuple[Any, ...]] = [
    ("missing.jsonl", None, D, "there is no such file. Correct the path under `data`"),
    ("empty.jsonl", b"", D, "the file is empty. Put rows into it"),
    ("blank.jsonl", b"\n \n", D, "it holds no rows. Point `data` at a source that has some"),
    (
        "latin1.jsonl",
        '{"prompt": "é"}\n'.encode("latin-1"),
        P,
        "line 1: not UTF-8 at byte 12; save the file as UTF-8",
    ),
    ("utf16.json", '[{"prompt": "p"}]'.encode("utf-16"), P, "not UTF-8 at byte 0"),
    ("zipped.jsonl", gzip.compress(b'{"prompt": "p"}\n'), P, "line 1: not UTF-8"),
    (
        "half.jsonl",
        json.dumps(GOOD).encode() + b'\n{"prompt": "p", "comp',
        D,
        "line 2: invalid JSON at column 17",
    ),
    ("zeros.jsonl", json.dumps(GOOD).encode() + b"\n" + b"\0" * 512, D, "line 2: invalid JSON at column 1"),
    (
        "pretty.json",
        json.dumps(GOOD, indent=1).encode(),
        D,
        "line 1: invalid JSON",
        "a line holds one whole object",
    ),
    ("text.json", b'"text"', D, "line 1: a JSON object is expected, not str"),
    ("wrapped.json", json.dumps({"data": [GOOD]}).encode(), D, "no known format has these keys: `data`"),
    (
        "array.json",
        b'[{"prompt": "p"}] 3',
        P,
        "invalid JSON at line 1, column 19: Extra data. Correct it there",
    ),
    ("deep.jsonl", b'{"prompt": ' + b"[" * 10**5 + b"]" * 10**5 + b"}\n", D, "line 1: nested too deeply"),
    ("deep.json", b"[" * 10**5 + b"]" * 10**5, D, "nested too deeply. Correct it"),
    (
        "deepish.jsonl",
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}\n",
        P,
        "line 1: `prompt` must be text or",
    ),
    (
        "twice.jsonl",
        b'{"prompt": "p", "completion": "c", "prompt": "q"}\n',
        D,
        "line 1: the key 'prompt' stands 2",
    ),
    (
        "twice.json",
        b'[{"prompt": "p"}, {"prompt": [{"role": "user", "role": "system", "content": "c"}]}]',
        P,
        "row 2: the key 'role' stands 2 times in one object",
    ),
    ("twice.parquet", doubled(), P, "the column 'prompt' stands there twice. Remove one of the two"),
    ("digits.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}\n", P, "line 1: a number of thousands of digits"),
    ("digits.json", b'[{"prompt": ' + b"9" * 5000 + b"}]", P, "a number of thousands of digits. Correct it"),
    ("no.parquet", b"PAR1 but not really", P, "not a Parquet file", "Write it again, or use JSONL"),
    ("cut.parquet", parquet(MANY)[:-500], D, "not a Parquet file"),
    ("flipped.parquet", parquet(MANY, damage=2000), D, "Write it again, or use JSONL"),
    ("columns.parquet", parquet([{"x": 1}]), D, "row 1: no known format has these keys: `x`"),
    ("bytes.parquet", parquet([{"prompt": b"\xff"}]), P, "row 1: `prompt` must be text"),
    ("rows.parquet", parquet([{"prompt": "p"}])[:0], P, "the file is empty"),
    (
        "texts.csv",
        b"prompt,chosen,rejected\np,\"['a']\",\"['b']\"\n",
        R,
        "line 2: `chosen` holds a list or message that is not JSON, as pandas writes them",
    ),
    (
        "tools.csv",
        b'prompt,completion\np,"[{""role"": ""assistant"", ""content"": null, ""tool_calls"": [1]}]"\n',
        D,
        "line 2: `tool_calls`: tool calls are not supported",
    ),
    ("data.xlsx", b"PK", D, "ends in .jsonl, .json, .csv, .tsv or .parquet"),
]

ROWS: list[tuple[Any, ...]] = [
    # The wrong format for the stage
    ({"prompt": "p"}, D, "the keys `prompt` hold no completion"),
    ({"prompt": "p"}, R, "hold no completions to rank", "`rm.rankings.labeller` ranks rows that have only"),
    (GOOD, R, "hold no completions to rank"),
    ({"text": "t"}, P, "`text` is a text without a prompt"),
    ({"text": "t"}, R, "the keys `text` hold no completions to rank"),
    ({"body": "t"}, P, "no known format has these keys: `body`"),
    ({"prompt": "p", "chosen": "c"}, R, "`chosen` and `rejected` must both be present"),
    ({"prompt": "p", "chosen": "c", "rejected": None}, R, "`chosen` and `rejected` must both be present"),
    ({"k" * 10**5: 1}, P, "no known format has these keys: `kkkk"),
    ({f"k{n}": 1 for n in range(10**4)}, P, "`k0`, `k1`", ", ..."),
    ({"a\nb\x1b[31m": 1}, P, "`a\\nb\\x1b[31m`"),
    # Conversations
    (
        {"messages": [system("a"), system("b"), user("x"), assistant("y")]},
        D,
        "roles out of order (system, system",
    ),
    ({"messages": [assistant("a"), user("x"), assistant("y")]}, D, "roles out of order (assistant, user)"),
    ({"messages": [user("a"), user("x"), assistant("y")]}, D, "roles out of order (user, user)"),
    ({"messages": [user("a")]}, D, "does not end with an assistant turn"),
    ({"messages": [{"role": "x" * 10**5, "content": "y"}]}, P, "a message with role 'xxx"),
    (
        {"messages": [{"role": "user", "content": None}, assistant("x")]},
        D,
        "`messages[].content` must be text",
    ),
    ({"messages": "Hi"}, D, "`messages` must be a list of messages"),
    ({"prompt": {"a": 1}, "completion": "c"}, D, "role None; known roles"),
    ({"prompt": "p", "completion": [user("x")]}, D, "a completion must be one assistant turn"),
    ({"instruction": "i", "output": "o", "history": 3}, D, "`history` must be a list"),
    ({"instruction": "i", "output": "o", "history": [[1, 2]]}, D, "`history[]` must be text, not 1"),
    (
        {"messages": [user("a"), {"role": "tool", "content": "3"}]},
        D,
        "role 'tool': tool calls are not supported",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": "a"}]},
                assistant("x"),
            ]
        },
        D,
        "has a part of type 'image_url': images, sound and video are not supported",
    ),
    # Completions that are called good or bad
    (
        {"prompt": "p", "completion": "c", "label": "sports"},
        D,
        "`label` must rate the answer as true or false",
    ),
    ({"prompt": "p", "completion": "c", "label": True}, R, "`label` rates one answer (unpaired preferences)"),
    ({"messages": [user("p"), assistant("c")], "kto_tag": 1}, R, "`kto_tag` rates one answer"),
    ({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}, R, "steps, which are not ranked"),
    # Rankings
    ({"prompt": "p", "completions": ["a"]}, R, "`completions` must hold at least two, not 1"),
    ({"prompt": "p", "completions": "ab"}, R, "`completions` must be a list"),
    ({**K, "ranks": [0, 1]}, R, "`ranks` has 2 entries for 3 completions"),
    ({**K, "ranks": [1, 2, 3], "scores": [1, 2, 3]}, R, "`ranks`, `scores` contradict each other"),
    ({**K, "rank": [1, 2, 3], "ratings": [3, 1, 2]}, D, "`rank`, `ratings` contradict each other"),
    (
        {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 1, "score_rejected": 2},
        R,
        "`score_chosen` says",
    ),
    (
        {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 1, "rating_rejected": 9},
        R,
        "`score_chosen`, `rating_rejected` are halves of two pairs of scores; rename one",
    ),
    ({**K, "rm_score": [1, 9, 5]}, R, "the key `rm_score` has no place in a ranking"),
    (
        {"prompt": "p", "completions": [{"response": "a", "overall_score": 1}], "ranks": [0]},
        R,
        "the key `ranks` has no place in a row of UltraFeedback",
    ),
    ({**K, "ranks": [0, 1, float("nan")]}, R, "`ranks` must be a list of numbers"),
    ({**K, "ranks": [0, 1, float("inf")]}, R, "`ranks` must be a list of numbers"),
    ({**K, "ranks": ["0", "1", "2"]}, R, "`ranks` must be a list of numbers, not ['0', '1', '2']"),
    # Keys that say something which the format has no use for
    ({**GOOD, "foo": 1}, D, "the key `foo` has no place in a demonstration", "name it in `ignore_columns`"),
    ({**GOOD, "__skip__": True}, D, "the key `__skip__` has no place in a demonstration"),
    ({**GOOD, "score": 0.2}, D, "the key `score` has no place in a demonstration"),
    ({**GOOD, "chosen": "d"}, D, "the key `chosen` has no place in a demonstration"),
    ({"prompt": "p", "ground_truth": 4}, P, "the key `ground_truth` has no place in a prompt"),
    ({**GOOD, "system": "S", "system_prompt": "T"}, D, "`system` and `system_prompt` say different things"),
    ({"messages": [user("p"), assistant("c")], "tools": [1]}, D, "`tools`: tool calls are not supported"),
    (
        {"messages": [user("p"), assistant("c")], "images": [1]},
        D,
        "`images`: images, sound and video are not",
    ),
    (
        {"messages": [user("p"), {**assistant("c"), "reasoning_content": "r"}]},
        D,
        "reasoning beside the answer",
    ),
    (
        {"messages": [user("p"), {**assistant("c"), "weight": 2}]},
        D,
        "`messages[].weight` must be 0 or 1, not 2",
    ),
    (
        {"messages": [user("p"), {**assistant("c"), "foo": 2}]},
        D,
        "`foo` has no place in a message of `messages`",
    ),
    (
        {"prompt": "p", "chosen": ["c"], "rejected": ["r", "s"], "total_completions": 4},
        R,
        "`total_completions` is 4, and the lists have 3 answers",
    ),
    # Files of a run that are for people
    (
        {"prompt": "p", "base": "a", "sft": "b", "ppo": "c", "score_base": 0.1, "kl": 1.2},
        D,
        "the keys `base`, `sft`, `ppo`, `score_base`, `kl` have no place in a prompt (`prompt`)",
    ),
    (
        {"step": 1, "prompt": "p", "response": "c", "score": 0.1, "kl": 1.2},
        D,
        "the keys `step`, `score`, `kl` have no place in a demonstration",
    ),
    ({"prompt": "p", "completion": "c", "split": ["train"]}, D, "the key `split` has no place in a"),
    ({"prompt": "p", "completions": ["a", ""]}, R, "a completion is empty"),
    # Text
    ({"prompt": 3, "completion": "c"}, D, "`prompt` must be text or a list of messages, not 3"),
    ({"prompt": "p", "completion": 3.5}, D, "`completion` must be text or a list of messages, not 3.5"),
    ({"prompt": " \n", "completion": "c"}, D, "the prompt is empty"),
    ({"prompt": "p", "completion": ""}, D, "a completion is empty"),
    ({"prompt": "\u200b\u2060", "completion": "c"}, D, "the prompt is empty"),
    ({"prompt": "p", "completion": "\ufeff\u3164 \x07"}, D, "a completion is empty"),
    ({"prompt": "a\0b", "completion": "c"}, D, "`prompt` holds a NUL character, as damaged files do"),
    ({"prompt": "\ud800", "completion": "c"}, D, "`prompt` holds half of a surrogate pair"),
]


def refused(path, kind, **source):
    with pytest.raises(UserError) as caught:
        load_rows(Source(path=str(path), **source), kind, print)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "kind", "parts"),
    [(name, content, kind, parts) for name, content, kind, *parts in FILES],
    ids=[str(name) for name, *_ in FILES],
)
def test_file(name, content, kind, parts, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    message = refused(path, kind)
    check_message(message, *parts)
    assert message.startswith(str(path))
    assert content is None or path.read_bytes() == content


def test_folder_for_a_file(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    check_message(refused(tmp_path / "a.jsonl", D), "there is no such file")


@pytest.mark.parametrize("path", ["x" * 300, f"/{'x' * 300}", f"~/{'x' * 300}", "~nobody-here/x"])
def test_a_name_that_no_file_can_have(path):
    check_message(refused(path, D), path)
    assert size_of(path) == size_of(f"{path}.jsonl") == 0


LINE = json.dumps(GOOD).encode() + b"\n"
FOLDERS: dict[str, tuple[Any, ...]] = {
    "another type": ({"a.csv": b"prompt,completion\np,c\n", "b.jsonl": LINE}, "a.csv would not be read. All"),
    "two of another": (
        {"a.csv": b"", "b.tsv": b"", "c.jsonl": LINE, "d.jsonl": LINE, "e.jsonl": LINE},
        "a.csv and 1 more would not be read",
    ),
    "no split": ({"train.jsonl": LINE, "extra.jsonl": LINE}, "extra.jsonl would not be read", "must say one"),
    "no split below": ({"train.jsonl": LINE, "more/x.jsonl": LINE}, "more/x.jsonl would not be read"),
    "half a line": ({"a.jsonl": LINE, "b.jsonl": b"{bad"}, "b.jsonl, line 1: invalid JSON at column 2"),
    "a key twice": (
        {"a.jsonl": LINE[:-2] + b', "prompt": "q"}'},
        "a.jsonl, line 1: the key 'prompt' stands 2",
    ),
    "no Parquet": ({"a.parquet": b"PAR1"}, "a.parquet: not a Parquet file"),
    "a bad row": (
        {"a.jsonl": LINE, "b.jsonl": LINE + b'{"prompt": "p"}'},
        "1 of 3 rows cannot serve as demonstrations",
        "b.jsonl, line 2: the keys `prompt` hold no completion",
    ),
    "two compressions": (
        {"a.jsonl": LINE, "a.jsonl.gz": gzip.compress(LINE)},
        "a.jsonl.gz would not be read. All files of a folder need one type",
    ),
    "commas and tabs": (
        {"a.csv": b"prompt,completion\np,c\n", "a.tsv": b"prompt\tcompletion\np\tc\n"},
        "a.tsv would not be read. All files of a folder need one type",
    ),
    "splits of two types": (
        {"train.jsonl": LINE, "test.csv": LINE},
        "this folder could not be read as a data set: Couldn't infer the same data file format",
    ),
    "a copy": ({"a.jsonl": LINE, "a.jsonl.bak": LINE}, "a.jsonl.bak would be read, too", "Move it away if"),
    "a copy of the original": (
        {"a.csv": b"prompt,completion\np,c\n", "a.csv.orig": b""},
        "a.csv.orig would be",
    ),
    "a copy of a split": ({"train.jsonl": LINE, "train.jsonl.old": LINE}, "train.jsonl.old would be read"),
    "a gap in the shards": (
        {f"data/train-0000{number}-of-00003.jsonl": LINE for number in (0, 2)},
        "shard 00001 of 00003 is missing (train-00001-of-00003.jsonl). Copy what is missing",
    ),
    "the first shard alone": (
        {"part_0_of_4.jsonl": LINE},
        "shard 1 of 4 and 2 more are missing (part_1_of_4.jsonl)",
    ),
    "shards from 1": (
        {"a-1-of-3.jsonl": LINE, "a-3-of-3.jsonl": LINE},
        "shard 2 of 3 is missing (a-2-of-3.jsonl)",
    ),
    "a gap in the shards of a card": (
        {
            "README.md": b"---\nconfigs:\n- config_name: default\n  data_files: data/train-*\n---\n",
            "data/train-00000-of-00003.jsonl.gz": gzip.compress(LINE),
            "data/train-00001-of-00003.jsonl.gz": gzip.compress(LINE),
        },
        "shard 00002 of 00003 is missing (train-00002-of-00003.jsonl.gz)",
    ),
    "texts": ({"a.txt": b"One line.\n"}, "its files are no tables (text). Use files that end in .jsonl"),
    "texts of a split": ({"train.txt": b"a\n", "test.txt": b"b\n"}, "its files are no tables (text)"),
    "markup": ({"a.xml": b"<a>One</a>\n"}, "its files are no tables (xml)"),
    "nothing": ({}, "this folder could not be read as a data set: The directory at"),
    "another split": ({"test.jsonl": LINE}, "this folder could not be read as a data set: "),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder(name, tmp_path):
    content, *parts = FOLDERS[name]
    folder = tmp_path / "rows"
    for file in (folder / each for each in content):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content[str(file.relative_to(folder))])
    folder.mkdir(exist_ok=True)
    message = refused(folder, D)
    check_message(message, str(folder), *parts)


@pytest.mark.parametrize("path", ["rows", "rows/*.jsonl"])
def test_one_file_under_two_names(path, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_bytes(LINE)
    (tmp_path / "rows" / "b.jsonl").symlink_to("a.jsonl")
    check_message(refused(tmp_path / path, D), "b.jsonl and a.jsonl are one file, whose rows")


def test_folder_of_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.folders.MOST_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.jsonl").write_bytes(LINE)
    check_message(refused(tmp_path, D), f"{tmp_path}: this folder holds over 3 files")


def test_a_folder_whose_card_describes_it_may_hold_texts(tmp_path):
    (tmp_path / "a.txt").write_text("One line.\nAnother.\n")
    card = "---\nconfigs:\n- config_name: default\n  data_files: a.txt\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert len(load_rows(Source(path=str(tmp_path)), "demonstrations", print).rows) == 2


def number_of_rows(path, **source):
    return len(load_rows(Source(path=str(path), **source), "demonstrations", print).rows)


@pytest.mark.parametrize("names", [["a.jsonl", "a.jsonl.bak"], ["train-00000-of-00003.jsonl"]])
def test_a_card_may_name_copies_and_single_shards(names, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(LINE)
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {json.dumps(names)}\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert number_of_rows(tmp_path) == len(names)


def test_a_pattern_means_the_shards_that_it_could_name(tmp_path):
    for number in (0, 2):
        (tmp_path / f"train-0000{number}-of-00003.jsonl").write_bytes(LINE)
    for pattern in (
        "*.jsonl",
        "train-*",
        "train-0000[0-2]-of-00003.jsonl",
        "train-?????-of*",
        "**/*.jsonl",
    ):
        check_message(refused(tmp_path / pattern, D), "shard 00001 of 00003 is missing (train-00001-of-00003")
    for pattern, rows in {
        "train-00000-*.jsonl": 1,
        "*-00002-of-00003.jsonl": 1,
        "train-0000[02]-*": 2,
    }.items():
        assert number_of_rows(tmp_path / pattern) == rows
    assert number_of_rows(tmp_path / "train-00002-of-00003.jsonl") == 1


def test_whole_sets_of_shards(tmp_path):
    names = (
        "train-0-of-2",
        "train-1-of-2",
        "deep/train-01_of_02",
        "deep/train-02_of_02",
        "train-3-of-99999999",
    )
    for name in (*names, "test-0-of-2"):  # that split is not read
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_bytes(LINE)
    assert number_of_rows(tmp_path) == number_of_rows(tmp_path / "**" / "train*.jsonl") == len(names)
    check_message(refused(tmp_path, D, split="test"), "shard 1 of 2 is missing")


def test_folders_that_are_read_whole(tmp_path):
    for name in ("README.md", ".hidden.csv", "dataset_infos.json", "train.jsonl", "deep/train-1.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}" if name.endswith("json") else LINE)
    (tmp_path / "README.md").write_text("About the rows")
    assert len(load_rows(Source(path=str(tmp_path)), "demonstrations", print).rows) == 2


@pytest.mark.parametrize(
    ("row", "kind", "parts"),
    [(row, kind, parts) for row, kind, *parts in ROWS],
    ids=lambda value: str(value)[:40],
)
def test_row(row, kind, parts, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = K if kind == R else GOOD
    path.write_text(json.dumps(good | {"messages": None}) + "\n" + json.dumps(row) + "\n")
    message = refused(path, kind)
    check_message(message, f"{path}: 1 of 2 rows cannot serve as {kind}.\n  line 2: ", *parts, "Accepted as")


def test_rows_that_make_no_pair_are_left_out_whatever_their_number(tmp_path):
    tied = [
        {"prompt": "p", "chosen": "c", "rejected": "c"},
        {"prompt": "p", "chosen": "c d", "rejected": " c  d"},
        {**K, "ranks": [1, 1, 1]},
        {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 1, "score_rejected": 1},
    ]
    path = tmp_path / "rows.jsonl"
    notes: list[str] = []
    path.write_text("".join(json.dumps(row) + "\n" for row in (K, *tied)))
    loaded = load_rows(Source(path=str(path)), "rankings", notes.append)
    assert (len(loaded.rows), loaded.read, loaded.left_out) == (1, 5, 4)
    (note,) = notes
    check_message(
        note, "left out 4 of 5 rows", "line 2 and 1 more: no two completions", "line 4 and 1 more: all"
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in tied))
    check_message(
        refused(path, R), "4 of 4 rows cannot serve as rankings", "`chosen` equals `rejected`", "tie"
    )


def test_bom_is_no_fault(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(load_rows(Source(path=f"{tmp_path}/a.jsonl"), "demonstrations", print).rows) == 1


# Errors of the split and of tokenization


def data(path="a.jsonl", **changes):
    sources = {stage: Source(path=f"{stage}{path}", held_out=0) for stage in ("sft", "rm", "ppo")}
    return Data(**(sources | changes))


def test_everything_held_out():
    config = data(sft=Source(path="a.jsonl", held_out=9))
    with pytest.raises(UserError) as caught:
        stage_split(config, "sft", [GOOD], 0)
    check_message(str(caught.value), "data.sft", "held_out takes 9", "Lower data.sft.held_out")


def test_prompts_longer_than_the_context(tiny_tokenizer):
    rows = [{"prompt": "long " * 500, "completion": "c", "where": "a.jsonl, line 1"}]
    with pytest.raises(UserError) as caught:
        tokenize.demonstrations(rows, tiny_tokenizer, data())
    check_message(
        str(caught.value), "none of the 1 examples fits", "data.max_prompt_length: 512", "Raise these"
    )


@pytest.mark.parametrize(
    ("template", "part"),
    [
        (b"{% for %}", "the chat template failed on it"),
        (b"{{ messages[0].content + 1 }}", "the chat template failed on it"),
        (b"{{ 1 / 0 }}", "the chat template failed on it: division by zero"),
        (b"{{ raise_exception('no') }}", "the chat template failed on it: no"),
        (b"\xff", "cannot read"),
        (None, "there is no file"),
    ],
)
def test_chat_template(template, part, tmp_path, tiny_folder):
    from transformers import AutoTokenizer

    file = tmp_path / "t.jinja"
    if template is not None:
        file.write_bytes(template)
    with pytest.raises(UserError) as caught:
        tokenize.apply_template(AutoTokenizer.from_pretrained(tiny_folder), data(chat_template=str(file)))
    check_message(str(caught.value), "data.chat_template", str(file), part)


def test_the_mark_that_windows_puts_before_a_template_is_no_part_of_it(tmp_path, tiny_folder, tiny_tokenizer):
    from transformers import AutoTokenizer

    (tmp_path / "t.jinja").write_text(tiny_tokenizer.chat_template, encoding="utf-8-sig")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenize.apply_template(tokenizer, data(chat_template=f"{tmp_path}/t.jinja"))
    assert tokenizer.chat_template == tiny_tokenizer.chat_template


def test_conversation_without_a_template(tiny_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = None
    with pytest.raises(UserError) as caught:
        tokenize.prompts([{"prompt": "Hi", "where": "a.jsonl, line 1"}], tokenizer, data(chat=True))
    check_message(str(caught.value), "a.jsonl, line 1", "has no chat template", "Set data.chat_template")
