"""Text of the code cannot become Markdown by accident."""

import pytest

from docs.generators import fill
from docs.generators.markdown import code, prose, table, text


def test_text_is_escaped_and_code_is_not():
    assert text("a_b |  <c>\nd") == r"a\_b \| &lt;c&gt; d"
    assert prose("set `a_b` to x_y.") == r"set `a_b` to x\_y."
    assert code("a|b") == "`a|b`"


def test_a_table_has_one_line_for_each_row():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_markers_are_filled_and_unknown_ones_fail():
    assert fill("plain") == "plain"
    assert "## `tristage run`" in fill("before\n<!-- generated: command-line -->\nafter")
    with pytest.raises(KeyError):
        fill("<!-- generated: nothing -->")
