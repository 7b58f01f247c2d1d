"""The backend's end of XenBus: finds the devices of one kind in XenStore and gives each a task.

    async with xenstore_of(paths.xenstored) as store:
        await serve(store, hyp, kind="vbd", device=device)

`device(link)` opens what the device needs, publishes it (`link.publish`, `link.hotplug_connected`) and then
usually ends in `run_connections(link, connection)`, which is Xen's handshake with the frontend, reconnections
included. It is cancelled when its folder in XenStore goes; an exception is that device's alone: the text goes
to `error` (and `hotplug-error`, when it comes before hotplug_connected), its state to Closing and Closed.

xenstored may be killed and come back: every operation here is repeated then and watches fire once more.
After this daemon was killed itself, `serve` finds devices in state Connected and calls `device` with
`link.resuming` set. Nothing that xend has made is removed here.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
import trio

from hyper.guest import Hypervisor, Port, xenstore
from hyper.guest.xenstore import XenstoreClient, XenstoreGone
from hyper.public.errors import BadArgument, GrantError, HypervisorGone, NoSuchNode, XenError, leaves
from hyper.public.types import DomId
from hyper.public.xenbus import XenbusState, parse_state
from hyper.public.xs_wire import domain_path

T = TypeVar("T")
State = XenbusState
log = structlog.get_logger()

REAP_SECONDS = 5.0
"""How long hyper may take to notice that our predecessor is dead and to free its ports."""
_RETRY_SECONDS = 0.05
_CLOSING_SECONDS = 10.0
_TEXT_MAX = 1000


class DeviceError(Exception):
    """This device cannot be served: the configuration's or the guest's fault. The text is shown to users."""


class Store:
    """A connection to xenstored that is made again when it is lost. Made by xenstore_of()."""

    def __init__(self) -> None:
        self._client: XenstoreClient | None = None
        self._arrived = trio.Event()

    async def call(self, work: Callable[[XenstoreClient], Awaitable[T]]) -> T:
        """`work` with the present connection; once more from the start when xenstored goes away under it.

        Raises: XenError.
        """
        while True:
            client = await self._present()
            try:
                return await work(client)
            except XenstoreGone:
                self._lost(client)

    async def read(self, path: str) -> str | None:
        """The value, or None where there is no node."""
        return await self.call(lambda xs: xs.read_if_exists(path))

    async def write(self, path: str, value: str) -> None:
        await self.call(lambda xs: xs.write(path, value))

    async def names(self, path: str) -> list[str]:
        """The children of a node; none where there is no node."""
        try:
            return await self.call(lambda xs: xs.directory(path))
        except NoSuchNode:
            return []

    async def follow(
        self, paths: tuple[str, ...], fired: Callable[[str], Awaitable[None]], *, merged: bool = False
    ) -> None:
        """Calls `fired(path)` whenever something at or below `paths` changes; for ever. Each fires at once,
        and again after xenstored was away. `merged`: as in XenstoreClient.watch.
        """
        while True:
            client = await self._present()
            try:
                async with client.watch(*paths, merged=merged) as watch:
                    async for path in watch:
                        await fired(path)
            except XenstoreGone:
                self._lost(client)

    async def _present(self) -> XenstoreClient:
        while self._client is None:
            await self._arrived.wait()
        return self._client

    def _lost(self, client: XenstoreClient) -> None:
        if self._client is client:
            self._client = None
            self._arrived = trio.Event()

    async def _keep(self, path: Path | str) -> None:
        away = False
        while True:
            try:
                async with xenstore.connect(path) as client:
                    away = False
                    self._client = client
                    self._arrived.set()
                    log.warning("xenstored is away", reason=await client.wait_gone())
                    self._lost(client)
            except XenstoreGone as gone:
                if not away:
                    log.warning("xenstored cannot be reached", reason=str(gone))
                away = True
            await trio.sleep(_RETRY_SECONDS)


@asynccontextmanager
async def xenstore_of(path: Path | str) -> AsyncIterator[Store]:
    """A Store of the xenstored at `path`, which need not be there yet."""
    store = Store()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store._keep, path)
        yield store
        nursery.cancel_scope.cancel()


class Link:
    """One device in XenStore, seen from its backend. Made by serve()."""

    def __init__(
        self, store: Store, hyp: Hypervisor, backend_path: str, frontend_path: str, domid: int, devid: int
    ) -> None:
        self.hyp = hyp
        self.backend_path = backend_path
        self.frontend_path = frontend_path
        self.frontend_domid = DomId(domid)
        self.devid = devid
        self.resuming = False
        """A killed predecessor has left this device connected. Cleared once run_connections() goes on."""
        self.state = State.INITIALISING
        """Ours, as it stands in XenStore."""
        self.frontend_state = State.UNKNOWN
        """UNKNOWN also when the frontend's folder is gone."""
        self.online = True
        """False: xend wants the device closed, and not to be connected again."""
        self.log = log.bind(domid=domid, devid=devid)
        self._store = store
        self._hotplugged = False
        self._changed = trio.Event()
        self._nr_changes = self._nr_seen = 0

    # --- what stands in XenStore

    async def read_config(self) -> dict[str, str]:
        """What xend, and we, have written: each node right below `backend_path`."""
        return await self._read_folder(self.backend_path, 0)

    async def read_frontend(self) -> dict[str, str]:
        """What the frontend has published; nodes of a folder in it as "queue-0/ring-ref". Hostile text."""
        return await self._read_folder(self.frontend_path, 1)

    async def _read_folder(self, path: str, depth: int) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in await self._store.names(path):
            value = await self._store.read(f"{path}/{name}")
            if value is not None:
                found[name] = value
            if depth and not value:
                below = await self._read_folder(f"{path}/{name}", depth - 1)
                found |= {f"{name}/{key}": text for key, text in below.items()}
        return found

    async def publish(self, nodes: Mapping[str, object]) -> None:
        """Writes nodes below `backend_path`, all at once: {"sectors": 2048, "statistics/rd_req": 5}.

        Nothing happens when the device's folder is gone.
        """

        async def write(tx: xenstore.Transaction) -> None:
            if await tx.exists(f"{self.backend_path}/frontend"):
                for name, value in nodes.items():
                    await tx.write(f"{self.backend_path}/{name}", str(value))

        await self._store.call(lambda xs: xs.transact(write))

    async def set_state(self, state: XenbusState) -> None:
        """Writes our `state`, when it is another one."""
        if self.state != state:
            await self.publish({"state": int(state)})
            self.state = state

    async def hotplug_connected(self, nodes: Mapping[str, object]) -> None:
        """Tells xend that the device's own half is in order: `hotplug-status`, with `nodes` beside it."""
        await self.publish({**nodes, "hotplug-status": "connected"})
        self._hotplugged = True

    async def fail(self, text: str) -> None:
        """Says why the device is not served, and begins to close it."""
        text = text[:_TEXT_MAX]
        hotplug = {} if self._hotplugged else {"hotplug-error": text, "hotplug-status": "error"}
        await self.publish({"error": text, **hotplug})
        await self.set_state(State.CLOSING)

    # --- waiting

    async def wait_changed(self) -> None:
        """Returns when a node of either half has changed since the last return; read again what matters."""
        while self._nr_seen == self._nr_changes:
            await self._changed.wait()
        self._nr_seen = self._nr_changes

    async def wait_frontend_state(self, *states: XenbusState) -> XenbusState:
        """Returns the frontend's state as soon as it is one of `states`."""
        while self.frontend_state not in states:
            await self._changed.wait()
        return self.frontend_state

    async def wait_offline(self) -> None:
        """Returns when xend wants the device closed (`online` is 0)."""
        while self.online:
            await self._changed.wait()

    async def bind_port(self, remote_port: int) -> Port:
        """Binds the frontend's event channel. Waits for a killed predecessor's port to be freed.

        Raises: XenError.
        """
        deadline = trio.current_time() + (REAP_SECONDS if self.resuming else 0)
        while True:
            try:
                return await self.hyp.bind_interdomain(self.frontend_domid, remote_port)
            except BadArgument:
                if trio.current_time() >= deadline:
                    raise
                await trio.sleep(0.01)

    async def _follow(self, task_status: trio.TaskStatus[None]) -> None:
        """Keeps `frontend_state` and `online` as XenStore has them; started when both are known."""

        async def fired(_: str) -> None:
            nonlocal task_status
            self.frontend_state = parse_state(await self._store.read(f"{self.frontend_path}/state"))
            self.online = (await self._store.read(f"{self.backend_path}/online") or "0").strip() != "0"
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            self._nr_changes += 1
            changed, self._changed = self._changed, trio.Event()
            changed.set()

        await self._store.follow((self.frontend_path, self.backend_path), fired, merged=True)


