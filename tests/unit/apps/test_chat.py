"""`tristage chat` on the tiny model: lines of a pipe, lines of a person, commands."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from apps.answers.loading import load
from apps.chat import chat as module
from apps.chat.chat import Chat, open_session
from apps.chat.commands import Quit, run_command
from apps.chat.screen import columns
from apps.chat.session import Session
from apps.trained_run import open_run
from configs.errors import UserError
from configs.safe_text import visible
from tests.support.random_run import without_stage

ROOT = Path(__file__).resolve().parents[3]
LINE = "My cat is sick."


@pytest.fixture
def session(run, loaded) -> Session:
    return Session(run, loaded, ["ppo"])


def answer(session, text=LINE, policy="ppo"):
    *_, last = session.answer(text, lambda: False)
    return last[policy]


def piped(monkeypatch, session, text: bytes) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))
    return Chat(session, typed=False).run()


def test_a_pipe_gets_one_answer_for_each_line(session, run, loaded, monkeypatch, capsys):
    assert piped(monkeypatch, session, f"{LINE}\n\n/reset\n{LINE}\n".encode()) == 0
    printed, again = capsys.readouterr(), Session(run, loaded, ["ppo"])
    texts = []
    for _ in range(2):
        texts.append(answer(again).text)
        again.reset()
    assert [part for text in texts for part in visible(text).split()] == printed.out.split()
    assert printed.err.count("score ") == 2 and "seed 1" in printed.err


def test_bad_lines_of_a_pipe_are_told_and_the_rest_is_answered(session, monkeypatch, capsys):
    assert piped(monkeypatch, session, b"/fly\na\0b\n" + b"\xff\xfe\n/quit\nnever\n") == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert "/fly: no such command" in errors and "NUL" in errors
    assert errors.count("error: ") == 2 and errors.count("score ") == 1


def test_turns_are_remembered_until_reset(session, run, loaded):
    first = answer(session)
    second = answer(session, "Thank you.")
    assert len(second.order.prompt_ids) > len(first.order.prompt_ids) + len(first.text.split())
    run_command("/reset", session)
    run_command("/seed 0", session)
    again = answer(session)
    assert (again.text, again.order) == (first.text, first.order)


def test_a_conversation_that_is_too_long_says_what_to_do(session):
    answer(session)
    with pytest.raises(UserError, match="Type /reset to begin again"):
        answer(session, "cat " * 2000)
    answer(session, "Thank you.")  # the long line was not said


def test_two_policies_share_prompt_and_noise(run, loaded):
    both = Session(run, loaded, ["sft", "ppo"])
    *_, last = both.answer(LINE, lambda: False)
    assert {name: each.order.seed for name, each in last.items()} == {"sft": 0, "ppo": 0}
    for name, each in last.items():
        assert each.text == answer(Session(run, loaded, [name]), policy=name).text
        assert both.score(name, LINE, each) is not None
    assert [str(column.header) for column in columns(last).columns] == ["sft", "ppo"]


def test_an_interrupted_answer_keeps_what_was_said(session):
    steps = iter([False, False, True])
    *_, last = session.answer(LINE, lambda: next(steps))
    assert last["ppo"].finish is None and len(last["ppo"].tokens) == 3
    answer(session, "Go on.")


def test_commands(session):
    assert (
        run_command("/temperature 0.5", session) == run_command("/temperature", session) == "temperature 0.5"
    )
    assert session.settings.sampling.temperature == 0.5
    assert run_command("/seed 7", session).startswith("seed 7")
    for word in ("/help", "/reset", "/temperature", "/seed", "/quit", "Ctrl-C", "Ctrl-D"):
        assert word in run_command("/help", session)
    with pytest.raises(Quit):
        run_command("/quit", session)


@pytest.mark.parametrize(
    "line", ["/temperature hot", "/temperature nan", "/temperature -1", "/seed -1", "/seed 1.5", "/", "/?"]
)
def test_commands_that_are_wrong(session, line):
    with pytest.raises(UserError):
        run_command(line, session)


def test_each_line_is_a_text_to_continue(text_run_dir, monkeypatch, capsys):
    run = open_run(text_run_dir)
    loaded = load(run, ["sft"], score=False)
    session = Session(run, loaded, ["sft"])
    assert session.continues_text
    for _ in range(2):  # the second one, too: no line is a turn of a conversation
        assert answer(session, policy="sft").order.prompt_ids == loaded.tokenizer(LINE)["input_ids"]
    assert piped(monkeypatch, session, LINE.encode()) == 0
    assert "score" not in capsys.readouterr().err


def test_a_run_without_a_reward_model_has_no_scores(run_dir, tmp_path):
    run = open_run(without_stage(run_dir, "rm", tmp_path / "run"))
    session = open_session(run, ["sft"], score=True)
    assert session.score("sft", LINE, answer(session, policy="sft")) is None


def test_one_policy_is_not_compared_with_itself(run):
    with pytest.raises(UserError, match="twice the same policy"):
        open_session(run, ["sft", "sft"], score=True)


def test_control_characters_of_an_answer_are_shown_not_obeyed(session, monkeypatch, capsys):
    monkeypatch.setattr(module, "stream", lambda console, answers: _print_escape(console, answers))
    piped(monkeypatch, session, LINE.encode())
    assert "\x1b" not in capsys.readouterr().out


def _print_escape(console, answers):
    *_, last = answers
    console.print("\x1b[2J")
    return last


def test_a_person_at_a_terminal(run_dir):
    """Ctrl-C ends an answer, not the chat. Ctrl-D leaves."""
    master, slave = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "chat",
        "--run-dir",
        str(run_dir),
        "--compare",
        "sft",
        "ppo",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "100"}
    with (
        subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        ) as process,
        ExitStack() as stack,
    ):
        os.close(slave)
        stack.callback(process.kill)  # else a failed assertion would wait for it
        seen = _read_until(master, "> ")
        assert "sft and ppo: a conversation" in seen
        os.write(master, f"{LINE}\n".encode())
        assert "score " in _read_until(master, "> ")
        for _ in range(60):  # a signal between the prompt and the wait for a key is seen at the next key
            process.send_signal(signal.SIGINT)
            if select.select([master], [], [], 1)[0]:
                break
        _read_until(master, "> ")
        os.write(master, b"\x04")
        assert process.wait(60) == 0
    os.close(master)


def _read_until(descriptor: int, mark: str, seconds: float = 180) -> str:
    text, deadline = "", time.monotonic() + seconds
    while not text.endswith(mark):
        left = deadline - time.monotonic()
        assert left > 0 and select.select([descriptor], [], [], left)[0], text
        text += os.read(descriptor, 4096).decode(errors="replace")
    return text
