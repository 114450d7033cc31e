"""The one exception that a user, not a programmer, is meant to read."""


class UserError(Exception):
    """Bad input: the message names the file, the key or row, what was wrong and the remedy.

    Entry points print the message alone, without a traceback, and exit with status 2.
    """
