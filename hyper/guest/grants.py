"""Frames of other domains, mapped by grant reference."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Self

import trio

from hyper.public.types import GrantHandle, Mfn


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
