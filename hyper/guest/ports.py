"""Event channel ports of this connection. Two descriptors each: no hypercall to wait or to notify.

The upcall is an eventfd in Dom0 and a stream socket elsewhere; a read drains either.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable
from typing import Self

import trio

from hyper.public.errors import HypervisorGone
from hyper.public.types import EvtchnPort

_ONE = (1).to_bytes(8, "little")
_DRAIN_BYTES = 65536


class Port:
    """A bound port. Close it, or use it with `async with`; the end of the connection closes it as well."""

    def __init__(
        self, number: EvtchnPort, upcall: int, doorbell: int, evtchn_close: Callable[[Port], Awaitable[None]]
    ) -> None:
        self.number = number
        self._upcall = upcall
        self._doorbell = doorbell
        self._evtchn_close = evtchn_close
        self._gone = False
        # os.set_blocking() is an ioctl, which a confined guest may not make
        fcntl.fcntl(upcall, fcntl.F_SETFL, fcntl.fcntl(upcall, fcntl.F_GETFL) | os.O_NONBLOCK)

    @property
    def upcall_fd(self) -> int:
        """For a C thread instead of wait(): readable when the port is pending; read 64 bytes or more until
        EAGAIN. Non-blocking.
        """
        return self._upcall

    @property
    def doorbell_fd(self) -> int:
        """For a C thread instead of notify(): an eventfd; write a uint64_t of 1."""
        return self._doorbell

    async def wait(self) -> None:
        """Returns when the port has been notified since the last return. Notifications do not add up.

        Raises: HypervisorGone; trio.ClosedResourceError when the port is closed meanwhile;
        trio.BusyResourceError for a second waiting task.
        """
        while True:
            if self._gone:
                raise HypervisorGone("hyper has hung up")
            if self._upcall < 0:
                raise trio.ClosedResourceError(f"port {self.number} is closed")
            try:
                await trio.lowlevel.wait_readable(self._upcall)
                if self._upcall < 0:  # closed by a task that ran before us
                    continue
                os.read(self._upcall, _DRAIN_BYTES)
                return
            except BlockingIOError:
                continue
            except trio.ClosedResourceError:
                if not self._gone:
                    raise

    def notify(self) -> None:
        """Sends an event to the other end (EVTCHNOP_send). Never blocks.

        Raises: trio.ClosedResourceError.
        """
        if self._doorbell < 0:
            raise trio.ClosedResourceError(f"port {self.number} is closed")
        os.write(self._doorbell, _ONE)

    async def close(self) -> None:
        """Unbinds the port; the other end becomes unbound. May be called twice; not interrupted by
        cancellation.
        """
        if self._drop():
            with trio.CancelScope(shield=True):
                await self._evtchn_close(self)

    def _drop(self) -> bool:
        """Closes the descriptors. False: they are closed already."""
        if self._upcall < 0:
            return False
        trio.lowlevel.notify_closing(self._upcall)
        os.close(self._upcall)
        os.close(self._doorbell)
        self._upcall = self._doorbell = -1
        return True

    def _hang_up(self) -> None:
        """hyper is gone: whoever waits gets HypervisorGone."""
        self._gone = True
        if self._upcall >= 0:
            trio.lowlevel.notify_closing(self._upcall)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class SharedWait:
    """Lets several tasks wait for one port: each event wakes all of them.

    Whoever waits looks first whether there is something to do: events of which nobody knew any more what
    they were for are possible.
    """

    def __init__(self, port: Port) -> None:
        self._port = port
        self._lot = trio.lowlevel.ParkingLot()
        self._somebody_waits = False

    async def wait(self) -> None:
        """Raises: as Port.wait()."""
        if self._somebody_waits:
            await self._lot.park()
            return
        self._somebody_waits = True
        try:
            await self._port.wait()
        finally:
            self._somebody_waits = False
            self._lot.unpark_all()
