"""The shipped experiments, from the header of each YAML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from configs.load import load_experiment
from docs.generators.markdown import code, prose, table

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FIELDS = re.compile(r"^(Hardware|Run|Override):\s*(.*)")
ALTERNATIVE = re.compile(r"\s+or, [^:]*: ")  # between two ways to run it


@dataclass(frozen=True)
class Header:
    """The comment at the top of a shipped YAML.

    Attributes:
        about: paragraphs that say what it is for.
        fields: text after "Hardware:", "Run:" and "Override:".
    """

    about: list[str]
    fields: dict[str, str]


def read_header(file: Path) -> Header:
    """The header of a YAML: comment lines before its first key."""
    paragraphs, fields, last = [""], dict[str, str](), ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words = line[1:].strip()
        if match := FIELDS.match(words):
            last = match[1]
            fields[last] = match[2]
        elif last:
            fields[last] += f"\n  {words}"
        elif words:
            paragraphs[-1] = f"{paragraphs[-1]} {words}".strip()
        else:
            paragraphs.append("")
    return Header([paragraph for paragraph in paragraphs if paragraph], fields)


def recipes() -> str:
    """A table of all shipped experiments, and a section for each."""
    files = sorted(CONFIGS.glob("*.yaml"))
    rows = [_row(file) for file in files]
    overview = table(("recipe", "base", "quantization", "hardware"), rows)
    return "\n\n".join([overview, *map(_section, files)])


def _row(file: Path) -> list[str]:
    base = load_experiment(file).base
    hardware = prose(read_header(file).fields["Hardware"])
    return [f"[{code(file.name)}](#{file.stem}yaml)", code(base.model), code(base.quantization), hardware]


def _section(file: Path) -> str:
    header = read_header(file)
    hint, _, example = header.fields["Override"].partition(", e.g. ")
    return "\n\n".join(
        [
            f"## {code(file.name)}",
            *map(prose, header.about),
            f"**Hardware:** {prose(header.fields['Hardware'])}",
            "**Run:**",
            _shell(*ALTERNATIVE.split(header.fields["Run"])),
            f"**Override:** {prose(hint)}",
            _shell(example),
        ]
    )


def _shell(*commands: str) -> str:
    return "\n".join(["```sh", *commands, "```"])
