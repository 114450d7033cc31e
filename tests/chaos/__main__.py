"""python -m tests.chaos KILLS [--seed N]: kill the tiny experiment's stages, and print what they survived.

python -m tests.chaos --phases [--ranks N] [--only PHASE]: kill once in each phase, and `tristage` itself.

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

from tests.chaos import phases
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
    parser.add_argument("kills", type=int, nargs="?", default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phases", action="store_true")
    parser.add_argument("--ranks", type=int, default=1, help="of --phases")
    names = [phase for phase, _, _ in phases.IN_STAGES]
    parser.add_argument("--only", choices=names, default="", help="of --phases, one in a stage")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    campaign = Campaign(folder, arguments.seed)
    print(f"seed {arguments.seed}")
    if arguments.phases:
        whole = kill_in_phases(campaign, arguments.ranks, arguments.only)
    else:
        whole = kill(campaign, arguments.kills)
    if not whole:
        print(f"kept for inspection: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def kill_in_phases(campaign: Campaign, ranks: int, only: str) -> bool:
    """Print what came of one kill in each phase. Returns whether all is as if never killed."""
    begin, ended = time.monotonic(), []
    for outcome in phases.outcomes(campaign, ranks, only):
        ended.append(outcome)
        print(outcome.phase, *outcome.faults, sep="\n  ", flush=True)
    print(f"\n{phases.HEADER}", *(outcome.row() for outcome in ended), sep="\n")
    print(f"\nranks: {ranks}, {(time.monotonic() - begin) / 60:.1f} minutes")
    return all(outcome.finished and not outcome.faults for outcome in ended)


def kill(campaign: Campaign, number: int) -> bool:
    """Print what came of `number` random kills. Returns whether all is as if never killed."""
    begin, lives = time.monotonic(), []
    for life in campaign.lives(number):
        lives.append(life)
        kills = ", ".join(f"{kill.target} ({kill.moment or f'{kill.seconds:.1f} s'})" for kill in life.kills)
        print(
            f"{life.stage}, ranks: {life.ranks}, killed: {kills or 'never'}",
            *life.faults,
            sep="\n  ",
            flush=True,
        )
    minutes = (time.monotonic() - begin) / 60
    print(f"\n{table(lives)}\n\n{len(lives)} stages, {minutes:.1f} minutes")
    return not any(life.faults for life in lives)


if __name__ == "__main__":
    sys.exit(main())
