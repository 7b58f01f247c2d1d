"""The one exception of this folder."""

from __future__ import annotations


class ImageError(Exception):
    """A kernel or ramdisk cannot be used. One line for the user: the file's name, then the reason."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(name, reason)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"
