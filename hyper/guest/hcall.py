"""A hypercall ring: the way of hot calls and of C threads. See hcall.c and hyper/public/hcall_ring.h."""

from __future__ import annotations

import os
from typing import Any

from hyper.guest import abi
from hyper.guest.arena import Buffer
from hyper.public.errors import HypervisorGone, XenErrno, xen_error

_U64 = (1 << 64) - 1


class HypercallRing:
    """A ring and its window for arguments; made by Hypervisor.hypercall_ring().

    `memfd`, `doorbell`, `window_address`, `window_addr`, `window_bytes` are what hcall_open() of a C module
    wants, in this order. One thread at a time, so either a C thread's or ours.
    """

    def __init__(self, memfd: int, doorbell: int, window: Buffer) -> None:
        self.memfd = memfd
        self.doorbell = doorbell
        self.window = window
        """The piece of the arena that C code may use for arguments."""
        self._open: Any = None

    @property
    def window_address(self) -> int:
        """Where this process sees the window."""
        with abi.ffi.from_buffer(self.window.view) as raw:
            return int(abi.ffi.cast("uintptr_t", raw))

    @property
    def window_addr(self) -> int:
        """The window's guest handle."""
        return self.window.addr

    @property
    def window_bytes(self) -> int:
        return len(self.window.view)

    def hypercall(self, nr: int, *args: int, **context: object) -> int:
        """One hypercall. Blocks the thread until it is done: for calls of a few microseconds.

        Raises: XenError; HypervisorGone.
        """
        padded = [arg & _U64 for arg in args] + [0] * (5 - len(args))
        ret: int = abi.lib.hcall(self._ring(), nr, padded)
        if ret == -XenErrno.EIO:
            raise HypervisorGone("hyper has ended the hypercall ring")
        if ret < 0:
            raise xen_error(abi.HYPERCALL_NAMES.get(nr, f"hypercall {nr}"), -ret, **context)
        return ret

    def close(self) -> None:
        """Ends the ring; no C thread may use it any more. May be called twice."""
        if self._open is not None:
            abi.lib.hcall_close(self._open)
            self._open = None
        if self.memfd >= 0:
            os.close(self.memfd)
            os.close(self.doorbell)
            self.window.free()
        self.memfd = self.doorbell = -1

    def _ring(self) -> Any:
        if self.memfd < 0:
            raise ValueError("the hypercall ring is closed")
        if self._open is None:
            where = (abi.ffi.cast("void *", self.window_address), self.window_addr, self.window_bytes)
            self._open = abi.lib.hcall_open(self.memfd, self.doorbell, *where)
            if self._open == abi.ffi.NULL:
                self._open = None
                raise MemoryError("hcall_open")
        return self._open
