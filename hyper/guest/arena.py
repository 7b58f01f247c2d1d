"""The arena: the memory in which this process's hypercall arguments lie.

A sealed memfd that hyper maps too. A guest handle is a byte offset in it; offset 0 is never handed out, so
that a NULL handle stays one. First fit over a sorted list of free spans: calls hold few buffers, for a short
time.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from bisect import insort
from typing import Any, Self

from hyper.guest import abi
from hyper.public.types import GuestHandle

_ALIGN = 64
MAX_BYTES = 64 << 20
"""hyper takes no bigger one of Dom0's."""
DEFAULT_BYTES = 16 << 20  # sparse; the largest single request is a batch of 2^18 frame numbers


class ArenaFull(Exception):
    """No free span is long enough. Ours to solve (smaller batches, fewer calls at once), not the
    hypervisor's.
    """


class Buffer:
    """A zeroed span of the arena, freed by `with` or free(). `view` must not be used after that."""

    def __init__(self, arena: Arena, start: int, view: memoryview, end: int) -> None:
        self.addr = GuestHandle(start)
        self.view = view
        self.struct: Any = None
        """What arena.new() was asked for: a cffi pointer into `view`."""
        self._arena: Arena | None = arena
        self._end = end

    def free(self) -> None:
        """May be called twice."""
        if self._arena is not None:
            self._arena._release(self.addr, self._end)
            self._arena = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


class Arena:
    """`fd` is what hyper gets; the mapping lives as long as a view into it does."""

    def __init__(self, nbytes: int = DEFAULT_BYTES, fd: int | None = None) -> None:
        """`fd`: the memfd that hyper has made; it is ours from now on."""
        self.bytes = nbytes
        self.fd = _new_memfd(nbytes) if fd is None else fd
        try:
            self._view = memoryview(mmap.mmap(self.fd, nbytes))
        except BaseException:
            os.close(self.fd)
            raise
        self._free = [(_ALIGN, nbytes)]

    def alloc(self, nbytes: int, align: int = _ALIGN) -> Buffer:
        """A zeroed buffer of `nbytes` >= 1, aligned to `align`, a multiple of 64. Never blocks.

        With align=4096, `addr >> 12` names its pages as the local side of a grant copy.
        Raises: ArenaFull.
        """
        if nbytes < 1 or align < 1 or align % _ALIGN:
            raise ValueError(f"alloc: nbytes={nbytes} align={align}")
        room = -(-nbytes // _ALIGN) * _ALIGN
        for index, (first, end) in enumerate(self._free):
            start = -(-first // align) * align
            if end - start >= room:
                left = [(first, start), (start + room, end)]
                self._free[index : index + 1] = [span for span in left if span[0] < span[1]]
                view = self._view[start : start + nbytes]
                view[:] = bytes(nbytes)
                return Buffer(self, start, view, start + room)
        raise ArenaFull(f"{nbytes} bytes asked, {self.free_bytes} of {self.bytes} free")

    def new(self, ctype: str, **fields: Any) -> Buffer:
        """A buffer holding one C structure with these members set; `buffer.struct` points to it.

        Raises: ArenaFull; AttributeError, OverflowError or TypeError for a member that does not fit.
        """
        buffer = self.alloc(abi.sizeof(ctype))
        try:
            buffer.struct = abi.struct(ctype, buffer.view)
            for name, value in fields.items():
                setattr(buffer.struct, name, value)
        except BaseException:
            buffer.free()
            raise
        return buffer

    @property
    def free_bytes(self) -> int:
        return sum(end - start for start, end in self._free)

    def close(self) -> None:
        """Closes the fd. The memory goes with the last view of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _release(self, start: int, end: int) -> None:
        insort(self._free, (start, end))
        index = self._free.index((start, end))
        if index + 1 < len(self._free) and self._free[index + 1][0] == end:
            self._free[index : index + 2] = [(start, self._free[index + 1][1])]
        if index and self._free[index - 1][1] == start:
            self._free[index - 1 : index + 1] = [(self._free[index - 1][0], self._free[index][1])]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _new_memfd(nbytes: int) -> int:
    fd = os.memfd_create("umxen-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd
