"""Somebody who looks at a console: a connected stream socket. Gets the scrollback, then what is printed from now on.

One who does not read misses what does not fit into a bounded buffer, and a line says so where it is missing. What he
types goes to the guest.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio

from dom0.xenconsoled import scrollback

MAX_WAITING_BYTES = scrollback.BYTES + (64 << 10)
_READ_BYTES = 512


class Viewer:
    def __init__(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        self._sock = sock
        self._nursery = nursery
        self._waiting = bytearray()
        self._nr_lost = 0
        self._draining = False

    def show(self, data: bytes) -> None:
        """Never blocks."""
        room = MAX_WAITING_BYTES - len(self._waiting)
        if self._nr_lost or len(data) > room:
            self._nr_lost += len(data)
            return
        self._waiting += data
        if not self._draining:
            self._send()
            if self._waiting:
                self._draining = True
                self._nursery.start_soon(self._drain)

    async def read(self, typed: Callable[[bytes], Awaitable[None]]) -> None:
        """Passes on what is typed, until the viewer hangs up. `typed` returns when the guest has room for it."""
        try:
            while True:
                try:
                    data = self._sock.recv(_READ_BYTES)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self._sock)
                    continue
                if not data:
                    return
                await typed(data)
        except (OSError, trio.ClosedResourceError):
            return

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    async def finish(self) -> None:
        """Sends what still waits, as long as it is read."""
        while self._waiting and self._sock.fileno() >= 0:
            await trio.lowlevel.wait_writable(self._sock)
            self._send()

    def _send(self) -> None:
        """What the socket takes now. A broken one is found out by read()."""
        try:
            del self._waiting[: self._sock.send(self._waiting)]
        except BlockingIOError:
            pass
        except OSError:
            self._waiting.clear()
        if not self._waiting and self._nr_lost:
            self._waiting += b"\r\n[xenconsoled: %d bytes are missing here]\r\n" % self._nr_lost
            self._nr_lost = 0

    async def _drain(self) -> None:
        try:
            await self.finish()
        except (OSError, trio.ClosedResourceError):
            self._waiting.clear()
        finally:
            self._draining = False
