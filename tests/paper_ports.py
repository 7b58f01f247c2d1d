"""Event channels on paper: two ends in one process, with the interface of hyper.guest.Port."""

from __future__ import annotations

import itertools

import trio

_numbers = itertools.count(1)


class PaperPort:
    """One end. `notify` makes the other end's wait() return once, however often it is called before."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.peer: PaperPort | None = None
        self.closed = False
        self._pending = trio.Event()

    async def wait(self) -> None:
        while not self._pending.is_set():
            if self.closed:
                raise trio.ClosedResourceError(f"port {self.number} is closed")
            await self._pending.wait()
        if self.closed:
            raise trio.ClosedResourceError(f"port {self.number} is closed")
        self._pending = trio.Event()
        await trio.lowlevel.checkpoint()

    def notify(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError(f"port {self.number} is closed")
        if self.peer is not None:
            self.peer._pending.set()

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed = True
        self._pending.set()
        if self.peer is not None:
            self.peer.peer, self.peer = None, None

    async def __aenter__(self) -> PaperPort:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def bind(one: PaperPort, other: PaperPort) -> None:
    """Binds the two; both are pending then, as after EVTCHNOP_bind_interdomain."""
    one.peer, other.peer = other, one
    one._pending.set()
    other._pending.set()


def pair() -> tuple[PaperPort, PaperPort]:
    one, other = PaperPort(), PaperPort()
    bind(one, other)
    return one, other
