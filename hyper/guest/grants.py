"""Frames of other domains, mapped by grant reference."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

import trio

from hyper.guest.abi import lib
from hyper.public.types import GrantHandle, Mfn


@dataclass(frozen=True)
class GrantCopy:
    """One GNTTABOP_copy. Each side: (DOMID_SELF, page of our arena: `addr >> 12`), or (domid, gref) of
    another domain; and where in the page.
    """

    source: tuple[int, int]
    dest: tuple[int, int]
    nbytes: int
    source_offset: int = 0
    dest_offset: int = 0

    def fill(self, op: Any) -> None:
        """Writes it into a struct gnttab_copy."""
        op.len, op.flags = self.nbytes, 0
        op.source.offset, op.dest.offset = self.source_offset, self.dest_offset
        for ptr, (domid, what), flag in (
            (op.source, self.source, lib.GNTCOPY_source_gref),
            (op.dest, self.dest, lib.GNTCOPY_dest_gref),
        ):
            ptr.domid = domid
            if domid == lib.DOMID_SELF:
                ptr.u.gmfn = what
            else:
                ptr.u.ref = what
                op.flags |= flag


class Mapping:
    """A mapped grant: `view` is the frame's 4096 bytes. Close it, or use it with `async with`.

    While it is mapped the frame can't change its owner or become a page table. `view` must not be used
    afterwards.
    """

    def __init__(
        self, handle: GrantHandle, mfn: Mfn, view: memoryview, unmap: Callable[[Mapping], Awaitable[None]]
    ) -> None:
        self.handle = handle
        self.mfn = mfn
        self.view = view
        self._unmap = unmap
        self._open = True

    async def close(self) -> None:
        """Unmaps. May be called twice; not interrupted by cancellation.

        Raises: GrantError.
        """
        if self._open:
            self._open = False
            with trio.CancelScope(shield=True):
                await self._unmap(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
