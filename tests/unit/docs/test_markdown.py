"""Text of the code cannot become Markdown by accident."""

import re

import pytest

from docs.generators import PART, fill, pages
from docs.generators.markdown import code, prose, table, text


def test_text_is_escaped_and_code_is_not():
    assert text("a_b |  <c>\nd") == r"a\_b \| &lt;c&gt; d"
    assert prose("set `a_b` to x_y.") == r"set `a_b` to x\_y."
    assert code("a|b") == "`a|b`"


def test_a_table_has_one_line_for_each_row():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_parts_are_written_again_and_unknown_ones_fail():
    assert fill("plain") == "plain"
    page = "before\n<!-- generated: command-line -->\nstale\n<!-- end -->\nafter"
    assert "## `tristage run`" in fill(page) and "stale" not in fill(page)
    assert fill(fill(page)) == fill(page)
    with pytest.raises(KeyError):
        fill("<!-- generated: nothing -->\n<!-- end -->")


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_generated_parts_of_a_page_are_fresh(page):
    written = page.read_text(encoding="utf-8")
    begun = re.findall("^<!-- generated: ", written, re.MULTILINE)
    assert len(begun) == written.count("\n<!-- end -->\n") == len(PART.findall(written))
    assert fill(written) == written, "stale: run `python -m docs.generators`"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_no_block_of_a_page_is_empty(page):
    blocks = re.split("^ *```.*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1::2]
    assert all(block.strip() for block in blocks)
