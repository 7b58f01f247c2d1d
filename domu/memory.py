"""What the domain shares with others: frames of its own, granted.

    with memory.share(4, backend_domid) as shared:      # four frames in a row, a grant for each
        shared.view[:5] = b"hello"
        ... shared.grefs ...

A frame whose grant the other domain still uses is not handed out again before that has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, Self

from hyper.public.types import PAGE_SIZE


class Pages(Protocol):
    """Frames in a row: hyper.guest's."""

    @property
    def mfn(self) -> int: ...

    @property
    def view(self) -> memoryview: ...

    def free(self) -> None: ...


class Allocator(Protocol):
    """The domain's free frames: hyp.memory."""

    def alloc(self, count: int = 1) -> Pages: ...


class GrantTable(Protocol):
    """The domain's own grant table: hyp.grant_table."""

    def grant_access(self, domid: int, gfn: int, readonly: bool = False) -> int: ...

    def end_access(self, gref: int) -> bool: ...


class Memory:
    """Frames and grants of this domain."""

    def __init__(self, frames: Allocator, grants: GrantTable) -> None:
        self.frames = frames
        self.grants = grants
        self._lingering: list[Shared] = []

    def share(self, count: int, domid: int, readonly: bool = False) -> Shared:
        """`count` zeroed frames in a row, each granted to `domid`.

        Raises: OutOfFrames; NoFreeSlot when the grant table is full.
        """
        shared = self.private(count)
        try:
            for number in range(count):
                shared.grefs.append(self.grants.grant_access(domid, shared.mfn + number, readonly))
        except BaseException:
            shared.close()
            raise
        return shared

    def private(self, count: int) -> Shared:
        """The same without grants: the caller adds them.

        Raises: OutOfFrames.
        """
        self.reap()
        return Shared(self, self.frames.alloc(count))

    def reap(self) -> None:
        """Frees what was closed and is no longer used by others. share() does it as well."""
        self._lingering = [shared for shared in self._lingering if not shared._end()]

    @property
    def nr_lingering(self) -> int:
        """Closed, but still used by another domain."""
        return len(self._lingering)


class Shared:
    """Frames in a row: `grefs[n]` is for `page(n)`. Not to be used after close() or the end of a `with`."""

    def __init__(self, memory: Memory, pages: Pages) -> None:
        self.mfn = pages.mfn
        self.view = pages.view
        self.grefs: list[int] = []
        self._memory = memory
        self._pages: Pages | None = pages

    def page(self, number: int) -> memoryview:
        """The bytes of one frame."""
        return self.view[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]

    def adopt(self, grefs: Iterable[int]) -> None:
        """Grants of these frames that close() has to take back with its own."""
        self.grefs += grefs

    def close(self) -> None:
        """Takes the grants back and frees the frames, once the other domain has let go of all. May be called
        twice.
        """
        if not self._end() and self not in self._memory._lingering:
            self._memory._lingering.append(self)

    def _end(self) -> bool:
        if self._pages is not None:
            self.grefs = [gref for gref in self.grefs if not self._memory.grants.end_access(gref)]
            if not self.grefs:
                self._pages.free()
                self._pages = None
        return self._pages is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
