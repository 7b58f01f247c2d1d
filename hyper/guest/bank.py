"""Machine memory as this process sees it: every bank it was given, in one window, by mfn (bank.c)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from hyper.guest.abi import ffi, lib
from hyper.public.errors import OutOfRange
from hyper.public.types import PAGE_SHIFT


@dataclass(frozen=True)
class _Bank:
    base: int
    end: int
    serial: int


class Window:
    """Room for the frames from `first_mfn` to `max_mfn`, of which only those of mapped banks are there.

    The memory stays mapped as long as a view of it lives.
    """

    def __init__(self, first_mfn: int, max_mfn: int) -> None:
        self.first_mfn = first_mfn
        self.max_mfn = max_mfn
        self._banks: list[_Bank] = []
        self._pointer: Any = None
        if nbytes := (max_mfn - first_mfn) << PAGE_SHIFT:
            pointer = lib.bank_reserve(nbytes)
            if pointer == ffi.NULL:
                raise MemoryError(f"no address space for {nbytes >> 20} MiB of machine memory")
            self._pointer = ffi.gc(pointer, lambda at: lib.bank_release(at, nbytes))

    @property
    def address(self) -> int:
        """Of mfn 0, for C code, even when the window begins later; 0 without a window."""
        if self._pointer is None:
            return 0
        return int(ffi.cast("uintptr_t", self._pointer)) - (self.first_mfn << PAGE_SHIFT)

    def map(self, base_mfn: int, fd: int, nbytes: int, serial: int = 0) -> None:
        """Maps a bank at its place, unless the one with this `serial` is there. It replaces what is left of
        earlier ones. `fd` stays the caller's.

        Raises: OSError; OutOfRange for a bank beyond the window.
        """
        bank = _Bank(base_mfn, base_mfn + (nbytes >> PAGE_SHIFT), serial)
        if bank in self._banks:
            return
        if not self.first_mfn <= bank.base <= bank.end <= self.max_mfn:
            raise OutOfRange("map_bank", base_mfn=base_mfn, bytes=nbytes, max_mfn=self.max_mfn)
        if error := lib.bank_map(self._pointer, (base_mfn - self.first_mfn) << PAGE_SHIFT, fd, nbytes):
            raise OSError(error, os.strerror(error))
        others = [other for other in self._banks if other.end <= bank.base or bank.end <= other.base]
        self._banks = [*others, bank]

    def has(self, mfn: int, count: int = 1) -> bool:
        """Whether all these frames lie in one mapped bank."""
        return any(bank.base <= mfn <= mfn + count <= bank.end for bank in self._banks)

    def frames(self, mfn: int, count: int) -> memoryview:
        """The bytes of `count` machine frames in a row.

        Raises: OutOfRange.
        """
        if count < 0 or not self.has(mfn, count):
            nr_frames = max((bank.end for bank in self._banks), default=0)
            raise OutOfRange("frames", mfn=mfn, count=count, nr_frames=nr_frames)
        at = ffi.cast("char *", self._pointer) + ((mfn - self.first_mfn) << PAGE_SHIFT)
        # The destructor keeps the window: a view may outlive us.
        at = ffi.gc(at, lambda _, keep=self._pointer: None)
        return memoryview(ffi.buffer(at, count << PAGE_SHIFT))
