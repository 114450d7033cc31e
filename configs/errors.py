"""The one exception whose message is for users, not programmers."""

from configs.safe_text import safe


class UserError(Exception):
    """Bad input. The message names the file, the key or row, the reason and the remedy.

    Entry points print the message without a traceback and exit with status 2. It holds no known secret.
    """

    def __init__(self, message: str) -> None:
        super().__init__(safe(message))
