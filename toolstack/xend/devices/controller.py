"""How a device comes and goes: its entries in xenstore, and the handshake with its backend.

For all classes alike. A backend says `hotplug-status` connected, error or busy once it has looked at the
device; it goes to state 6 when it has let go of it. Every wait here watches the backend's entries and has a
deadline.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import structlog
import trio

from hyper.public.xenbus import XenbusState, backend_path, frontend_path, parse_state
from toolstack.sxp import Sxp
from toolstack.xend.devices.config import KINDS, Device, key
from toolstack.xend.devices.vbd import Vbd
from toolstack.xend.devices.vif import Vif
from toolstack.xend.errors import XendError
from toolstack.xend.nodes import Node, Transaction
from toolstack.xend.xenstore import Xenstore

T = TypeVar("T")
log = structlog.get_logger("xend")

HOTPLUG_SECONDS = 10.0
"""A backend that has not looked at a device after this is not there."""
DETACH_SECONDS = 10.0
"""What a guest has to let go of a device."""
LET_GO_SECONDS = 5.0
"""What a backend has to let go of a device whose frontend is gone: requests in flight are finished first."""
_UNBORN = (XenbusState.UNKNOWN, XenbusState.INITIALISING)
BACKENDS = {"vbd": "blkback", "vif": "netback"}


@dataclass(frozen=True)
class Owner:
    """The domain a device is for. `vm_path` tells it from a later one of the same number."""

    domid: int
    name: str
    vm_path: str


@dataclass(frozen=True)
class Plugged:
    """A device that has entries in xenstore."""

    kind: str
    devid: int
    online: bool


class _Halves(NamedTuple):
    """Who has taken a device up."""

    backend: bool
    frontend: bool


class DeviceController:
    """Raises, from every call: XenstoreUnavailable, XenError."""

    def __init__(self, xenstore: Xenstore) -> None:
        self._xenstore = xenstore

    # ---- coming

    async def plug(self, owner: Owner, devices: Iterable[Device]) -> None:
        """Writes the entries of devices, all or none. Raises: XendError when one exists or the domain has
        ended.
        """
        wanted = list(devices)

        async def work(transaction: Transaction) -> None:
            if await transaction.read_if_exists(f"/local/domain/{owner.domid}/vm") != owner.vm_path:
                raise XendError(f"Domain '{owner.name}' is not started")
            for device in wanted:
                if await transaction.exists(backend_path(0, *_place(owner.domid, device))):
                    raise XendError(f"Device {device.label} is already connected.")
            for node in device_nodes(owner, wanted):
                await node.write(transaction)

        await self._xenstore.transact(work)

    async def wait_connected(
        self, domid: int, devices: Iterable[Device], seconds: float = HOTPLUG_SECONDS
    ) -> None:
        """Waits until the backends have the devices. Raises: XendError with what one says that has not."""
        failures: dict[tuple[str, int], str] = {}

        async def wait(device: Device) -> None:
            path = backend_path(0, *_place(domid, device))
            failure = await self._watch(path, lambda: self._hotplug_failure(path), seconds)
            if failure is None:
                failure = f"{BACKENDS[device.kind]} has not answered within {seconds:g} s"
            if failure:
                label = "" if device.label == str(device.devid) else f"{device.label}: "
                text = f"Device {device.devid} ({device.kind}) could not be connected. {label}{failure}"
                failures[key(device)] = text

        await _for_each(devices, wait)
        if failures:
            raise XendError(failures[min(failures)])

    async def _hotplug_failure(self, path: str) -> str | None:
        """What a backend has against a device; "" when it has it, None when it has not looked yet."""
        found = await self._xenstore.subtree(path)
        if not found:
            return "Device not found."
        text = found.get("hotplug-error") or found.get("error") or ""
        status = found.get("hotplug-status", "")
        state = parse_state(found.get("state"))
        if status == "connected":
            return ""
        if status == "busy":
            return text or "It is in use."
        if status == "error" or (text and state in (XenbusState.CLOSING, XenbusState.CLOSED)):
            return text or "The backend does not say why."
        return None

    async def change_medium(self, domid: int, before: Vbd, after: Vbd) -> None:
        """Puts another image into a drive. Raises: XendError when it cannot be; the old one stays then."""
        try:
            await self._request(domid, after, after.place(), "changed")
        except XendError:
            await self._request(domid, before, before.place(), "changed")
            raise

    async def resize(self, domid: int, disk: Vbd) -> None:
        """Has the backend look at the size of an image again. Raises: XendError."""
        await self._request(domid, disk, {}, "resized")

    async def _request(self, domid: int, disk: Vbd, values: dict[str, str], done: str) -> None:
        """Writes into the entries of a backend and asks it to look at the disk anew; waits until it has.

        A backend does what the entries say, then answers `resize-request` by `resize-done`, or by a text.
        """
        path = backend_path(0, *_place(domid, disk))
        mark = secrets.token_hex(8)

        async def work(transaction: Transaction) -> None:
            if not await transaction.exists(path):
                raise XendError(f"Device {disk.label} not connected")
            for name in ("error", "resize-error"):
                if await transaction.exists(f"{path}/{name}"):
                    await transaction.rm(f"{path}/{name}")
            for name, value in {**values, "resize-request": mark}.items():
                await transaction.write(f"{path}/{name}", value)

        async def answer() -> str | None:
            done = await self._xenstore.read(
                f"{path}/resize-done"
            )  # first: what is wrong is written before it
            for name in ("resize-error", "error"):
                if text := await self._xenstore.read(f"{path}/{name}"):
                    return text
            return "" if done == mark or await self._xenstore.read(path) is None else None

        await self._xenstore.transact(work)
        failure = await self._watch(path, answer, HOTPLUG_SECONDS)
        if failure is None:
            failure = f"{BACKENDS[disk.kind]} has not answered within {HOTPLUG_SECONDS:g} s"
        if failure:
            text = f"Device {disk.devid} ({disk.kind}) could not be {done}. {disk.label}: {failure}"
            raise XendError(text)

    # ---- going

    async def unplug(self, domid: int, kind: str, devid: int, *, force: bool, seconds: float) -> bool:
        """Takes a device away. Returns: whether it has gone.

        It has not when the guest holds it and `force` is off; the request stays then, see wait_unplugged.
        """
        backend, frontend = backend_path(0, kind, domid, devid), frontend_path(domid, kind, devid)
        taken_up = await self._ask_to_close(backend, frontend)
        if not force and all(taken_up) and not await self._wait_closed(backend, seconds):
            return False
        await self._remove(backend, frontend, wait=taken_up.backend)
        return True

    async def wait_unplugged(self, domid: int, kind: str, devid: int) -> None:
        """Waits, without an end, until a guest lets go of a device, and clears it away."""
        backend, frontend = backend_path(0, kind, domid, devid), frontend_path(domid, kind, devid)
        if all(await self._ask_to_close(backend, frontend)):
            await self._wait_closed(backend, float("inf"))
        await self._remove(backend, frontend, wait=True)

    async def remove_all(self, domid: int) -> None:
        """Takes all devices of a domain away that has ended: its own half is gone."""
        plugged = await self.plugged(domid)

        async def remove(device: Plugged) -> None:
            backend = backend_path(0, device.kind, domid, device.devid)
            frontend = frontend_path(domid, device.kind, device.devid)
            taken_up = await self._ask_to_close(backend, frontend)
            await self._remove(backend, frontend, wait=taken_up.backend)

        await _for_each(plugged, remove)
        for kind in KINDS:
            await self._xenstore.remove(f"/local/domain/0/backend/{kind}/{domid}")

    async def _ask_to_close(self, backend: str, frontend: str) -> _Halves:
        """Writes the request. Returns: who has to answer it."""

        async def work(transaction: Transaction) -> _Halves:
            if not await transaction.exists(backend):
                return _Halves(False, False)
            state = parse_state(await transaction.read_if_exists(f"{backend}/state"))
            status = await transaction.read_if_exists(f"{backend}/hotplug-status")
            started = parse_state(await transaction.read_if_exists(f"{frontend}/state")) not in _UNBORN
            await transaction.write(f"{backend}/online", "0")
            if state not in (XenbusState.CLOSING, XenbusState.CLOSED):
                await transaction.write(f"{backend}/state", str(int(XenbusState.CLOSING)))
            return _Halves(status is not None or state not in _UNBORN, started)

        return await self._xenstore.transact(work)

    async def _wait_closed(self, backend: str, seconds: float) -> bool:
        async def repeat(transaction: Transaction) -> None:
            if await transaction.exists(f"{backend}/state"):
                await transaction.write(f"{backend}/state", str(int(XenbusState.CLOSING)))

        async def closed() -> bool | None:
            state = await self._xenstore.read(f"{backend}/state")
            if state is None or parse_state(state) == XenbusState.CLOSED:
                return True
            if parse_state(state) != XenbusState.CLOSING:
                await self._xenstore.transact(
                    repeat
                )  # it has just connected, and written so over our request
            return None

        return await self._watch(backend, closed, seconds) is not None

    async def _remove(self, backend: str, frontend: str, *, wait: bool) -> None:
        """Removes the entries of both halves, the backend's once it has let go or has had its time."""
        await self._xenstore.remove(frontend)
        if wait and not await self._wait_closed(backend, LET_GO_SECONDS):
            log.warning("a backend does not let go of a device", device=backend, seconds=LET_GO_SECONDS)
        await self._xenstore.remove(backend)

    # ---- looking

    async def plugged(self, domid: int) -> list[Plugged]:
        """The devices of a domain that have entries."""
        found = []
        for kind in KINDS:
            entries = await self._xenstore.subtree(f"/local/domain/0/backend/{kind}/{domid}")
            for name in sorted(entries):
                if name.isascii() and name.isdigit():
                    online = entries.get(f"{name}/online") != "0"
                    found.append(Plugged(kind, int(name), online))
        return found

    async def frontends(self, domid: int, kind: str) -> list[Sxp]:
        """`[devid, [[key, value], ...]]` for each device: the frontend's entries, nested as they are."""
        entries = await self._xenstore.subtree(f"/local/domain/{domid}/device/{kind}")
        folders: dict[str, list[Any]] = {path.rpartition("/")[0]: [] for path in entries}
        folders |= {path: [] for path in entries if "/" not in path}
        for path in sorted(entries):
            parent, _, name = path.rpartition("/")
            folders[parent].append([name, folders.get(path, entries[path])])
        devices = [[int(name), below] for name, below in folders.get("", [])]
        devices.sort()
        return [*devices]

    async def _watch(self, path: str, look: Callable[[], Awaitable[T | None]], seconds: float) -> T | None:
        """What `look` finds, tried again at each change below `path`; None after `seconds`."""
        found = await look()
        if found is not None:
            return found
        changed = trio.Event()
        failure: Exception | None = None

        def wake() -> None:
            changed.set()

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                await nursery.start(self._xenstore.follow, path, wake)
                try:
                    while (found := await look()) is None:
                        await changed.wait()
                        changed = trio.Event()
                except Exception as error:  # raised again below: not as an exception group
                    failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return found


