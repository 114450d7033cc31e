"""Every shipped experiment loads, has a header, and names only files that exist."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import jinja2
import pytest
from setuptools import find_packages

from configs.load import dump_experiment, load_experiment
from configs.schema import DATA_FILES, STAGES

ROOT = Path(__file__).parents[2]
ROOTS = ("apps", "configs", "data", "stages", "pipeline", "launch")
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
# Keys that the engine sets from the experiment.
FILLED_IN = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)

every_yaml = pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)


def test_the_documented_experiments_are_shipped():
    assert {file.stem for file in SHIPPED} >= {"demo", "tiny", "hh", "qwen3-8b"}


@every_yaml
def test_it_loads_under_its_own_name(file):
    assert load_experiment(file).name == file.stem


@every_yaml
def test_the_dumped_experiment_loads_back_equal(file, tmp_path):
    experiment = load_experiment(file)
    dumped = tmp_path / "config.yaml"
    dumped.write_text(dump_experiment(experiment))
    assert load_experiment(dumped) == experiment


@every_yaml
def test_it_does_not_depend_on_the_working_directory(file, tmp_path, monkeypatch):
    expected = load_experiment(file)
    monkeypatch.chdir(tmp_path)
    assert load_experiment(file) == expected


@every_yaml
def test_every_file_it_names_is_shipped(file):
    experiment = load_experiment(file)
    sources = [source.path for stage in STAGES for source in experiment.data.sources(stage)]
    paths = [path for path in sources if path.endswith(DATA_FILES)] + [experiment.deepspeed.config]
    if experiment.data.chat_template is not None:
        paths.append(experiment.data.chat_template)
    for path in map(Path, paths):
        assert path.is_file() and path.is_relative_to(ROOT)


@every_yaml
def test_its_header_says_what_it_is_for_where_it_ran_and_how_to_run_it(file):
    header = file.read_text().partition("\nname:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("# Hardware: ", "# Run: ", "# Override: ", f"tristage run configs/{file.name}"):
        assert word in header


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_deepspeed_json_leaves_out_what_the_engine_sets(stage):
    options = json.loads((ROOT / f"configs/deepspeed/zero{stage}.json").read_text())
    assert options["zero_optimization"]["stage"] == stage
    assert not set(options) & set(FILLED_IN)


def test_the_chat_template_wraps_turns_in_chatml_without_a_system_prompt():
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    source = (ROOT / "configs/chat/plain.jinja").read_text()
    for tag in (
        "{% generation %}",
        "{% endgeneration %}",
    ):  # tags of transformers that mark the tokens to learn
        source = source.replace(tag, "")
    template = environment.from_string(source)
    prompt_messages = [{"role": "user", "content": "Hello."}]
    prompt = template.render(messages=prompt_messages, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"
    conversation = [*prompt_messages, {"role": "assistant", "content": "Hi."}]
    assert template.render(messages=conversation) == prompt + "Hi.<|im_end|>\n"


@pytest.mark.parametrize("module", ["configs.schema", "configs.load"])
def test_reading_a_config_imports_no_heavy_library(module):
    script = f"import sys, {module}; print(*sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


def test_an_installation_has_every_package_and_every_file_of_them():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = set(find_packages(str(ROOT), include=options["packages"]["find"]["include"]))
    folders = {path.parent for root in ROOTS for path in (ROOT / root).rglob("*.py")}
    assert packages == {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    shipped = {
        path
        for package, patterns in options["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {path for root in ROOTS for path in (ROOT / root).rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc")} <= shipped


def test_constraints_pin_every_requirement_of_this_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {**project["optional-dependencies"], "vllm": []}  # vllm is installed without constraints
    required = [*project["dependencies"], *sum(extras.values(), [])]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in pin and "+" not in pin for pin in pins)
    pinned = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}
    others = [requirement for requirement in required if not requirement.startswith("tristage[")]
    names = {requirement.split(">")[0].split("=")[0].lower() for requirement in others}
    assert names <= pinned
