"""Who may import whom, from the contracts of import-linter."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from docs.generators.markdown import code, table

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def layers() -> str:
    """A table of the layers of the whole and of each folder: the upper ones first."""
    linter = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]
    contracts = [contract for contract in linter["contracts"] if contract["type"] == "layers"]
    return table(("folder", "layers"), [[_folder(each), _layers(each)] for each in contracts])


def _folder(contract: dict[str, Any]) -> str:
    return " ".join(map(code, contract.get("containers", ()))) or "all"


def _layers(contract: dict[str, Any]) -> str:
    return " > ".join(map(_layer, contract["layers"]))


def _layer(names: str) -> str:
    return ", ".join(code(name.strip()) for name in names.split("|"))
