"""metrics.jsonl and samples.jsonl, rewinding them, and the terminal's output."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.terminal.format import show_metrics, show_number, show_seconds
from pipeline.terminal.progress import LiveDisplay, PlainDisplay
from pipeline.tracking.metric_files import FileSink, JsonLines
from pipeline.tracking.reporter import NullReporter, Reporter


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_reporter_writes_both_files_as_it_goes(tmp_path: Path) -> None:
    reporter = Reporter(PlainDisplay(lambda line: None), [FileSink(tmp_path)])
    reporter.log({"loss": 0.1 + 0.2}, 1)
    reporter.samples([{"prompt": "p", "score": 1.5}, {"prompt": "q", "score": -1.0}], 1)
    assert records(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.30000000000000004}]
    assert records(tmp_path / "samples.jsonl") == [
        {"step": 1, "prompt": "p", "score": 1.5},
        {"step": 1, "prompt": "q", "score": -1.0},
    ]
    reporter.close(0)


def test_null_reporter_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reporter = NullReporter()
    reporter.phase("training", 1)
    reporter.log({"loss": 1.0}, 1)
    reporter.samples([{"prompt": "p"}], 1)
    reporter.rewind(0)
    assert list(tmp_path.iterdir()) == []


def test_rewind_drops_later_steps_and_appends_after_it(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3, 4):
        lines.append(step, {"loss": float(step)})
    lines.rewind(2)
    lines.append(3, {"loss": 30.0})
    assert [(row["step"], row["loss"]) for row in records(lines.path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


@pytest.mark.parametrize(
    "tail", ['{"step": 2, "lo', '{"step": 2}', "\0\0\0\0", '{"step": 2, "loss": 1.0}\n\0\0']
)
def test_rewind_drops_what_a_kill_left_half_written(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n' + tail)
    lines = JsonLines(path)
    lines.rewind(1)
    lines.append(2, {"loss": 2.0})
    assert records(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]


def test_rewind_drops_a_line_of_zeros_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\0\0\0\n{"step": 2}\n')
    JsonLines(path).rewind(2)
    assert records(path) == [{"step": 1}, {"step": 2}]


def test_rewind_to_before_the_start_empties_the_file(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append(0, {"eval/loss": 1.0})
    lines.rewind(-1)
    assert lines.path.read_text() == ""


def test_lines_are_valid_json_whatever_is_in_them(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "samples.jsonl")
    text = "one\u2028two\u0085three\nfour “ü”"
    lines.append(1, {"response": text, "score": float("nan")})
    assert records(lines.path) == [{"step": 1, "response": text, "score": None}]
    assert "“ü”" in lines.path.read_text(), "what a person can read stays readable"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_display_prints_a_line_per_tenth() -> None:
    lines: list[str] = []
    display = PlainDisplay(lines.append, Clock())
    display.phase("training", 200, 0)
    for _ in range(200):
        display.advance(1, {"loss": 0.5})
    assert len(lines) == 10
    assert lines[0].startswith("training 20/200") and lines[-1].startswith("training 200/200")
    assert lines[0].endswith("loss 0.500")


def test_plain_display_prints_every_half_minute_if_steps_are_slow() -> None:
    lines: list[str] = []
    clock = Clock()
    display = PlainDisplay(lines.append, clock)
    display.phase("training", 1000, 0)
    for _ in range(8):
        clock.now += 10
        display.advance(1, {})
    assert [line.split("  ")[0] for line in lines] == ["training 3/1000", "training 6/1000"]
    assert "  30 s, " in lines[0]
    assert "2:46:10 left" in lines[0], "997 steps of 10 s are 9970 s"


def test_plain_display_returns_to_the_phase_around_an_evaluation() -> None:
    lines: list[str] = []
    display = PlainDisplay(lines.append, Clock())
    display.phase("training", 2, 0)
    display.advance(1, {})
    display.phase("evaluation", 1, 0)
    display.advance(1, {})
    display.advance(1, {})
    assert [line.split("  ")[0] for line in lines] == ["training 1/2", "evaluation 1/1", "training 2/2"]


def test_plain_display_says_where_a_resumed_phase_stands() -> None:
    lines: list[str] = []
    display = PlainDisplay(lines.append, Clock())
    display.phase("training", 100, 40)
    assert lines == ["training resumes from 40/100"]


def test_live_display_shows_and_survives_nested_phases() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    display = LiveDisplay(console)
    display.advance(1, {})
    display.phase("training", 2, 0)
    display.phase("evaluation", 1, 0)
    display.advance(1, {})
    display.advance(2, {"loss": 0.25})
    display.note("[not markup]")
    display.close()
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "training" in shown and "2/2" in shown and "loss 0.25" in shown and "[not markup]" in shown


def test_figures_that_matter_come_first_by_short_names() -> None:
    figures = {"grad_norm": 3.0, "tokens_per_second": 1234.5, "objective/kl": 0.12345}
    assert show_metrics(figures) == "KL 0.123  tok/s 1234"
    assert show_metrics({"other": 1.0}) == "other 1"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.69314, "0.693"),
        (12.345, "12.3"),
        (9.996, "10.0"),
        (0.0855, "0.0855"),
        (2, "2"),
        (1e-5, "1.00e-05"),
        (0.0, "0"),
        (float("nan"), "nan"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert show_number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (187, "3:07"), (3787, "1:03:07")])
def test_seconds(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text
