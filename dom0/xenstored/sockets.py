"""Dom0's clients: a unix stream socket, which only its owner may open. Whoever gets in is Dom0.

A client that does not read its replies stops being served; if watch events still pile up, it is cut off.
Neither delays the others.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import structlog
import trio

from dom0.xenstored.connection import Connection
from dom0.xenstored.daemon import Daemon
from hyper.public.listening import clients
from hyper.public.xs_wire import Decoder, ProtocolError

log = structlog.get_logger("xenstored")

_CHUNK_BYTES = 8192
"""Read at once: a few hundred requests, so that the others get their turn after a few ms."""

_SEND_BYTES = 64 << 10

Introduce = Callable[[], Awaitable[None]]
"""Connects the rings that requests have asked for, and answers them."""


async def serve(listener: socket.socket, daemon: Daemon, introduce: Introduce) -> None:
    """Serves whoever connects, for ever."""
    async with trio.open_nursery() as nursery:
        async for client in clients(listener):
            nursery.start_soon(SocketChannel(client, daemon, nursery).run, introduce)


class SocketChannel:
    """One client on the socket."""

    def __init__(self, sock: socket.socket, daemon: Daemon, nursery: trio.Nursery) -> None:
        self._sock = sock
        self._daemon = daemon
        self._nursery = nursery
        self._conn = Connection(0)
        self._draining = False
        self._drained = trio.Event()

    async def run(self, introduce: Introduce) -> None:
        """Serves the client until it hangs up, sends what can't be a message, or does not read."""
        self._daemon.channels[self._conn] = self
        try:
            await self._serve(introduce)
        except (OSError, trio.ClosedResourceError):
            pass
        except ProtocolError as error:
            log.warning("client closed", reason=str(error))
        finally:
            self._daemon.forget(self._conn)
            self._close()

    async def _serve(self, introduce: Introduce) -> None:
        decoder = Decoder()
        xs = self._daemon.xs
        waited = True
        while True:
            while self._conn.congested:
                await self._drained.wait()
                if self._sock.fileno() < 0:
                    return
            try:
                chunk = self._sock.recv(_CHUNK_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                waited = True
                continue
            if not chunk:
                return
            decoder.feed(chunk)
            try:
                for message in decoder:
                    xs.request(self._conn, message)
                    if xs.introductions:
                        await introduce()
            finally:
                self._daemon.settle()
            if not waited:
                await trio.lowlevel.checkpoint()
            waited = False

    def flush(self) -> None:
        if self._draining:
            return
        try:
            self._send()
        except OSError:
            return  # the reading task hears of it too
        if self._conn.output_bytes and not self._draining:
            self._draining = True
            self._drained = trio.Event()
            self._nursery.start_soon(self._drain)

    def _send(self) -> None:
        """What the socket takes now.

        Raises: OSError.
        """
        if self._conn.overflowed:
            log.warning("client closed", reason="it does not read its watch events")
            self._close()
            raise ConnectionResetError
        output = self._conn.output(_SEND_BYTES)
        try:
            sent = self._sock.send(output) if output else 0
        except BlockingIOError:
            return
        self._conn.sent(sent)

    async def _drain(self) -> None:
        """The rest, as the client reads."""
        try:
            while self._conn.output_bytes and not self._conn.closed:
                await trio.lowlevel.wait_writable(self._sock)
                self._send()
        except (OSError, trio.ClosedResourceError):
            self._close()
        finally:
            self._draining = False
            self._drained.set()

    def _close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
