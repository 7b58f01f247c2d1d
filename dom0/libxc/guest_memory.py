"""A guest's memory as it sees it: bytes by pseudo-physical address, behind them frames in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dom0.libxc.frames import FrameMap
from dom0.libxc.images import ImageFile

PAGE_SHIFT = 12

ForeignFrames = Callable[[int, int], memoryview]
"""(gfn, count) -> the writable bytes of `count` frames in a row."""


class GuestMemory:
    """Copies go run by run, never page by page. Calls block on files and page faults: use a worker thread."""

    def __init__(self, frames: FrameMap, foreign_frames: ForeignFrames) -> None:
        self._frames = frames
        self._foreign_frames = foreign_frames

    def views(self, paddr: int, nbytes: int) -> Iterator[memoryview]:
        """The bytes from `paddr` on, one view per run.

        Raises: IndexError beyond the guest's last page.
        """
        first = paddr >> PAGE_SHIFT
        offset = paddr & (1 << PAGE_SHIFT) - 1
        pages = -(-(offset + nbytes) >> PAGE_SHIFT)
        for run in self._frames.slices(first, pages):
            view = self._foreign_frames(run.gfn, run.count)[offset : offset + nbytes]
            yield view
            nbytes -= len(view)
            offset = 0

    def write(self, paddr: int, data: bytes | bytearray | memoryview) -> None:
        source = memoryview(data).cast("B")
        done = 0
        for view in self.views(paddr, len(source)):
            view[:] = source[done : done + len(view)]
            done += len(view)

    def load(self, paddr: int, file: ImageFile, offset: int, nbytes: int) -> None:
        """Copies a part of `file` to `paddr`. Its holes are left alone: the memory must be zero before.

        Raises: ImageError when the file cannot be read or is shorter.
        """
        for start, length in file.data_extents(offset, nbytes):
            file.read_into(list(self.views(paddr + start - offset, length)), start)
