"""`tristage chat`: read lines from a terminal or a pipe, and print what the policies answer."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from rich.text import Text

from apps.answers.loading import load
from apps.chat.commands import Quit, run_command
from apps.chat.screen import columns, note, side_by_side, stream
from apps.chat.session import Answers, Session
from apps.trained_run import TrainedRun
from configs.errors import UserError
from pipeline.processes.signals import handled_by
from pipeline.terminal.console import SafeConsole


def open_session(run: TrainedRun, policies: Sequence[str], *, score: bool) -> Session:
    """Load the policies, and the reward model if it is wanted and the run has one.

    Raises:
        UserError: a policy is not there, is damaged or does not fit; or two names are the same policy.
    """
    if len(set(policies)) < len(policies):
        raise UserError(f"--compare {' '.join(policies):.200}: twice the same policy. Name two.")
    return Session(run, load(run, policies, score=score), policies)


class Chat:
    """Reads lines until their end, and answers each."""

    def __init__(self, session: Session, *, typed: bool) -> None:
        """`typed`: a person types the lines. If not, only answers go to standard output."""
        self._session, self._typed = session, typed
        self._console = SafeConsole(highlight=False)
        self._remarks = self._console if typed else SafeConsole(highlight=False, stderr=True)
        self._answering = self._interrupted = False

    def run(self) -> int:
        """Returns the exit status: 2 if a line of a pipe was refused."""
        status = 0
        with handled_by(self._signal):
            if self._typed:
                self._greet()
            try:
                for line in self._lines():
                    status = self._take(line) or status
            except Quit:
                pass
        return 0 if self._typed else status

    def _take(self, line: str) -> int:
        """Answer a line, or run its command. Returns 2 if it was refused."""
        try:
            if line.startswith("/"):
                self._remarks.print(Text(run_command(line, self._session), style="dim"))
            else:
                self._answer(line)
        except UserError as error:
            self._remarks.print(Text(f"error: {error}", style="red"))
            return 2
        except KeyboardInterrupt:  # between an answer and the next line
            self._console.print()
        return 0

    def _answer(self, text: str) -> None:
        self._answering, self._interrupted = True, False
        try:
            answers = self._session.answer(text, lambda: self._interrupted)
            if len(self._session.policies) == 1:
                last = stream(self._console, answers)
            elif self._typed and self._console.is_terminal:
                last = side_by_side(self._console, answers)
            else:
                *_, last = answers
        finally:
            self._answering = False
        self._close(text, last)

    def _close(self, text: str, answers: Answers) -> None:
        """Print what stands below the answers; of two policies, the answers too."""
        notes = {
            policy: note(answer, self._session.score(policy, text, answer))
            for policy, answer in answers.items()
        }
        if len(answers) == 1:
            self._remarks.print(Text(next(iter(notes.values())), style="dim"))
        elif self._typed:
            self._console.print(columns(answers, notes))
        else:
            for policy, answer in answers.items():
                self._console.print(Text(f"{policy}: {answer.text}"), soft_wrap=True)
                self._remarks.print(Text(f"{policy}: {notes[policy]}", style="dim"))

    def _lines(self) -> Iterator[str]:
        """Lines that are not blank. Ctrl-D ends them; Ctrl-C begins a new one."""
        if not self._typed:
            sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
            return
        import readline  # noqa: F401  # lines can then be edited and repeated

        while True:
            try:
                line = input("> ")
            except KeyboardInterrupt:
                self._console.print()
                continue
            except EOFError:
                self._console.print()
                return
            if line.strip():
                yield line

    def _greet(self) -> None:
        way = "each line is a text to continue" if self._session.continues_text else "a conversation"
        self._console.print(
            Text(f"{' and '.join(self._session.policies)}: {way}; /help, Ctrl-D leaves", "dim")
        )

    def _signal(self, signum: int, _frame: FrameType | None) -> None:
        """The handler. A person's SIGINT ends an answer, and without one the line; all else ends the chat."""
        if signum != signal.SIGINT or not self._typed:
            raise SystemExit(128 + signum)
        if not self._answering:
            raise KeyboardInterrupt
        self._interrupted = True
