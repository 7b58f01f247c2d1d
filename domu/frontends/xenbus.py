"""The frontend's half of the handshake with a backend, over the domain's own xenstore ring.

    async with xenbus.device(xs, "vbd", 51712) as device:
        await device.wait_backend(XenbusState.INIT_WAIT)
        await device.publish({"ring-ref": gref, "event-channel": port.number}, XenbusState.INITIALISED)
        await device.wait_backend(XenbusState.CONNECTED)

At the end of the block both halves are Closed, or two seconds have passed. A backend that closes, fails or
goes away while one waits for something else is DeviceGone, with what the backend says about it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import trio

from domu.faults import Faults, Node
from hyper.guest.xenstore import Transaction, XenstoreClient, XenstoreGone
from hyper.public.errors import NoSuchNode, XenError
from hyper.public.xenbus import XenbusState, parse_state

CLOSE_SECONDS = 2.0
"""How long a backend may take to close when the frontend does."""
_PER_CONNECTION = ("ring-", "tx-ring-", "rx-ring-", "event-channel", "queue-", "multi-queue-")
_OVER = (XenbusState.CLOSING, XenbusState.CLOSED, XenbusState.UNKNOWN)


class DeviceGone(Exception):
    """The backend has closed the device, refuses it or is gone; or there is no such device."""


@asynccontextmanager
async def device(
    xs: XenstoreClient, kind: str, devid: int, faults: Faults[Node] | None = None
) -> AsyncIterator[Device]:
    """Device `devid` of `kind` ("vbd", "vif"), whose backend has begun to wait for us or soon will.

    `faults` are those of the nodes it writes.

    Raises: DeviceGone when the toolstack has given us none.
    """
    path = f"device/{kind}/{devid}"
    backend = await xs.read_if_exists(f"{path}/backend")
    backend_id = await xs.read_if_exists(f"{path}/backend-id")
    if backend is None or backend_id is None:
        raise DeviceGone(f"{path}: this domain has no such device")
    failure: BaseException | None = None
    async with xs.watch(f"{backend}/state") as changes, trio.open_nursery() as nursery:
        found = Device(xs, path, backend, int(backend_id), faults or Faults())
        try:
            await found._begin(aiter(changes))
            nursery.start_soon(found._follow, aiter(changes))
            yield found
        except BaseException as error:  # raised again below: not as an exception group
            failure = error
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await found.close()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class Device:
    """One device's two folders. Made by device()."""

    def __init__(
        self, xs: XenstoreClient, path: str, backend: str, backend_domid: int, faults: Faults[Node]
    ) -> None:
        self.xs = xs
        self.path = path
        """Our folder, relative to that of the domain."""
        self.backend = backend
        """The backend's folder."""
        self.backend_domid = backend_domid
        self.backend_state = XenbusState.UNKNOWN
        self.faults = faults
        """Of the nodes that publish() and set_state() write."""
        self._changed = trio.Condition()

    async def read_backend(self) -> dict[str, str]:
        """What the backend has published, by name; no folders below its own."""
        values = {}
        for name in await self.xs.directory(self.backend):
            with suppress(XenError):  # removed meanwhile, or not for us
                values[name] = await self.xs.read(f"{self.backend}/{name}")
        return values

    async def read(self, name: str) -> str | None:
        """One of our own nodes."""
        return await self.xs.read_if_exists(f"{self.path}/{name}")

    async def publish(self, values: Mapping[str, object], state: XenbusState | None = None) -> None:
        """Writes our nodes all at once, in place of an earlier connection's, and then the state."""
        nodes = [Node(name, str(value)) for name, value in values.items()]
        written = [kept for node in nodes for kept in self.faults.apply(node)]

        async def write(tx: Transaction) -> None:
            for name in await tx.directory(self.path):
                if name.startswith(_PER_CONNECTION):
                    await tx.rm(f"{self.path}/{name}")
            for name, value in written:
                await tx.write(f"{self.path}/{name}", value)

        await self.xs.transact(write)
        if state is not None:
            await self.set_state(state)

    async def set_state(self, state: XenbusState) -> None:
        for node in self.faults.apply(Node("state", str(int(state)))):
            await self.xs.write(f"{self.path}/{node.name}", node.value)

    async def wait_backend(self, *states: XenbusState) -> XenbusState:
        """Until the backend's state is one of `states`.

        Raises: DeviceGone when it closes or vanishes instead.
        """
        async with self._changed:
            while self.backend_state not in states:
                if self.backend_state in _OVER:
                    raise DeviceGone(f"{self.path}: {await self._why()}")
                await self._changed.wait()
        return self.backend_state

    async def wait_change(self) -> XenbusState:
        """Until the backend writes its state again, even the same one (as after a resize)."""
        async with self._changed:
            await self._changed.wait()
        return self.backend_state

    async def wait_over(self) -> XenbusState:
        """Until the backend is Closing, Closed or gone."""
        await self._wait_state(*_OVER)
        return self.backend_state

    async def close(self) -> None:
        """Our half of the end: Closing, the backend's answer, Closed. The backend lets go of what is ours.

        Nothing when the device is gone or closed.
        """
        with suppress(XenstoreGone, XenError):
            if parse_state(await self.read("state")) in (XenbusState.UNKNOWN, XenbusState.CLOSED):
                return
            await self.set_state(XenbusState.CLOSING)
            await self._wait_state(*_OVER)
            await self.set_state(XenbusState.CLOSED)
            await self._wait_state(XenbusState.CLOSED, XenbusState.UNKNOWN)

    async def _wait_state(self, *states: XenbusState) -> None:
        async with self._changed:
            while self.backend_state not in states:
                await self._changed.wait()

    async def _begin(self, changes: AsyncIterator[str]) -> None:
        """A device that was closed before is opened anew."""
        if parse_state(await self.read("state")) != XenbusState.INITIALISING:
            await self.set_state(XenbusState.INITIALISING)
            while await self._read_state() in (XenbusState.CLOSING, XenbusState.CLOSED):
                await anext(changes)
        self.backend_state = await self._read_state()

    async def _follow(self, changes: AsyncIterator[str]) -> None:
        with suppress(XenstoreGone):
            async for _ in changes:
                state = await self._read_state()
                async with self._changed:
                    self.backend_state = state
                    self._changed.notify_all()

    async def _read_state(self) -> XenbusState:
        return parse_state(await self.xs.read_if_exists(f"{self.backend}/state"))

    async def _why(self) -> str:
        with suppress(NoSuchNode, XenError):
            return f"the backend says: {await self.xs.read(f'{self.backend}/error')}"
        return f"the backend is {self.backend_state.name.lower().replace('unknown', 'gone')}"


def number(nodes: Mapping[str, str], name: str, default: int = 0) -> int:
    """A number at least 0, or `default` where there is none: it is the other half's to write."""
    try:
        value = int(nodes.get(name, default))
    except ValueError:
        return default
    return value if value >= 0 else default
