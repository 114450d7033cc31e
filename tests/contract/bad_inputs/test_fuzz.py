"""Whatever a file holds, reading it succeeds or ends in an error for the user."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.deepspeed_json import read_deepspeed_json
from configs.error_messages import all_keys
from configs.load import dump_experiment, load_experiment
from configs.schema import Experiment, Source
from data.sources.bad_rows import BadRow
from data.sources.formats import ACCEPTED
from data.sources.loading import load_rows
from data.sources.normalise import normalise
from data.storage.sealed_folder import seal_fault
from launch.deepspeed_command import read_slots
from pipeline.state.manifest import damage, fingerprint, read_manifest
from pipeline.state.rows import MetricRow, read_rows
from stages.training.checkpoint import Header, State, newest_checkpoint, save_checkpoint
from tests.contract.bad_inputs.entry import LONGEST, VALID
from tests.contract.bad_inputs.fuzzing import contents, known, mutated, quick, scalars, told, trees
from tests.contract.bad_inputs.test_bad_runs import MANIFEST

roles = st.sampled_from(["system", "user", "assistant", "human", "gpt", "robot"]) | scalars
message = st.fixed_dictionaries(
    {"role": roles, "content": scalars}, optional={"weight": scalars | st.sampled_from([0, 1]), "x": scalars}
)
messages = st.lists(message | scalars, max_size=4)
ROW_KEYS = (
    "prompt", "completion", "completions", "chosen", "rejected", "messages", "conversations", "ranks",
    "scores", "instruction", "input", "output", "system", "history", "x", "label", "kto_tag", "ranking",
    "rating", "score_chosen", "score_rejected", "question", "response",
    "context", "tools", "margin", "source", "text", "response1", "response2", "annotator1", "annotator2",
    "annotator3", "output_1", "output_2", "conversation_a", "conversation_b", "winner", "turn",
)  # fmt: skip
row_keys = st.sampled_from(ROW_KEYS)
row_values = scalars | messages | st.lists(scalars | messages, max_size=4)
rows = st.dictionaries(row_keys, row_values, max_size=5)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@quick
@given(tree=trees, overrides=st.lists(st.tuples(known, known, trees), max_size=2))
def test_configuration_trees(place, tree, overrides):
    file = place / "tree.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=False))
    words = [f"{one}.{other}={json.dumps(value)}" for one, other, value in overrides]
    with told():
        load_experiment(file, words)


@quick
@given(keys=st.sampled_from(list(all_keys())), value=trees)
def test_one_wrong_value_on_the_command_line(place, keys, value):
    file = place / "good.yaml"
    file.write_text(VALID)
    with told():
        check_whole(load_experiment(file, [f"{'.'.join(keys)}={json.dumps(value)}"]), place)


# What YAML reads as something else than it seems to be
YAML_TEXTS = (
    "~", "yes", "off", "0x1F", "0o17", "1_000", "1:30", "1e3", ".nan", "-.inf", "2001-01-01", "2001-02-30",
    "2001-01-01T00:00:00Z", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "!!str 5", "!!float 3", "!!int 7",
    "!!python/name:os.system", "!x y", "&a [*a]", "*b", "{<<: {a: 1}}", "{? [a] : b}", "{1: 2}", "{~: 1}",
    "{true: 1}", "[1, [2, {x: 3}]]", "'it''s'", '"\\u2028"', "", "=", "<<", "%x", "@x",
)  # fmt: skip


def with_value(keys: tuple[str, ...], text: str) -> str:
    """A good configuration, with `text` as the value at `keys`."""
    tree = yaml.safe_load(VALID)
    section = tree
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    section[keys[-1]] = "HOLE"
    return yaml.safe_dump(tree).replace("HOLE", text)


@quick
@given(keys=st.sampled_from(list(all_keys())), text=st.sampled_from(YAML_TEXTS) | trees.map(json.dumps))
def test_any_yaml_at_a_known_key(place, keys, text):
    file = place / "any.yaml"
    file.write_text(with_value(keys, text), encoding="utf-8")
    with told():
        check_whole(load_experiment(file), place)


def check_whole(experiment: Experiment, place: Path) -> None:
    """Check that an experiment that was loaded is saved, and read back, as what it is."""
    saved = place / "saved.yaml"
    saved.write_text(dump_experiment(experiment), encoding="utf-8")
    assert load_experiment(saved) == experiment


@quick
@given(content=contents | mutated(VALID.encode()))
def test_configuration_bytes(place, content):
    file = place / "bytes.yaml"
    file.write_bytes(content)
    with told():
        load_experiment(file)


@quick
@given(content=contents | trees.map(lambda tree: json.dumps(tree).encode())
       | mutated(b'{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}'))  # fmt: skip
def test_deepspeed_json(place, content):
    file = place / "zero.json"
    file.write_bytes(content)
    with told():
        assert isinstance(read_deepspeed_json(file), dict)


@quick
@given(row=rows, kind=st.sampled_from(sorted(ACCEPTED)))
def test_rows(row: dict[str, Any], kind: Any):
    try:
        found = normalise(row, kind)
    except BadRow as fault:
        assert 0 < len(str(fault)) < LONGEST
        return
    json.dumps(found, ensure_ascii=False).encode()
    assert found["prompt"] or (kind == "demonstrations" and found["completion"] == row["text"])
    for key in ("x", "tools", "margin"):
        assert row.get(key) in (None, "", [], {}), "a key that no format uses was passed over"
    if kind == "rankings":
        assert len(found["ranks"]) == len(found["completions"]) >= 2 and found["ranks"] == sorted(
            found["ranks"]
        )


@quick
@given(
    suffix=st.sampled_from([".jsonl", ".json"]),
    content=contents | st.lists(rows | trees, max_size=4).map(lambda each: json.dumps(each).encode())
    | st.lists(rows, max_size=3).map(lambda each: b"".join(json.dumps(row).encode() + b"\n" for row in each)),
    kind=st.sampled_from(sorted(ACCEPTED)),
)  # fmt: skip
def test_data_bytes(place, suffix, content, kind):
    file = place / f"data{suffix}"
    file.write_bytes(content)
    with told():
        load_rows(Source(path=str(file)), kind, lambda note: None)


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": ["p", "q"] * 20, "completion": ["a", "b"] * 20}), sink)
    return sink.getvalue().to_pybytes()


@quick
@given(content=mutated(parquet()))
def test_parquet_bytes(place, content):
    file = place / "data.parquet"
    file.write_bytes(content)
    with told():
        load_rows(Source(path=str(file)), "demonstrations", lambda note: None)


CSV = (
    b'prompt,completion,score_chosen\r\np,"a ""b""\nc",1\r\n'
    b'"[{""role"": ""user"", ""content"": ""q""}]",d,\r\n'
)


@quick
@given(suffix=st.sampled_from([".csv", ".tsv"]), content=contents | mutated(CSV))
def test_csv_bytes(place, suffix, content):
    file = place / f"data{suffix}"
    file.write_bytes(content)
    with told():
        load_rows(Source(path=str(file)), "demonstrations", lambda note: None)


def zstandard(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@quick
@given(
    content=st.tuples(st.just(".gz"), contents | mutated(gzip.compress(CSV)))
    | st.tuples(st.just(".zst"), contents | mutated(zstandard(CSV))),
    kind=st.sampled_from([".csv", ".jsonl", ".json", ".parquet"]),
)
def test_compressed_bytes(place, content, kind):
    file = place / f"data{kind}{content[0]}"
    file.write_bytes(content[1])
    with told():
        load_rows(Source(path=str(file)), "demonstrations", lambda note: None)


@quick
@given(content=contents | mutated(json.dumps(MANIFEST).encode())
       | st.tuples(st.sampled_from([*MANIFEST, "metrics", "inputs"]), trees)
       .map(lambda change: json.dumps({**MANIFEST, change[0]: change[1]}).encode()))  # fmt: skip
def test_manifests(place, content):
    file = place / "manifest.json"
    file.write_bytes(content)
    with told():
        manifest = read_manifest(file)
        assert manifest is not None
        if manifest.output:
            damage(place, manifest.output.files)


@quick
@given(
    content=contents | trees.map(lambda tree: json.dumps(tree).encode()),
    name=st.sampled_from(["seal", "state"]),
)
def test_seals_and_states(place, content, name):
    root = place / "checkpoints"
    save_checkpoint(root, Header(1, "", "b", {}), {"engine": State({"steps": 1})}, 1)
    (root / "step-000001" / f"{name}.json").write_bytes(content)
    found, complaints = newest_checkpoint(root, "")
    assert (found is None) == bool(complaints)
    assert (seal_fault(root / "step-000001") is None) or complaints


@quick
@given(content=contents | mutated(b"one slots=2\ntwo slots=4 # the other\n"))
def test_hostfiles(place, content):
    file = place / "hosts"
    file.write_bytes(content)
    with told():
        slots = read_slots(file)
        assert slots and all(number > 0 for number in slots)


@quick
@given(content=contents | trees.map(lambda tree: json.dumps(tree).encode() + b"\n"))
def test_journals(place, content):
    file = place / "metrics.jsonl"
    file.write_bytes(content)
    with told():
        read_rows(file, MetricRow)


def test_fingerprints_are_of_files_inside(tmp_path):
    (tmp_path / "a").write_text("a")
    assert list(fingerprint(tmp_path).files) == ["a"]
