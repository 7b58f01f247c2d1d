"""Machine memory as this process sees it: every bank it was given, in one window, by mfn (bank.c)."""

from __future__ import annotations

import os
from typing import Any

from hyper.guest.abi import ffi, lib
from hyper.public.errors import OutOfRange
from hyper.public.types import PAGE_SHIFT


class Window:
    """Room for `max_mfn` frames, of which only those of mapped banks are there.

    The memory stays mapped as long as a view of it lives.
    """

    def __init__(self, max_mfn: int) -> None:
        self.max_mfn = max_mfn
        self._bytes = max_mfn << PAGE_SHIFT
        self._banks: dict[int, int] = {}  # first mfn -> frames
        pointer = lib.bank_reserve(self._bytes) if max_mfn else ffi.NULL
        if max_mfn and pointer == ffi.NULL:
            raise MemoryError(f"no address space for {self._bytes >> 20} MiB of machine memory")
        nbytes = self._bytes
        self._pointer: Any = ffi.gc(pointer, lambda at: lib.bank_release(at, nbytes)) if max_mfn else None

    @property
    def address(self) -> int:
        """Of mfn 0, for C code; 0 without a window."""
        return int(ffi.cast("uintptr_t", self._pointer)) if self._pointer is not None else 0

    def map(self, base_mfn: int, fd: int, nbytes: int) -> None:
        """Maps a bank at its place. `fd` stays the caller's.

        Raises: OSError; OutOfRange for a bank beyond the window.
        """
        if not 0 <= base_mfn <= base_mfn + (nbytes >> PAGE_SHIFT) <= self.max_mfn:
            raise OutOfRange("map_bank", base_mfn=base_mfn, bytes=nbytes, max_mfn=self.max_mfn)
        if error := lib.bank_map(self._pointer, base_mfn << PAGE_SHIFT, fd, nbytes):
            raise OSError(error, os.strerror(error))
        self._banks[base_mfn] = nbytes >> PAGE_SHIFT

    def has(self, mfn: int, count: int = 1) -> bool:
        """Whether all these frames lie in one mapped bank."""
        return any(base <= mfn <= mfn + count <= base + nr for base, nr in self._banks.items())

    def frames(self, mfn: int, count: int) -> memoryview:
        """The bytes of `count` machine frames in a row.

        Raises: OutOfRange.
        """
        if count < 0 or not self.has(mfn, count):
            nr_frames = max((base + nr for base, nr in self._banks.items()), default=0)
            raise OutOfRange("frames", mfn=mfn, count=count, nr_frames=nr_frames)
        at = ffi.cast("char *", self._pointer) + (mfn << PAGE_SHIFT)
        # The destructor keeps the window: a view may outlive us.
        at = ffi.gc(at, lambda _, keep=self._pointer: None)
        return memoryview(ffi.buffer(at, count << PAGE_SHIFT))
