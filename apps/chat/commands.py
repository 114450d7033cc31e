"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from apps.chat.session import Session
from configs.errors import UserError


class Quit(Exception):
    """The person leaves."""


def run_command(line: str, session: Session) -> str:
    """Run the command in `line`. Returns what to tell.

    Raises:
        Quit: the command was /quit.
        UserError: there is no such command, or its value is wrong.
    """
    name, _, value = line.strip().partition(" ")
    if name not in COMMANDS:
        raise UserError(
            f"{name:.40}: no such command. Type /help. A text may begin with a blank before its /."
        )
    return COMMANDS[name][1](session, value.strip())


def _help(session: Session, value: str) -> str:
    width = max(len(text.partition("  ")[0]) for text, _ in COMMANDS.values())
    rows = [text.partition("  ") for text, _ in COMMANDS.values()]
    keys = [("Ctrl-C", "", "stop an answer"), ("Ctrl-D", "", "leave")]
    return "\n".join(f"{name:<{width}}  {what}" for name, _, what in (*rows, *keys))


def _reset(session: Session, value: str) -> str:
    session.reset()
    return "a new conversation"


def _temperature(session: Session, value: str) -> str:
    if value:
        temperature = _number(value, "/temperature", 0, 100)
        session.settings.sampling = replace(session.settings.sampling, temperature=temperature)
    return f"temperature {session.settings.sampling.temperature:g}"


def _seed(session: Session, value: str) -> str:
    if value:
        if not (value.isascii() and value.isdigit()) or len(value) > 18:
            raise UserError(f"/seed {value:.40}: not a whole number from 0. Example: /seed 7")
        session.settings.seed = int(value)
    return f"seed {session.settings.seed}, and one more for each answer"


def _quit(session: Session, value: str) -> str:
    raise Quit


def _number(value: str, name: str, least: float, most: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise UserError(f"{name} {value:.40}: not a number from {least:g} to {most:g}. Example: {name} 0.7")
    return number


COMMANDS: dict[str, tuple[str, Callable[[Session, str], str]]] = {
    "/help": ("/help  show this", _help),
    "/reset": ("/reset  forget the conversation", _reset),
    "/temperature": (
        "/temperature 0.7  divide the logits by this; 0 takes the likeliest token",
        _temperature,
    ),
    "/seed": ("/seed 7  the noise of the next answer", _seed),
    "/quit": ("/quit  leave", _quit),
}
