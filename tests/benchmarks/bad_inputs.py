"""How many bad inputs are refused, and how many are read as they are meant, by class.

python tests/benchmarks/bad_inputs.py [--records FILE] [--machine NAME]

It runs the tests in tests/contract/bad_inputs. An input is refused if it meets an error for the user.
The table is printed only if every test passes, so every other input is read as it is meant.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "tests/contract/bad_inputs"
OTHER = "secrets, pickles, output"
CLASSES = {
    "configurations, overrides, DeepSpeed JSON": (
        "bad_configs",
        "bad_deepspeed_json",
        "bad_fits",
        "all_faults",
    ),
    "data: formats, keys, encodings, sizes": ("bad_data", "large_data", "bad_tasks", "preflight"),
    "chat templates": ("bad_templates",),
    "bases, adapters, and what a stage starts from": ("bad_models", "bad_adapters", "bad_starts"),
    "functions, judges and endpoints": ("bad_feedback", "bad_endpoints"),
    "labels of people": ("bad_people",),
    "runs: manifests, links, locks, reports": ("bad_runs", "bad_links"),
    "checkpoints and records": ("bad_checkpoints", "bad_records"),
    "uses of a run: chat, serve, export, evaluate": ("bad_uses", "bad_evaluations"),
    "environment: variables, hostfiles, pipes, devices": ("bad_environment",),
    "fuzzers, each with many inputs": ("fuzz", "fuzz_adapters", "fuzz_endpoints", "fuzz_templates"),
    OTHER: ("security",),
}
CLASS_OF = {f"test_{module}": name for name, modules in CLASSES.items() for module in modules}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--records", type=Path, help="also write the table as records of docs/evidence")
    parser.add_argument("--machine", default="2-core CPU", help="for the records")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        pytest = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1"]
        if subprocess.run([*pytest, f"--junitxml={report}", FOLDER], cwd=ROOT).returncode:
            return 1
        inputs = Counter(results(report))
    lines = [(name, inputs[name, True], inputs[name, False]) for name in CLASSES]
    for name, refused, read in lines:
        print(f"{name:55} {refused:6} refused {read:6} read as meant")
    if arguments.records:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        )
        records = [
            {
                "table": "bad-inputs",
                "what": name,
                "command": "python tests/benchmarks/bad_inputs.py",
                "n": f"{sum(inputs.values())} inputs",
                "figures": {"refused": refused, "read as meant": read},
                "commit": commit.stdout.strip(),
                "machine": arguments.machine,
                "date": f"{date.today():%Y-%m-%d}",
            }
            for name, refused, read in lines
        ]
        arguments.records.write_text("[\n " + ",\n ".join(map(json.dumps, records)) + "\n]\n")
    return 0


def results(report: Path) -> Iterator[tuple[str, bool]]:
    """The class of each input, and whether it was refused."""
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            module = case.attrib["classname"].split(".")[3]
            properties = {one.attrib["name"]: one.attrib["value"] for one in case.iter("property")}
            yield CLASS_OF[module], properties["refused"] == "True"


if __name__ == "__main__":
    sys.exit(main())
