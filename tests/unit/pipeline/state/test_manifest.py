"""Manifests are equal after writing and reading. Damage is detected and named."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from configs.errors import UserError
from pipeline.state.manifest import Process, damage, fingerprint, library_versions, read_manifest
from tests.support.pipeline_runs import write_stage


def test_round_trip(tmp_path: Path) -> None:
    manifest = write_stage(tmp_path, "sft").model_copy(
        update={"metrics": {"eval_loss": 1.25, "margin": float("inf")}, "process": Process.this()}
    )
    path = tmp_path / "sft/manifest.json"
    manifest.write(path)
    assert read_manifest(path) == manifest.sealed()


def test_nan_is_written_as_valid_json_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "sft/manifest.json"
    write_stage(tmp_path, "sft").model_copy(update={"metrics": {"eval_loss": float("nan")}}).write(path)

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    manifest = read_manifest(path)
    assert manifest is not None and math.isnan(manifest.metrics["eval_loss"])


def test_a_manifest_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Its SHA-256 is over the fields that it has."""
    path = tmp_path / "sft/manifest.json"
    text = write_stage(tmp_path, "sft").model_dump_json(exclude={"sha256"})
    earlier = text.replace('"chat":null,"compute_dtype":null,', "")
    digest = hashlib.sha256(earlier.encode()).hexdigest()
    path.write_text(f'{earlier[:-1]},"sha256":"{digest}"}}')
    manifest = read_manifest(path)
    assert manifest is not None and manifest.chat is None and manifest.compute_dtype is None


def test_missing_manifest_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "manifest.json") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "sft"}', "\0" * 64])
def test_broken_manifest_names_file_and_remedy(tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert "Restore the file, or move" in str(caught.value)


def test_a_flipped_bit_is_seen_in_every_byte(tmp_path: Path) -> None:
    """Also in names of keys with defaults. A change from 1e-5 to 1E-5 may go unnoticed."""
    manifest = write_stage(tmp_path, "sft")
    path = tmp_path / "sft/manifest.json"
    manifest.write(path)
    content = path.read_bytes()
    unnoticed = []
    for position in range(len(content)):
        if content[position : position + 1].isspace():
            continue
        bit = position % 8
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
        try:
            manifest_read = read_manifest(path)
        except UserError:
            continue
        if (
            manifest_read != manifest.sealed()
            or json.loads(path.read_bytes()).keys() != json.loads(content).keys()
        ):
            unnoticed.append(content[max(0, position - 20) : position + 20])
    assert unnoticed == []


def test_fingerprint_is_sha256_per_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_bytes(b"abc")
    (tmp_path / "sub/b.txt").write_bytes(b"")
    actual = fingerprint(tmp_path)
    assert actual.files == {
        # FIPS 180-4's example for "abc", and the well-known hash of nothing.
        "a.txt": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "sub/b.txt": hashlib.sha256().hexdigest(),
    }


def test_fingerprint_tells_content_and_names_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    first = fingerprint(tmp_path).sha256
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = fingerprint(tmp_path).sha256
    (tmp_path / "b").write_text("y")
    assert len({first, renamed, fingerprint(tmp_path).sha256}) == 3


def test_damage_names_what_changed_or_is_gone(tmp_path: Path) -> None:
    for name in ("kept", "changed", "gone"):
        (tmp_path / name).write_text(name)
    expected = fingerprint(tmp_path)
    assert damage(tmp_path, expected.files) == []
    (tmp_path / "changed").write_text("else")
    (tmp_path / "gone").unlink()
    (tmp_path / "extra").write_text("no harm")
    faults = damage(tmp_path, expected.files)
    named = [name for name in ("kept", "changed", "gone", "extra") if any(name in line for line in faults)]
    assert named == ["changed", "gone"]


def test_versions_name_the_libraries() -> None:
    versions = library_versions()
    assert {"torch", "peft", "deepspeed", "transformers"} <= set(versions)
    assert all(versions.values())
