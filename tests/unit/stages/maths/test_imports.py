"""The maths is tensors in, tensors out: it imports the standard library, torch, numpy and itself."""

import ast
import sys
from pathlib import Path

from stages import maths


def imported(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return plain | {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}


def test_nothing_else_is_imported():
    files = list(Path(*maths.__path__).glob("**/*.py"))
    foreign = {
        (file.name, name)
        for file in files
        for name in imported(file)
        if name.split(".")[0] not in {*sys.stdlib_module_names, "torch", "numpy"}
        and not f"{name}.".startswith("stages.maths.")
    }
    assert len(files) > 5 and not foreign
