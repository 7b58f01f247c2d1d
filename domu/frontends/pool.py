"""Pages on which a frontend's data travels, each granted to the backend."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import trio

from domu.memory import Memory

_RETRY_SECONDS = 0.002
_NOT_GRANTED = -1


@dataclass
class Page:
    """4096 bytes and, while the page is taken, their grant."""

    view: memoryview
    mfn: int
    gref: int


class Pool:
    """`count` pages for backend `domid`.

    `persistent`: each is granted, writable unless `readonly`, for the life of the pool; otherwise from take()
    to give_back().
    """

    def __init__(
        self, memory: Memory, domid: int, count: int, persistent: bool = True, readonly: bool = False
    ) -> None:
        """Raises: OutOfFrames, NoFreeSlot."""
        self.count = count
        self._domid = domid
        self._persistent = persistent
        self._grants = memory.grants
        self._shared = memory.share(count, domid, readonly) if persistent else memory.private(count)
        grefs = self._shared.grefs or [_NOT_GRANTED] * count
        self._pages = [
            Page(self._shared.page(at), self._shared.mfn + at, gref) for at, gref in enumerate(grefs)
        ]
        self._free = deque(self._pages)
        self._lingering: list[Page] = []
        self._turn = trio.Lock()
        self._given_back = trio.Event()

    @property
    def nr_free(self) -> int:
        return len(self._free)

    async def take(self, count: int, readonly: bool = False) -> list[Page]:
        """Waits its turn for that many. `readonly`: the backend need not write them.

        Raises: ValueError when there never are so many.
        """
        if count > self.count:
            raise ValueError(f"{count} pages asked, the pool has {self.count}: raise Options.buffer_pages")
        async with self._turn:
            while len(self._free) < count:
                await self._wait()
            pages = [self._free.popleft() for _ in range(count)]
        if not self._persistent:
            for page in pages:
                page.gref = self._grants.grant_access(self._domid, page.mfn, readonly)
        return pages

    def take_nowait(self) -> Page:
        """One page, of a persistent pool.

        Raises: IndexError when there is none.
        """
        return self._free.popleft()

    def give_back(self, pages: list[Page]) -> None:
        """A page that the backend still uses comes back as soon as it does not."""
        for page in pages:
            (self._free if self._ended(page) else self._lingering).append(page)
        self._given_back.set()

    def close(self) -> None:
        """May be called twice. Pages that are taken or lingering are given up as well."""
        if not self._persistent:
            self._shared.adopt(page.gref for page in self._pages if page.gref != _NOT_GRANTED)
            self._persistent = True
        self._shared.close()

    def _ended(self, page: Page) -> bool:
        if not self._persistent:
            if not self._grants.end_access(page.gref):
                return False
            page.gref = _NOT_GRANTED
        return True

    async def _wait(self) -> None:
        self._given_back = trio.Event()
        if not self._lingering:
            await self._given_back.wait()
            return
        with trio.move_on_after(_RETRY_SECONDS):
            await self._given_back.wait()
        self._reap()

    def _reap(self) -> None:
        lingering, self._lingering = self._lingering, []
        self.give_back(lingering)
