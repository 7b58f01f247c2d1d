"""A process domain's RAM: frames of its bank that nothing lies in, by the run. Its gfns are mfns.

    with hyp.memory.alloc(4) as pages:
        pages.view[:5] = b"hello"
        gref = hyp.grant_table.grant_access(0, pages.mfn)
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from typing import Self

from hyper.public.errors import OutOfFrames
from hyper.public.types import PAGE_SIZE, Mfn


class Pages:
    """`count` frames in a row; free them, or use `with`. `view` must not be used after that."""

    def __init__(self, mfn: Mfn, count: int, view: memoryview, free: Callable[[Pages], None]) -> None:
        self.mfn = mfn
        """The first; as gfn what others know it by."""
        self.count = count
        self.view = view
        self._free: Callable[[Pages], None] | None = free

    def page(self, index: int) -> memoryview:
        """The 4096 bytes of one of them."""
        if not 0 <= index < self.count:
            raise IndexError(f"page {index} of {self.count}")
        return self.view[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]

    def free(self) -> None:
        """May be called twice. End the grants of these frames first: they will be somebody else's."""
        free, self._free = self._free, None
        if free is not None:
            free(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


class Memory:
    """First fit over a sorted list of free runs. `frames` gives the bytes of (mfn, count)."""

    def __init__(self, first_mfn: int, nr_frames: int, frames: Callable[[int, int], memoryview]) -> None:
        self.nr_frames = nr_frames
        self._frames = frames
        self._free = [(first_mfn, first_mfn + nr_frames)] if nr_frames else []

    @property
    def free_frames(self) -> int:
        return sum(end - start for start, end in self._free)

    def alloc(self, count: int = 1) -> Pages:
        """`count` zeroed frames in a row. Never blocks.

        Raises: OutOfFrames.
        """
        if count < 1:
            raise ValueError(f"alloc: count={count}")
        for index, (start, end) in enumerate(self._free):
            if end - start >= count:
                self._free[index : index + 1] = [(start + count, end)] if end - start > count else []
                view = self._frames(start, count)
                view[:] = bytes(len(view))
                return Pages(Mfn(start), count, view, self._release)
        raise OutOfFrames("alloc", frames=count, free=self.free_frames, of=self.nr_frames)

    def _release(self, pages: Pages) -> None:
        span = (int(pages.mfn), pages.mfn + pages.count)
        insort(self._free, span)
        index = self._free.index(span)
        if index + 1 < len(self._free) and self._free[index + 1][0] == span[1]:
            self._free[index : index + 2] = [(span[0], self._free[index + 1][1])]
        if index and self._free[index - 1][1] == span[0]:
            self._free[index - 1 : index + 1] = [(self._free[index - 1][0], self._free[index][1])]
