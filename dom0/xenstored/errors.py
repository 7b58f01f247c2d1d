"""How a request is refused."""

from __future__ import annotations


class Refused(Exception):
    """The request is answered with an ERROR message. `name` is one of xs_wire.ERROR_NAMES, for example
    "ENOENT".
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
