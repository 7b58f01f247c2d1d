"""Takes typed values out of the expression of a device. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID, uuid4

from toolstack import sxp
from toolstack.devices import DeviceError, is_dom0
from toolstack.sxp import Sxp
from toolstack.xend.errors import NotBuilt, XendError

T = TypeVar("T")
MAX_TEXT = 1024


class Fields:
    """The `[key, value]` pairs behind the head of `expression`. Each method raises XendError."""

    def __init__(self, kind: str, expression: Sxp) -> None:
        self.kind = kind
        self.expression = expression

    def invalid(self, text: str) -> XendError:
        return XendError(f"Invalid {self.kind}: {text}")

    def text(self, key: str, default: str = "") -> str:
        value = sxp.child_value(self.expression, key, default)
        if isinstance(value, (list, dict)):
            raise self.invalid(f"{key} must be a string")
        text = "" if value is None else str(value)
        if len(text) > MAX_TEXT or any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):
            raise self.invalid(f"{key} is too long or contains control characters")
        return text

    def parsed(self, key: str, parse: Callable[[str], T], default: str = "") -> T:
        try:
            return parse(self.text(key, default))
        except DeviceError as error:
            raise self.invalid(str(error)) from None

    def number(self, key: str, default: int, low: int, high: int) -> int:
        text = self.text(key, str(default)) or str(default)
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1
        if not low <= number <= high:
            raise self.invalid(f"{key} must be from {low} to {high}")
        return number

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self.number(key, int(default), 0, 1))

    def uuid(self) -> UUID:
        text = self.text("uuid")
        try:
            return UUID(text) if text else uuid4()
        except ValueError:
            raise self.invalid("uuid must be a UUID") from None

    def check_backend(self) -> None:
        if not is_dom0(self.text("backend")):
            raise NotBuilt("a backend in another domain")
