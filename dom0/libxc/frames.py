"""Which guest frame stands behind each pfn of a new PV guest: its p2m, as runs. Pure.

The assignment is neither the identity nor linear, so that a kernel that takes one number for the other fails
at once, and on every host. It is a fixed shuffle: extents among each other, and 256 KiB pieces inside each.
A run is that long, so a kernel is still written with few copies.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

EXTENT_FRAMES = 512
"""Frames of an order-9 extent."""
PIECE_FRAMES = 64

_SEED = 0x786D  # same extents, same p2m
_MACHPHYS_UPDATE = 1  # MMU_MACHPHYS_UPDATE, in the low bits of an address
_FRAME_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Run:
    """`count` frames in a row on both sides: pfn + i is gfn + i."""

    pfn: int
    gfn: int
    count: int


class FrameMap:
    """The p2m of `nr_pages` pages. `runs` must cover 0..nr_pages-1 in order."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)
        self.nr_pages = sum(run.count for run in runs)
        self._starts = [run.pfn for run in runs]

    def gfn(self, pfn: int) -> int:
        """Raises: IndexError for a pfn the guest does not have."""
        return next(self.slices(pfn, 1)).gfn

    def slices(self, pfn: int, count: int) -> Iterator[Run]:
        """The runs behind `count` pfns from `pfn` on, cut to size, in order.

        Raises: IndexError when the guest has fewer pages.
        """
        if not 0 <= pfn <= pfn + count <= self.nr_pages:
            raise IndexError(f"pfns {pfn}..{pfn + count - 1} of {self.nr_pages}")
        index = bisect_right(self._starts, pfn) - 1
        while count:
            run = self.runs[index]
            skip = pfn - run.pfn
            taken = min(run.count - skip, count)
            yield Run(pfn, run.gfn + skip, taken)
            pfn, count, index = pfn + taken, count - taken, index + 1

    def p2m(self) -> array[int]:
        """The gfn of each pfn, as the guest's own p2m array holds them."""
        return self._per_page(self.runs, 1, 0)

    def entries(self, pfn: int, count: int, flags: int) -> array[int]:
        """Page-table entries for `count` pfns from `pfn` on."""
        return self._per_page(self.slices(pfn, count), _FRAME_BYTES, flags)

    def machphys_updates(self, first: int, count: int) -> array[int]:
        """struct mmu_update[count]: machine-to-phys entries of the pfns from `first` on."""
        updates = array("Q", bytes(16 * count))
        updates[0::2] = self._per_page(self.slices(first, count), _FRAME_BYTES, _MACHPHYS_UPDATE)
        updates[1::2] = array("Q", range(first, first + count))
        return updates

    @staticmethod
    def _per_page(runs: Iterable[Run], scale: int, flags: int) -> array[int]:
        result = array("Q")
        for run in runs:
            start = run.gfn * scale | flags
            result.extend(range(start, start + run.count * scale, scale))
        return result


def assign_frames(extents: Iterable[tuple[int, int]]) -> FrameMap:
    """Gives each frame of `extents`, which are (gfn, count), a pfn from 0 on: the fixed shuffle."""
    blocks = list(_blocks(extents))
    random.Random(_SEED).shuffle(blocks)
    runs: list[Run] = []
    pfn = 0
    for turn, (gfn, count) in enumerate(blocks):
        for start, length in _pieces(turn, count):
            runs.append(Run(pfn, gfn + start, length))
            pfn += length
    return FrameMap(runs)


def _blocks(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Neighbours joined, then cut at EXTENT_FRAMES: single frames in a row become one block."""
    pending_gfn = pending = 0
    for gfn, count in extents:
        if gfn != pending_gfn + pending:
            yield from _cut(pending_gfn, pending)
            pending_gfn = gfn
            pending = 0
        pending += count
    yield from _cut(pending_gfn, pending)


def _cut(gfn: int, count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, EXTENT_FRAMES):
        yield gfn + start, min(EXTENT_FRAMES, count - start)


def _pieces(turn: int, count: int) -> Iterator[tuple[int, int]]:
    """(start, length) of a block's pieces, in another order for each `turn`."""
    nr_pieces = -(-count // PIECE_FRAMES)
    step = 3 if nr_pieces % 3 else 1
    for index in range(nr_pieces):
        start = (turn + 1 + index * step) % nr_pieces * PIECE_FRAMES
        yield start, min(PIECE_FRAMES, count - start)
