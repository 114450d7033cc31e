"""The exceptions whose messages are for users, not programmers."""

from configs.safe_text import safe


class UserError(Exception):
    """Bad input. The message names the file, the key or row, the reason and the remedy.

    Entry points print the message without a traceback and exit with status 2. It holds no known secret.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(safe(message))


class Waiting(UserError):
    """Nothing is wrong: a stage waits for people. The message says for what, and how they go on."""

    exit_code = 3
