"""What can be wrong with a row."""


class BadRow(ValueError):
    """A row that cannot be read. The message gives the reason."""


class UnusableRow(BadRow):
    """A readable row without anything to learn, such as one with an empty answer. Few may be."""


class LeftOut(BadRow):
    """A row that says itself that there is nothing to learn, such as a bad answer. Any number may be."""


class Tied(LeftOut):
    """A ranking without a pair to learn from: its answers tie, or are the same."""
