"""How xend refuses a request. Each becomes an XML-RPC fault; anything else that is raised is fault 1, our
own.
"""

from __future__ import annotations

from typing import ClassVar

from toolstack.xmlrpc import FAULT_GENERIC, FAULT_INTERNAL, FAULT_INVALID_DOMAIN


class XendError(Exception):
    """A request is refused; the text is for the user."""

    fault: ClassVar[int] = FAULT_GENERIC


class InvalidDomain(XendError):
    """There is no such domain. The text is what was given for it and nothing else: clients build on that."""

    fault = FAULT_INVALID_DOMAIN


class NotBuilt(XendError):
    """A part of the interface that does not exist yet."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not built yet")


class UnknownMethod(XendError):
    fault = FAULT_INTERNAL

    def __init__(self, method: str) -> None:
        super().__init__(f'method "{method}" is not supported')


class BadRequest(XendError):
    """The body of a request is no XML-RPC call."""

    fault = FAULT_INTERNAL
