"""One guest's console: its ring is always drained, into the scrollback, the log file and to every viewer.

The guest never waits for any of them: each takes what it can without blocking and leaves out the rest (a
guest whose ring is full would spin). The other way round a viewer waits until the guest has taken what he
typed.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Protocol

import structlog
import trio

from dom0.xenconsoled.logfile import LogWriter
from dom0.xenconsoled.scrollback import Scrollback
from dom0.xenconsoled.viewer import Viewer
from hyper.guest.rings import ConsoleRing, RingError
from hyper.public.errors import GrantError
from hyper.public.listening import clients, listening

log = structlog.get_logger("xenconsoled")

_RING_BYTES = 2048
_FINISH_SECONDS = 0.5


class Page(Protocol):
    """The mapped ring page: hyper.guest.Mapping."""

    view: memoryview

    async def close(self) -> None: ...


class Port(Protocol):
    """Our end of the event channel: hyper.guest.Port."""

    async def wait(self) -> None: ...

    def notify(self) -> None: ...

    async def close(self) -> None: ...


class Console:
    """Owns page, port, scrollback and what it listens on."""

    def __init__(
        self, domid: int, page: Page, port: Port, scrollback: Scrollback, log_writer: LogWriter
    ) -> None:
        self.domid = domid
        self._page = page
        self._port = port
        self._ring = ConsoleRing(page.view)
        self._scrollback = scrollback
        self._log_writer = log_writer
        self._viewers: set[Viewer] = set()
        self._room = trio.Event()
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    async def run(
        self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serves viewers on the socket `path` until stop(). Started once it listens."""
        try:
            with self._scope, listening(path) as listener:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._log_writer.run)
                    nursery.start_soon(self._accept, listener, nursery)
                    nursery.start_soon(self._pump)
                    task_status.started()
        finally:
            with trio.CancelScope(shield=True):
                await self._let_go()
            self._stopped.set()

    async def stop(self) -> None:
        """What the guest has printed last is still shown; then everything is closed."""
        self._drain()
        with trio.move_on_after(_FINISH_SECONDS):
            for viewer in list(self._viewers):
                await viewer.finish()
        self._scope.cancel()
        await self._stopped.wait()

    async def _let_go(self) -> None:
        self._scrollback.close()
        await self._port.close()
        try:
            await self._page.close()
        except GrantError as error:
            log.warning("console page not unmapped", domid=self.domid, reason=str(error))

    async def _pump(self) -> None:
        while True:
            if self._drain():
                await trio.lowlevel.checkpoint()
                continue
            self._room.set()  # an event may mean that the guest has read
            self._room = trio.Event()
            await self._port.wait()

    def _drain(self) -> bool:
        """Shows what is in the ring. False: there was nothing."""
        try:
            data = self._ring.read_output(_RING_BYTES)
        except RingError as error:
            return self._broken(error)
        if not data:
            return False
        self._scrollback.append(data)
        self._port.notify()
        self._log_writer.put(data)
        for viewer in self._viewers:
            viewer.show(data)
        return True

    def _broken(self, error: RingError) -> bool:
        """The guest's fault. It is looked at again when it notifies."""
        log.warning("console ring", domid=self.domid, reason=str(error))
        return False

    async def _accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        async for client in clients(listener):
            nursery.start_soon(self._serve, Viewer(client, nursery))

    async def _serve(self, viewer: Viewer) -> None:
        viewer.show(self._scrollback.text())
        self._viewers.add(viewer)
        try:
            await viewer.run(self._typed)
        finally:
            self._viewers.discard(viewer)

    async def _typed(self, data: bytes) -> None:
        """Returns when the guest's ring has taken all."""
        while data:
            try:
                taken = self._ring.write_input(data)
            except RingError:
                return  # nobody there who could read it
            if taken:
                self._port.notify()
                data = data[taken:]
            else:
                await self._room.wait()
