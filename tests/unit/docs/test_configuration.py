"""The reference of the configuration has every key of the schema, with its default and what is allowed."""

import re

import yaml

from configs.error_messages import all_keys, is_section, node_at
from configs.load import load_experiment
from configs.schema import Reward
from docs.generators.configuration import configuration, leaves, sections
from tests.support.runs import TINY

ANCHOR = re.compile(r'<a id="([^"]+)"></a>')
ROW = re.compile(r"^\| (?:<a [^>]*></a>)+`(\w+)` \| (.*?) \| (.*?) \| (.*) \|$", re.MULTILINE)
PAGE = configuration()


def values():
    """The dotted path of every key that holds a value."""
    paths = {".".join(keys) for keys in all_keys() if (node := node_at(keys)) and not is_section(node)}
    return paths | {f"ppo.rewards[].{key}" for key in Reward.model_fields}


def test_every_key_has_one_anchor():
    anchors = ANCHOR.findall(PAGE)
    assert len(anchors) == len(set(anchors))
    assert values() <= set(anchors)


def test_every_row_is_described():
    rows = ROW.findall(PAGE)
    assert len(rows) == sum(len(leaves(paths[0], node)) for paths, node in sections())
    assert all(len(what.split()) >= 2 for *_, what in rows)


def test_equal_sections_share_a_table():
    paths = [paths for paths, _ in sections()]
    assert ["rm.rankings.rollout", "ppo.rollout", "best.rollout"] in paths
    assert ["data.sft", "data.rm", "data.ppo"] in paths
    assert ["ppo"] in paths and ["sft"] in paths


def test_defaults_are_those_of_an_experiment():
    """A default on the page reads, as YAML, as the value of an experiment that does not set the key."""
    experiment = load_experiment(TINY).model_dump(mode="json")
    defaults = {
        section: {key: default for key, default, *_ in ROW.findall(part)}
        for section, part in re.findall(r"^## `([\w.]+)`(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    }
    ppo = defaults["ppo"]
    for key in ("kl_coef", "lam", "whiten_advantages", "critic", "max_kl", "clip_range", "scheduler"):
        shown = "null" if ppo[key] == "none" else ppo[key].strip("`")
        assert yaml.safe_load(shown) == experiment["ppo"][key], key
    assert defaults["rm.rankings"]["completions"] == "`4`"
    assert defaults["base"]["model"] == "*required*"


def test_what_is_allowed_leaves_out_bounds_that_only_catch_slips():
    allowed = {key: text for key, _, text, _ in ROW.findall(PAGE)}
    assert allowed["kl_horizon"] == "a number &gt; 0"
    assert allowed["gamma"] == "a number ≥ 0 and ≤ 1"
    assert "1,000,000" not in "".join(allowed.values())
    assert allowed["rewards"] == "a list of sections, see [`ppo.rewards[]`](#ppo.rewards-items)"
