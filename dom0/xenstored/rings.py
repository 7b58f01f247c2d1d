"""Guests: a page with two byte rings and an event channel port for each domain.

Requests are taken from the ring as they come, in parts too: Linux writes a header and its body separately,
and does not notify again while the header is unread. A guest that does not take its replies is served no
further until it does. Impossible ring indices, or a message that announces too much, are the guest's fault:
its ring is no longer served, the page's error field says why, and everybody else goes on.
"""

from __future__ import annotations

from typing import Protocol

import structlog
import trio

from dom0.xenstored.connection import Connection
from dom0.xenstored.daemon import Daemon
from dom0.xenstored.restart import RingState
from hyper.guest.rings import RingError, XenstoreRing
from hyper.public.errors import GrantError
from hyper.public.xs_wire import RING_BYTES, RING_ERROR_OFFSET, Decoder, ProtocolError, RingProblem

log = structlog.get_logger("xenstored")


class Page(Protocol):
    """The mapped ring page: hyper.guest.Mapping."""

    view: memoryview

    async def close(self) -> None: ...


class Port(Protocol):
    """Our end of the event channel: hyper.guest.Port."""

    async def wait(self) -> None: ...

    def notify(self) -> None: ...

    async def close(self) -> None: ...


class GuestRing:
    """One domain's ring. Owns page and port."""

    def __init__(self, daemon: Daemon, conn: Connection, page: Page, port: Port) -> None:
        self._daemon = daemon
        self._conn = conn
        daemon.channels[conn] = self
        self._page = page
        self._port = port
        self._ring = XenstoreRing(page.view)
        self._decoder = Decoder()
        self._scope = trio.CancelScope()
        self._failed = False
        self._notified = False
        self._stopped = trio.Event()

    @property
    def domid(self) -> int:
        return self._conn.domid

    def start(self, rest: bytes = b"") -> None:
        """Begins to serve: the journal gets to know where the ring stands. `rest` are the bytes of an
        incomplete request, when only the port has changed.
        """
        self._decoder = Decoder(rest)
        if journal := self._daemon.journal:
            journal("ring", self.domid, *self._ring.progress())
            journal("consumed", self.domid, 0, rest)
            journal("queue", self.domid, self._conn.output())

    def resume(self, known: RingState) -> None:
        """A ring that a killed daemon has served: goes on where that has stopped."""
        consumed, produced = self._ring.progress()
        try:
            served = known.catch_up(consumed, produced)
            self._ring.consume_requests(served)
        except (ValueError, RingError) as error:
            self._fail(RingProblem.RINGIDX, str(error))
            return
        self._decoder = Decoder(known.rest)
        self._conn.restore_output(bytes(known.unsent))
        self._daemon.xs.with_output[self._conn] = None

    def state(self) -> RingState:
        consumed, produced = self._ring.progress()
        return RingState(consumed, produced, self._decoder.rest, bytearray(self._conn.output()))

    async def run(self) -> None:
        """Serves the ring until close()."""
        try:
            with self._scope:
                while True:
                    if self._serve_once():
                        await trio.lowlevel.checkpoint()
                    else:
                        await self._port.wait()
        finally:
            self._daemon.channels.pop(self._conn, None)
            with trio.CancelScope(shield=True):
                await self._port.close()
                try:
                    await self._page.close()
                except GrantError as error:
                    log.warning("ring page not unmapped", domid=self.domid, reason=str(error))
            self._stopped.set()

    async def stop(self) -> None:
        """close(), and waits until page and port are let go. After run() was started."""
        self.close()
        await self._stopped.wait()

    def close(self) -> None:
        self._daemon.channels.pop(self._conn, None)
        self._scope.cancel()

    def flush(self) -> None:
        if not self._failed and self._conn.output_bytes and self._write():
            self._port.notify()
            self._notified = True

    def _write(self) -> int:
        """Bytes of replies and events that fit into the ring now."""
        if self._conn.overflowed:
            self._fail(RingProblem.COMM, "the guest does not read its watch events")
            return 0
        try:
            written = self._ring.write_responses(self._conn.output(RING_BYTES))
        except RingError as error:
            self._fail(RingProblem.RINGIDX, str(error))
            return 0
        self._conn.sent(written)
        return written

    def _serve_once(self) -> bool:
        """Serves what is in the ring. False: there is nothing to do before the next event."""
        if self._failed:
            return False
        self._daemon.xs.with_output[self._conn] = None
        self._daemon.settle()
        if self._failed or self._conn.congested:
            return False
        try:
            chunk = self._ring.peek_requests(RING_BYTES)
            if not chunk:
                return False
            self._decoder.feed(chunk)
            self._execute()
            if self._daemon.journal:
                self._daemon.journal("consumed", self.domid, len(chunk), self._decoder.rest)
                self._daemon.journal.commit()
            self._ring.consume_requests(len(chunk))
        except RingError as error:
            self._fail(RingProblem.RINGIDX, str(error))
            return False
        self._notified = False
        self._daemon.settle()
        if not self._notified:
            self._port.notify()
        return True

    def _execute(self) -> None:
        try:
            for message in self._decoder:
                self._daemon.xs.request(self._conn, message)
        except ProtocolError as error:
            self._fail(RingProblem.PROTO, str(error))

    def _fail(self, problem: RingProblem, reason: str) -> None:
        """The guest's fault."""
        log.warning("ring no longer served", domid=self.domid, reason=reason)
        self._failed = True
        self._page.view[RING_ERROR_OFFSET : RING_ERROR_OFFSET + 4] = problem.to_bytes(4, "little")
        self._daemon.forget(self._conn)
        self._port.notify()