class Connection(Protocol):
    """Connects to what the frontend has published, calls task_status.started() and serves until cancelled.
    Raises: DeviceError, XenError, GrantError and so on: the device is closed then.
    """

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> None: ...


_ASKED = (State.INITIALISED, State.CONNECTED)
_OVER = (State.INITIALISING, State.CLOSED, State.UNKNOWN)


async def run_connections(link: Link, connection: Connection) -> None:
    """Xen's handshake: runs `connection` whenever the frontend has published its ring, and cancels it when
    the frontend closes. Returns when the device is over; serve() then says Closed.

    After a kill (`link.resuming`) the first one starts without any change of states.
    """
    while True:
        if link.resuming and link.frontend_state not in _ASKED:
            link.resuming = False
        if not link.resuming:
            await link.set_state(State.INIT_WAIT)
            async with _until_offline(link):
                await link.wait_frontend_state(*_ASKED)
        if link.frontend_state in _ASKED:
            await _run_connection(link, connection)
        if link.frontend_state != State.INITIALISING:
            if link.frontend_state == State.UNKNOWN or not link.online:
                return
            await link.set_state(State.CLOSED)
            async with _until_offline(link):
                await link.wait_frontend_state(State.INITIALISING, *_ASKED)
        if not link.online and link.frontend_state not in _ASKED:
            return


