"""Every recorded measurement is complete and is shown on a page."""

import re
from datetime import date

import pytest

from docs.generators.evidence import FOLDER, Record, _row, evidence, read_records
from tests.support.runs import ROOT

FILES = sorted(FOLDER.glob("*.json"))
RECORDS = [(file.stem, record) for file in FILES for record in read_records(file)]
MARKER = re.compile(r"<!-- generated: evidence (\S+) -->")


def test_every_record_is_shown_once():
    shown = [name for page in FOLDER.parent.rglob("*.md") for name in MARKER.findall(page.read_text("utf-8"))]
    assert len(shown) == len(set(shown))
    assert set(shown) == {f"{file}/{record.table}" for file, record in RECORDS}


@pytest.mark.parametrize(("file", "record"), RECORDS)
def test_every_record_names_a_command_that_exists(file, record):
    program, *words = record.command.split()
    assert record.date <= date.today()
    if program == "python" and words[0] == "-m" and words[1] != "pytest":
        module = ROOT / words[1].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    elif program == "python":
        script = words[0] if words[0] != "-m" else words[2]
        assert (ROOT / script).exists()


def test_a_table_has_all_columns_and_where_its_figures_come_from():
    page = evidence("benchmarks/gpu")
    assert page.startswith("| what | Tristage | compared with | ratio | target | met | run |\n")
    assert "| 10.92 GiB | 46.43 GiB | 0.24 | at most 0.4 | yes | 1 |" in page
    assert "| 11.30 GiB | 11.19 GiB | 1.01 | at most 1.0 | **no** |" in page
    assert "H200" in page and "commit `753b529`" in page


@pytest.mark.parametrize(
    ("figure", "shown"),
    [
        (0.006, "0.006"),
        (40.4, "40.4"),
        (0.3, "0.3"),
        (0.12345, "0.123"),
        (1234.5, "1234"),
        (24, "24"),
        (False, "**no**"),
    ],
)
def test_a_number_has_three_significant_digits_at_most(figure, shown):
    record = RECORDS[0][1].model_copy(update={"figures": {"measured": figure}})
    assert _row(record, ["measured"], 1)[1] == shown


def test_a_machine_that_was_not_recorded_is_called_so():
    record = RECORDS[0][1]
    assert f"<br>{record.machine}; " in record.origin
    assert "<br>machine not recorded; " in record.model_copy(update={"machine": "not recorded"}).origin


def test_a_ratio_is_that_of_its_figures():
    """Both sides are rounded, so their ratio is right to about two digits."""
    compared = [record for _, record in RECORDS if {"Tristage", "compared with"} <= record.figures.keys()]
    assert len(compared) > 20
    for record in compared:
        ours, theirs = (float(str(record.figures[side]).split()[0]) for side in ("Tristage", "compared with"))
        assert record.figures["ratio"] == pytest.approx(ours / theirs, rel=0.025, abs=0.006), record.what


def test_an_incomplete_record_is_refused():
    whole = RECORDS[0][1].model_dump()
    for field in ("command", "commit", "machine", "date", "n", "figures"):
        with pytest.raises(ValueError, match=field):
            Record.model_validate({name: value for name, value in whole.items() if name != field})


def test_a_table_without_a_record_is_an_error():
    with pytest.raises(KeyError, match="no record"):
        evidence("benchmarks/nothing")
