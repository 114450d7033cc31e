"""Every page of docs/: YAML loads, commands parse, examples compute, keys, metrics and messages exist."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import re
import shlex
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import typer
import yaml
from pydantic import BaseModel

from configs.errors import UserError
from configs.judge_file import read_judge
from configs.load import load_experiment
from configs.schema import Experiment, Ppo, Rm, Sft, Source, Stage
from data.sources.loading import load_rows
from docs.generators import PART
from launch.arguments import RequestOptions, command
from launch.commands import app
from launch.sweep import seeds_of, split_axes
from tests.contract.bad_inputs.entry import VALID
from tests.support.docs_pages import DOCS, KEY, METRIC, ROOT, Block, blocks, pages, prose, table, text_of

CODE = ("configs", "data", "stages", "pipeline", "launch")
OWN_TESTS = (
    "datasets.md",
    "guides/datasets.md",
    "guides/tasks.md",
)  # each of its rows is read by another test
OTHERS = {
    "git",
    "cd",
    "source",
    "export",
    "echo",
    "cp",
    "curl",
    "wandb",
    "hf",
    "kill",
    "pip",
    "python3.11",
    ".venv-gguf/bin/pip",
    "ollama",
    "rewardbench",
}  # not this project's
TARGETS = set(re.findall(r"^([\w-]+)(?: [\w-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE))
INLINE = re.compile(r"`((?:tristage|make|deepspeed|sbatch) [^`]+)`")
MESSAGE = re.compile(r"^> (.+)$", re.MULTILINE)
ANYTHING = "…"

run_stage = typer.Typer(add_completion=False)


@dataclass(frozen=True, kw_only=True)
class StageOptions(RequestOptions):
    """The command line of `launch/run_stage.py`, whose import would change this process."""

    stage: Annotated[Stage, typer.Option()]


@command(run_stage, "")
def stage(options: StageOptions) -> int:
    raise AssertionError(options)


def commands() -> list[tuple[str, str]]:
    """(page, command line) of each line in a block of shell, and of each command in backticks."""
    lines = [
        (block.page, line)
        for block in blocks("sh")
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    written = [(page, PART.sub("", prose(page))) for page in pages()]  # generated parts show usages, too
    inline = [
        (str(page.relative_to(DOCS)), found) for page, text in written for found in INLINE.findall(text)
    ]
    return lines + inline


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if b.title == "judge"], ids=str)
def test_every_judge_loads(block: Block, tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(block.text)
    read_judge(tmp_path / "judge.yaml", "--judges")


@pytest.mark.parametrize(
    "block",
    [b for b in blocks("yaml") if b.title not in ("judge", "benchmark") and b.page not in OWN_TESTS[2:]],
    ids=str,
)
def test_every_yaml_loads_or_is_refused(block: Block, tmp_path: Path) -> None:
    given = yaml.safe_load(block.text)
    file = tmp_path / "page.yaml"
    file.write_text(block.text if "base" in given else yaml.safe_dump(yaml.safe_load(VALID) | given))
    if block.title == "refused":
        with pytest.raises(UserError):
            load_experiment(file)
    else:
        load_experiment(file)


@pytest.mark.parametrize("block", [b for b in blocks("jsonl") if b.page not in OWN_TESTS], ids=str)
def test_every_row_is_read(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(block.text, encoding="utf-8")
    loaded = load_rows(Source(path=str(file)), block.title, lambda note: None)  # type: ignore[arg-type]
    assert len(loaded.rows) == len(block.text.splitlines())


@pytest.mark.parametrize("block", blocks("pycon"), ids=str)
def test_every_example_computes_what_the_page_shows(block: Block) -> None:
    example = doctest.DocTestParser().get_doctest(block.text, {}, block.page, block.page, 0)
    assert example.examples and not doctest.DocTestRunner().run(example).failed


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: value[:60])
def test_every_command_parses(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    while "=" in words[0]:
        words.pop(0)  # a variable of this command
    program, *arguments = words
    for word in words:
        if word.startswith(("configs/", "launch/")):
            assert (ROOT / word).exists(), word
    if program == "tristage":
        check_arguments(app, arguments)
    elif program == "deepspeed":
        assert arguments.pop(0) == "launch/run_stage.py"
        check_arguments(run_stage, arguments)
    elif program == "make":
        assert {word for word in arguments if "=" not in word} <= TARGETS
    elif program == "sbatch":
        assert "launch/slurm.sbatch" in arguments
    elif program == "python" and arguments[0] == "-c":
        compile(arguments[1], line, "exec")
    elif program == "python":
        assert arguments[0].startswith("tests/") or importlib.util.find_spec(arguments[1])
    else:
        assert program in OTHERS


def check_arguments(app: typer.Typer, arguments: list[str]) -> None:
    """The command line is accepted, and its overrides are those of an experiment."""
    program: Any = typer.main.get_command(app)
    if arguments[0].startswith("--"):
        assert arguments[0] in {option for parameter in program.params for option in parameter.opts}
        return
    if "commands" in vars(program):
        if arguments == ["COMMAND", "--help"]:
            return
        program = program.commands[arguments.pop(0)]
    context = program.make_context("page", arguments)
    given = [word for word in context.params.get("overrides", ()) if "=" in word]
    given, _ = seeds_of(given, context.params.get("seeds"))
    fixed, axes = split_axes(given)
    load_experiment(ROOT / "configs" / "demo.yaml", [*fixed, *(values[0] for values in axes)])


@cache
def keys() -> set[str]:
    """Every section and key of the schema, dotted; terms of the reward without their number."""
    return set(walk(Experiment, ""))


def walk(section: type[BaseModel], prefix: str) -> list[str]:
    found = []
    for attribute, field in section.model_fields.items():
        name = field.alias or attribute
        found.append(prefix + name)
        for inner in sections_in(field.annotation):
            found += walk(inner, f"{prefix}{name}.")
    return found


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is None:
        return []
    return [section for part in get_args(annotation) for section in sections_in(part)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(DOCS)))
def test_every_key_is_one_of_the_schema(page: Path) -> None:
    assert set(KEY.findall(prose(page))) <= keys()


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(DOCS)))
def test_every_metric_is_logged(page: Path) -> None:
    if page.name == "metrics.md":  # it names TRL's, too, and has a test of its own
        return
    named = set(METRIC.findall(prose(page)))
    logged = {text for text in literals() if "/" in text}
    of_evaluation = {name for name in named if name.startswith("eval/")}
    assert named - of_evaluation <= logged
    assert {name.removeprefix("eval/") for name in of_evaluation} <= literals()


@cache
def literals() -> set[str]:
    """Every text in the code. The values that a message inserts are `…`."""
    return {
        constant_of(node)
        for folder in CODE
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant | ast.JoinedStr)
    }


def constant_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(constant_of(part) for part in node.values)
    return str(node.value).replace("%s", ANYTHING) if isinstance(node, ast.Constant) else ANYTHING


@pytest.mark.parametrize(
    "message", MESSAGE.findall(text_of("troubleshooting.md")), ids=lambda text: text[:40]
)
def test_every_quoted_message_is_one_of_the_program(message: str) -> None:
    pattern = re.compile(".*".join(map(re.escape, message.strip(ANYTHING).split(ANYTHING))), re.DOTALL)
    assert any(pattern.search(text) for text in literals())


@pytest.mark.parametrize("row", table("guides/hyper-parameters.md", "stage"), ids=lambda row: row[1])
def test_the_first_values_to_try_are_those_of_schema_and_recipes(row: list[str]) -> None:
    key = row[1].strip("`")
    defaults = load_experiment(ROOT / "configs" / "tiny.yaml").model_copy(
        update={"sft": Sft(), "rm": Rm(), "ppo": Ppo()}
    )
    recipes = [load_experiment(ROOT / "configs" / f"{name}.yaml") for name in ("hh", "qwen3-8b")]
    assert [float(cell) for cell in row[2:5]] == [attrgetter(key)(config) for config in (defaults, *recipes)]
