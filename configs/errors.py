"""The one exception whose message is for users, not programmers."""


class UserError(Exception):
    """Bad input. The message names the file, the key or row, the reason and the remedy.

    Entry points print the message without a traceback and exit with status 2.
    """