@asynccontextmanager
async def _until_offline(link: Link) -> AsyncIterator[None]:
    """Ends the block when xend gives the device up while no frontend uses it."""
    async with trio.open_nursery() as nursery:

        async def offline() -> None:
            await link.wait_offline()
            nursery.cancel_scope.cancel()

        nursery.start_soon(offline)
        yield
        nursery.cancel_scope.cancel()


async def _run_connection(link: Link, connection: Connection) -> None:
    """Until the frontend has closed, or begins again without closing."""
    async with trio.open_nursery() as nursery:
        await nursery.start(connection)
        if link.resuming:
            link.resuming = False  # states stay as they are
        else:
            await link.set_state(State.CONNECTED)
        if await link.wait_frontend_state(State.CLOSING, *_OVER) == State.CLOSING:
            await link.set_state(State.CLOSING)
            await link.wait_frontend_state(*_OVER)
        nursery.cancel_scope.cancel()


# --- all devices of a kind

Device = Callable[[Link], Awaitable[None]]


async def serve(
    store: Store,
    hyp: Hypervisor,
    *,
    kind: str,
    device: Device,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs `device(link)` for each device of `kind` ("vbd", "vif") that Dom0 backs, for ever.

    Started when the devices of the present have their tasks. Raises: HypervisorGone.
    """
    root = f"{domain_path(0)}/backend/{kind}"
    async with trio.open_nursery() as nursery:
        bus = _Bus(store, hyp, root, device, nursery)

        async def fired(path: str) -> None:
            nonlocal task_status
            names = path.removeprefix(root).strip("/").split("/")
            if len(names) >= 2:
                await bus.consider(names[0], names[1])
            else:
                await bus.look_everywhere()
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED

        await store.follow((root,), fired)


async def devices(store: Store, kind: str) -> set[tuple[int, int]]:
    """(frontend's domid, devid) of all devices of `kind` that Dom0 backs at present."""
    root = f"{domain_path(0)}/backend/{kind}"
    return {
        (int(domid), int(devid))
        for domid in await store.names(root)
        for devid in await store.names(f"{root}/{domid}")
        if domid.isdigit() and devid.isdigit()
    }


class _Bus:
    def __init__(
        self, store: Store, hyp: Hypervisor, root: str, device: Device, nursery: trio.Nursery
    ) -> None:
        self._store = store
        self._hyp = hyp
        self._root = root
        self._device = device
        self._nursery = nursery
        self._tasks: dict[tuple[str, str], _Task] = {}
        self._turn = trio.Lock()

    async def look_everywhere(self) -> None:
        found = set(self._tasks)
        for domid in await self._store.names(self._root):
            found |= {(domid, devid) for devid in await self._store.names(f"{self._root}/{domid}")}
        for domid, devid in sorted(found):
            await self.consider(domid, devid)

    async def consider(self, domid: str, devid: str) -> None:
        """Starts or ends the device's task, as its folder says."""
        async with self._turn:
            await self._consider(domid, devid)

    async def _consider(self, domid: str, devid: str) -> None:
        path = f"{self._root}/{domid}/{devid}"
        task = self._tasks.get((domid, devid))
        written = task.link.state if task else None  # looked at first: our own writes are under way
        frontend = await self._store.read(f"{path}/frontend")
        state = parse_state(await self._store.read(f"{path}/state"))
        if task and (frontend is None or (state == State.INITIALISING and written != state)):
            task.scope.cancel()  # the folder is gone, or there is a new device in its place
            if task.ended:
                del self._tasks[domid, devid]
                task = None
        if task or frontend is None or state == State.UNKNOWN or not (domid.isdigit() and devid.isdigit()):
            return
        link = Link(self._store, self._hyp, path, frontend, int(domid), int(devid))
        link.state = state
        link.resuming = state in (State.CONNECTED, State.CLOSING)
        task = self._tasks[domid, devid] = _Task(link, self._device)
        self._nursery.start_soon(self._run, domid, devid, task)

    async def _run(self, domid: str, devid: str, task: _Task) -> None:
        """Raises: HypervisorGone."""
        await task.run()
        task.ended = True
        if task.scope.cancel_called:
            await self.consider(domid, devid)


class _Task:
    """One device's task."""

    def __init__(self, link: Link, device: Device) -> None:
        self.link = link
        self.scope = trio.CancelScope()
        self.ended = False
        self._device = device

    async def run(self) -> None:
        """Raises: HypervisorGone."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.link._follow)
                if self.link.state != State.CLOSED or self.link.online:
                    await self._run_device()
                nursery.cancel_scope.cancel()

    async def _run_device(self) -> None:
        try:
            await self._device(self.link)
            await self.link.set_state(State.CLOSED)  # it has let go of everything
        except Exception as error:  # this device's alone; the others go on
            causes = leaves(error)
            if any(isinstance(cause, HypervisorGone) for cause in causes):
                raise
            text = "; ".join(str(cause) or repr(cause) for cause in causes)
            known = (DeviceError, XenError, GrantError, OSError)
            expected = all(isinstance(cause, known) for cause in causes)
            self.link.log.error("device closed", reason=text, exc_info=None if expected else error)
            await self._close_failed(text)

    async def _close_failed(self, text: str) -> None:
        await self.link.fail(text)
        with trio.move_on_after(_CLOSING_SECONDS):
            await self.link.wait_frontend_state(State.CLOSED, State.UNKNOWN)
        await self.link.set_state(State.CLOSED)



def number(
    nodes: Mapping[str, str], name: str, *, default: int | None = None, maximum: float = math.inf
) -> int:
    """Node `name` as a number from 0 to `maximum`.

    Raises: DeviceError when it is missing (and has no default), no number, or too large.
    """
    text = nodes.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise DeviceError(f"{name} is missing")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise DeviceError(f"{name} is {text[:40]!r}, not a number")
    if int(text) > maximum:
        raise DeviceError(f"{name} is {text}; the limit is {maximum}")
    return int(text)
