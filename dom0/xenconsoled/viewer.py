"""Somebody who looks at a console: a connected stream socket. Gets the scrollback, then what is printed from
now on.

One who does not read misses what does not fit into a bounded buffer, and a line says so where it is missing.
What he types goes to the guest.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio

from dom0.xenconsoled import scrollback

MAX_WAITING_BYTES = scrollback.BYTES + (64 << 10)
_READ_BYTES = 512
_MAX_CHUNKS_TYPED = 8
"""What may wait for a guest that does not read; as long as it is less, a viewer that hangs up is noticed."""


class Viewer:
    def __init__(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        self._sock = sock
        self._nursery = nursery
        self._waiting = bytearray()
        self._nr_lost = 0
        self._draining = False
        self._drained = trio.Event()
        self._scope = trio.CancelScope()

    def show(self, data: bytes) -> None:
        """Never blocks."""
        if self._nr_lost or len(data) > MAX_WAITING_BYTES - len(self._waiting):
            self._nr_lost += len(data)
            return
        self._waiting += data
        if not self._draining:
            self._send()
        if self._waiting and not self._draining:
            self._draining = True
            self._drained = trio.Event()
            self._nursery.start_soon(self._drain)

    async def run(self, typed: Callable[[bytes], Awaitable[None]]) -> None:
        """Passes on what is typed, until the viewer hangs up. `typed` returns when the guest has taken it."""
        to_guest, chunks = trio.open_memory_channel[bytes](_MAX_CHUNKS_TYPED)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, to_guest)
                    async for chunk in chunks:
                        await typed(chunk)
        finally:
            self._waiting.clear()
            if self._draining:
                trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    async def finish(self) -> None:
        """Returns when the viewer has got all that waits for him."""
        while self._draining:
            await self._drained.wait()

    async def _read(self, to_guest: trio.MemorySendChannel[bytes]) -> None:
        while True:
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except OSError:
                data = b""
            if not data:
                self._scope.cancel()  # and what he has typed, if the guest did not want it yet
                return
            await to_guest.send(data)

    def _send(self) -> None:
        """What the socket takes now."""
        try:
            while self._waiting:
                del self._waiting[: self._sock.send(self._waiting)]
                if not self._waiting and self._nr_lost:
                    self._waiting += b"\r\n[xenconsoled: %d bytes are missing here]\r\n" % self._nr_lost
                    self._nr_lost = 0
        except BlockingIOError:
            pass
        except OSError:
            self._waiting.clear()
            self._scope.cancel()

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await trio.lowlevel.wait_writable(self._sock)
                self._send()
        except trio.ClosedResourceError:
            pass
        finally:
            self._draining = False
            self._drained.set()
