"""`tristage init` and `tristage explain`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from configs.error_messages import all_keys
from configs.load import load_experiment
from configs.recipes import OWN_DATA, RECIPES, experiment_name
from pipeline.terminal.explain import PAGES
from tests.contract.bad_inputs.entry import check_message, experiment, files, tristage
from tests.support.runs import ROOT

CONFIGS = ROOT / "configs"
ROWS = {
    "demonstrations": '{"prompt": "Number %d?", "completion": "Yes."}\n',
    "rankings": '{"prompt": "Number %d?", "chosen": "Yes.", "rejected": "No."}\n',
    "prompts": '{"prompt": "Number %d?"}\n',
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Start from a folder that is not the project's."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_the_shipped_experiment_under_another_name(recipe, tmp_path):
    status, stdout, _ = tristage("init", "--recipe", recipe, "sub dir.yaml")
    assert status == 0 and "next: tristage plan 'sub dir.yaml'" in stdout
    shipped = load_experiment(CONFIGS / f"{recipe}.yaml")
    assert load_experiment(tmp_path / "sub dir.yaml") == shipped.model_copy(update={"name": "sub-dir"})
    text = (tmp_path / "sub dir.yaml").read_text()
    assert text.count("\n") == (CONFIGS / f"{recipe}.yaml").read_text().count("\n"), "comments are kept"
    assert f"configs/{recipe}.yaml" not in text


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_the_name_of_its_file_by_default(recipe, tmp_path):
    assert tristage("init", "--recipe", recipe)[0] == 0
    assert load_experiment(tmp_path / f"{recipe}.yaml").name == recipe


def test_an_experiment_for_own_data_plans_once_the_data_is_there(tmp_path, material_checks):
    assert tristage("init", "mine.yaml")[0] == 0
    status, _, stderr = tristage("plan", "mine.yaml")
    assert status == 2
    check_message(stderr, *(f"{tmp_path}/{name}.jsonl: there is no such file" for name in ROWS))
    for name, row in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(row % number for number in range(20)))
    status, stdout, stderr = tristage("plan", "mine.yaml")
    assert (status, stderr) == (0, "")
    assert f"experiment mine, in {tmp_path}/runs/mine" in stdout
    assert "data.rm: 20 rows read, 0 left out, 0 of other stages; 18 to train on, 2 held out" in stdout


def test_the_experiment_for_own_data_explains_each_of_its_keys():
    lines = (CONFIGS / OWN_DATA).read_text().partition("\nname: ")[2].splitlines()
    unexplained = [line for line in lines if line and "# " not in line]
    assert unexplained == []


def test_the_rows_that_the_header_shows_are_rows():
    header = (CONFIGS / OWN_DATA).read_text().partition("\nname: ")[0]
    shown = re.findall(r"(\w+)\.jsonl +(\{.*\})", header)
    assert [name for name, _ in shown] == list(ROWS)
    assert [list(yaml.safe_load(row)) for _, row in shown] == [
        ["prompt", "completion"],
        ["prompt", "chosen", "rejected"],
        ["prompt"],
    ]


@pytest.mark.parametrize("place", ["trial.yaml", "folder", "link.yaml"])
def test_init_keeps_what_is_there(place, tmp_path):
    experiment(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.yaml").symlink_to("nowhere.yaml")
    before = files(tmp_path)
    status, _, stderr = tristage("init", place)
    assert status == 2 and files(tmp_path) == before and not (tmp_path / "nowhere.yaml").exists()
    check_message(stderr, f"error: {place}: exists, and is kept. Give the name of a new file.")


@pytest.mark.parametrize("place", ["none/mine.yaml", "x" * 300, "a\udcfc.yaml"])
def test_init_cannot_write_there(place, tmp_path):
    status, _, stderr = tristage("init", place)
    assert status == 2 and not list(tmp_path.iterdir())
    check_message(stderr, "cannot be written: ", "Give another file.")


@pytest.mark.parametrize(
    ("file", "name"),
    [("a.yaml", "a"), ("my run (2).yaml", "my-run-2-"), (".hidden", "hidden"), ("ä.yaml", "experiment")],
)
def test_an_experiment_is_named_after_its_file(file, name):
    assert experiment_name(Path(file)) == name


def test_explain_shows_what_a_key_does():
    status, stdout, _ = tristage("explain", "ppo.gamma")
    assert status == 0
    assert stdout.splitlines()[1:] == [
        "default: 1",
        "allowed: a number ≥ 0 and ≤ 1",
        "page: docs/reference/ppo.md",
    ]
    assert stdout.startswith("ppo.gamma: discount of GAE")


@pytest.mark.parametrize("keys", list(all_keys()), ids=".".join)
def test_explain_knows_every_key(keys):
    status, stdout, stderr = tristage("explain", ".".join(keys))
    assert (status, stderr) == (0, "")
    assert stdout.startswith(".".join(keys)) and "\npage: docs/" in stdout


def test_explain_shows_the_keys_of_a_section_in_a_line_each():
    lines = tristage("explain", "data")[1].splitlines()
    keys = [keys[1] for keys in all_keys() if len(keys) == 2 and keys[0] == "data"]
    assert [line.split()[0] for line in lines[1:-1]] == keys
    assert re.search(r"  max_length +1024 +maximum tokens of prompt and response", "\n".join(lines))
    assert re.search(r"\n  sft +\(required\) ", "\n".join(lines))


def test_explain_of_a_list_of_sections_shows_their_keys():
    stdout = tristage("explain", "ppo.rewards")[1]
    assert stdout.startswith("ppo.rewards (a list): ") and "\n  key_variable     null " in stdout


def test_explain_of_a_source_says_that_there_may_be_several():
    assert tristage("explain", "data.sft")[1].startswith("data.sft (one, or a list): ")
    assert tristage("explain", "data.sft[1].weight")[1].startswith("data.sft[1].weight: how often")


def test_explain_without_a_key_shows_the_sections():
    stdout = tristage("explain")[1]
    assert "\n  ppo        (section)   PPO" in stdout


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("kl_coef", "kl_coef: unknown key; did you mean ppo.kl_coef?"),
        ("ppo.kl_cof", "ppo.kl_cof: unknown key; did you mean ppo.kl_coef? `tristage explain ppo` lists"),
        ("seed.x", "seed.x: unknown key; seed holds an integer"),
        ("a..b", "a: unknown key"),
        ("x" * 5000, "unknown key"),
    ],
)
def test_explain_of_an_unknown_key(key, message):
    status, stdout, stderr = tristage("explain", key)
    assert (status, stdout) == (2, "")
    check_message(stderr, message)


@pytest.mark.skipif(not (ROOT / "mkdocs.yml").is_file(), reason="the site is not in this tree")
@pytest.mark.parametrize("page", sorted(set(PAGES.values())))
def test_the_pages_exist(page):
    assert (ROOT / page).is_file()


@pytest.mark.parametrize("command", ["init", "explain", "preview", "doctor"])
def test_help_has_one_line_and_ends_with_an_example(command):
    status, stdout, _ = tristage(command, "--help")
    lines = [line.strip() for line in stdout.splitlines() if line.strip()]
    assert status == 0 and lines[0].startswith(f"Usage: tristage {command} ")
    assert lines[-1].startswith(f"Example: tristage {command}")