async def _for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Does `work` for all at the same time. Raises: what the first of those that failed raised."""
    failures: list[Exception] = []

    async def one(item: T) -> None:
        try:
            await work(item)
        except Exception as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(one, item)
    if failures:
        raise failures[0]


def _place(domid: int, device: Device) -> tuple[str, int, int]:
    kind, devid = key(device)
    return kind, domid, devid


def device_nodes(owner: Owner, devices: Iterable[Device]) -> Iterator[Node]:
    """The entries of both halves, parents first. The guest owns the frontend's and may read the backend's."""
    domid = owner.domid
    readable, owned = ("n0", f"r{domid}"), (f"n{domid}", "r0")
    made: set[str] = set()
    for device in devices:
        kind, devid = key(device)
        frontend, backend = frontend_path(domid, kind, devid), backend_path(0, kind, domid, devid)
        if kind not in made:
            made.add(kind)
            yield Node(frontend.rpartition("/")[0], "", readable)
            yield Node(backend.rpartition("/")[0], "", readable)
        yield Node(backend, "", readable)
        for name, value in (_backend_values(owner, device, frontend) | device.backend()).items():
            yield Node(f"{backend}/{name}", value)
        yield Node(frontend, "", owned)
        values = {"backend": backend, "backend-id": "0"} | device.frontend() | {"state": "1"}
        for name, value in values.items():
            yield Node(f"{frontend}/{name}", value)


def _backend_values(owner: Owner, device: Device, frontend: str) -> dict[str, str]:
    found = {
        "domain": owner.name,
        "frontend": frontend,
        "frontend-id": str(owner.domid),
        "online": "1",
        "state": "1",
    }
    if isinstance(device, Vif):
        found["vifname"] = f"vif{owner.domid}.{device.devid}"
    return found
