"""The reference pages that people write name what the code has: statuses, files, fields."""

import re
import signal
from typing import get_args

import pytest

from configs.errors import UserError
from configs.schema import ALL_STAGES
from launch.stage_sequence import readable_status
from pipeline.processes.endings import exit_code
from pipeline.state.manifest import Manifest, Status
from pipeline.state.run_directory import RunDirectory
from stages.context import Interrupted
from tests.support.docs_pages import DOCS

PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")}


def first_column(page):
    """The first cell of each row of the page's tables."""
    return re.findall(r"^\| (.+?) \|", PAGES[page], re.MULTILINE)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("a key"), "correct something"),
        (RuntimeError("a fault"), "A stage failed"),
        (Interrupted(signal.SIGINT), "SIGINT"),
        (Interrupted(signal.SIGTERM), "SIGTERM"),
    ],
)
def test_the_page_has_the_status_of_each_ending(error, words):
    assert re.search(rf"^\| {exit_code(error)} \| [^|]*{words}", PAGES["exit-codes"], re.MULTILINE)


def test_the_page_has_the_status_of_a_killed_rank():
    assert readable_status(-signal.SIGKILL) == readable_status(247) == 137
    assert "| 137 | SIGKILL" in PAGES["exit-codes"] and "such as 247 for SIGKILL" in PAGES["exit-codes"]


def test_the_manifest_page_has_every_field_and_status():
    cells = " ".join(first_column("manifest"))
    assert set(re.findall(r"`(\w+)`", cells)) == Manifest.model_fields.keys()
    assert all(f"`{status}`" in PAGES["manifest"] for status in get_args(Status))
    assert all(f"`{stage}`" in PAGES["manifest"] for stage in ALL_STAGES)


def test_the_run_directory_page_has_the_folders_that_the_code_names(tmp_path):
    run = RunDirectory(tmp_path)
    page = PAGES["run-directory"]
    for stage in ALL_STAGES:
        for path in (run.config_file, run.manifest(stage), run.output(stage), run.logs(stage)):
            assert path.name in page
    assert f"`{run.aside('sft').name}`" in page and f"`{run.aside('sft', 'failed').name}`" in page
