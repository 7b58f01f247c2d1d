"""How a command of xm ends other than well."""

from __future__ import annotations


class Failure(Exception):
    """The command failed. The text goes to stderr after `Error: `; None prints nothing."""

    def __init__(self, text: str | None, status: int = 1) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class UsageError(Failure):
    """The command was called wrongly: the error is followed by the usage of the command."""
