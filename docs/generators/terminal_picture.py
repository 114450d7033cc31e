"""A picture of a command in a terminal, for a page: what it prints, with its colours, as SVG.

python -m docs.generators.terminal_picture docs/images/export.svg --width 100 -- tristage export --run-dir RUN

--hide DIR leaves the name of a folder out of paths, so that none of this machine is in the picture.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

MOST_LINES = 60
FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # from another server: a reader asks nobody else


def record(command: list[str], width: int) -> str:
    """What a command prints to a terminal of so many columns, with its colours.

    Raises:
        CalledProcessError: it fails.
    """
    variables = os.environ | {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    variables.pop("NO_COLOR", None)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return done.stdout


def picture(shown: str, output: str, width: int) -> str:
    """An SVG of a terminal: the command as it was typed, and its output."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "dim"), (shown, "bold")))
    for line in output.splitlines()[:MOST_LINES]:
        console.print(Text.from_ansi(line))
    return FONTS.sub("", console.export_svg(title=""))


def main() -> None:
    """Run the command and write its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, help="the SVG to write")
    parser.add_argument("--width", type=int, default=100, help="columns")
    parser.add_argument(
        "--hide", default="", metavar="DIR", help="leave the name of this folder out of paths"
    )
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    folder = f"{options.hide.rstrip('/')}/" if options.hide else ""
    shown, output = shlex.join(options.command), record(options.command, options.width)
    if folder:
        shown, output = shown.replace(folder, ""), output.replace(folder, "")
    options.file.write_text(picture(shown, output, options.width), encoding="utf-8")
    print(f"wrote {options.file}", file=sys.stderr)


if __name__ == "__main__":
    main()
