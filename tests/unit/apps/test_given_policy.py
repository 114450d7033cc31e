"""A policy of another run is used only on the base, and with the chat template, that it was trained with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from apps.trained_run import LoadedPolicies, chosen_adapters, load_policies, open_run, this_process
from configs.errors import UserError
from pipeline.state.manifest import BaseModelId, fingerprint, read_manifest
from tests.unit.apps.test_stage_data import change


@pytest.fixture
def other(run_dir: Path, tmp_path: Path) -> Path:
    """The adapter of PPO in another run."""
    return shutil.copytree(run_dir, tmp_path / "other") / "ppo/adapter"


def load(run_dir: Path, folder: Path) -> LoadedPolicies:
    run = open_run(run_dir)
    return load_policies(run, chosen_adapters(run, [str(folder)], reward=False), this_process())


def test_a_policy_of_another_run_on_the_same_base_is_loaded(run_dir, other) -> None:
    assert list(load(run_dir, other).roles) == [str(other)]


@pytest.mark.parametrize("changes", [{"quantization": "none"}, {"revision": "abc"}])
def test_one_on_another_base_is_refused_by_name(run_dir, other, changes) -> None:
    manifest = read_manifest(other.parent / "manifest.json")
    assert manifest is not None
    change(other.parent.parent, "ppo", base=manifest.base.model_copy(update=changes))
    with pytest.raises(UserError, match=r"was trained on another base \(tiny-random.*than that of this run"):
        chosen_adapters(open_run(run_dir), [str(other)], reward=False)


def test_one_on_other_weights_of_that_name_is_refused(run_dir, other) -> None:
    base = BaseModelId(model="moved/tiny-random", quantization="nf4")  # with a digest, names do not count
    change(other.parent.parent, "ppo", base_digest="0" * 64, base=base)
    with pytest.raises(UserError, match=r"was trained on another base .*000000000000"):
        load(run_dir, other)


def test_one_with_another_chat_template_is_refused(run_dir, other) -> None:
    (other / "chat_template.jinja").write_text("{{ messages }}")
    change(other.parent.parent, "ppo", output=fingerprint(other))
    with pytest.raises(UserError, match="was trained with another chat template"):
        load(run_dir, other)


def test_one_that_is_damaged_or_unfinished_is_refused(run_dir, other) -> None:
    change(other.parent.parent, "ppo", output=None)
    with pytest.raises(UserError, match="stage ppo has not finished there"):
        chosen_adapters(open_run(run_dir), [str(other)], reward=False)
    change(other.parent.parent, "ppo", output=fingerprint(other))
    (other / "adapter_config.json").write_text((other / "adapter_config.json").read_text() + "\n")
    with pytest.raises(UserError, match="SHA-256 differs"):
        chosen_adapters(open_run(run_dir), [str(other)], reward=False)
