"""An entry of xenstore as xend writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Transaction(Protocol):
    """What a piece of work may do to xenstore, all at once or not at all; see hyper.guest.xenstore."""

    async def read_if_exists(self, path: str) -> str | None: ...
    async def exists(self, path: str) -> bool: ...
    async def write(self, path: str, value: str) -> None: ...
    async def set_perms(self, path: str, perms: Sequence[str]) -> None: ...
    async def rm(self, path: str) -> None: ...


class Node(NamedTuple):
    """`permissions` as xenstore prints them (`n0`, `r5`), owner first; None inherits the parent's."""

    path: str
    value: str = ""
    permissions: tuple[str, ...] | None = None

    async def write(self, transaction: Transaction) -> None:
        await transaction.write(self.path, self.value)
        if self.permissions is not None:
            await transaction.set_perms(self.path, self.permissions)
