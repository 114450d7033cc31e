"""python -m tests.chaos KILLS [--seed N]: kill the tiny experiment's stages, and print what they survived.

If any result differs from that without kills, the exit status is 1 and the folders are kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.campaign import Campaign, Life

HEADER = """| killed | moment | kills | recovered | bit-identical |
|---|---|---|---|---|"""


def table(lives: Sequence[Life]) -> str:
    """Kills by target and moment: how many stages finished afterwards, and how many without a difference."""
    lines: dict[tuple[str, str], list[int]] = {}
    for life in lives:
        for kill in life.kills:
            for key in ((kill.target, kill.kind), ("together", "")):
                counts = lines.setdefault(key, [0, 0, 0])
                for i, outcome in enumerate((True, life.finished, life.finished and not life.faults)):
                    counts[i] += outcome
    totals = lines.pop(("together", ""), [0, 0, 0])
    body = [
        f"| {target} | {kind} | {' | '.join(map(str, lines[target, kind]))} |"
        for target, kind in sorted(lines)
    ]
    return "\n".join([HEADER, *body, f"| together | | {' | '.join(map(str, totals))} |"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, begin, lives = Path(tempfile.mkdtemp(prefix="chaos-")), time.monotonic(), []
    for life in Campaign(folder, arguments.seed).lives(arguments.kills):
        lives.append(life)
        kills = ", ".join(f"{kill.target} ({kill.moment or f'{kill.seconds:.1f} s'})" for kill in life.kills)
        print(
            f"{life.stage}, ranks: {life.ranks}, killed: {kills or 'never'}",
            *life.faults,
            sep="\n  ",
            flush=True,
        )
    minutes = (time.monotonic() - begin) / 60
    print(f"\n{table(lives)}\n\nseed {arguments.seed}, {len(lives)} stages, {minutes:.1f} minutes")
    if any(life.faults for life in lives):
        print(f"kept for inspection: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
