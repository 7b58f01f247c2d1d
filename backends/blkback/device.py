"""One block device: its disk, and its rings while a frontend is connected.

`run` is a device's whole life (bus.py calls it). A connection maps the rings, binds the ports, makes or finds
the journals, and starts the queues. Queues may be made anew over the same rings and journals: so a medium is
changed, and so a killed daemon's successor goes on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from backends.blkback import qsd
from backends.blkback.backing import Backing, open_backing
from backends.blkback.config import (
    MAX_PERSISTENT,
    PERSISTENT_PER_PAGE,
    DiskConfig,
    FrontendConfig,
    QueueConfig,
    backend_nodes,
)
from backends.blkback.datapath import (
    Engine,
    Queue,
    QueueParameters,
    Statistics,
    journal_bytes,
    journal_unflushed,
)
from backends.blkback.journals import Journals, journal_name
from backends.blkback.locks import ImageLocked
from backends.blkback.qsd import Place
from backends.bus import DeviceError, Link, run_connections
from hyper.guest import Mapping, Port
from hyper.public.xenbus import XenbusState

STATISTICS_SECONDS = 5.0
_TRY_AGAIN_SECONDS = 1.0
_SHOWN = ("rd_req", "wr_req", "oo_req", "f_req", "ds_req", "rd_sect", "wr_sect")


@dataclass
class Environment:
    """What the devices of one daemon share."""

    host: str
    engine: Engine
    journals: Journals
    folder: Path
    """For the storage daemons."""
    hyper_lock: Path
    max_queues: int
    ending: bool = False
    """The daemon ends and will have a successor: devices stay connected in XenStore, journals stay."""
    devices: dict[tuple[int, int], BlockDevice] = field(default_factory=dict)

    def place(self, domid: int, devid: int) -> Place:
        """Of the device's storage daemon."""
        return Place(self.folder / f"{domid}.{devid}", self.hyper_lock)

    async def sweep(self, present: set[tuple[int, int]]) -> None:
        """Ends and removes what a predecessor has left of devices that are not there any more."""
        await self.journals.sweep(present)
        for folder in self.folder.glob("*.*"):
            domid, _, devid = folder.name.partition(".")
            if domid.isdigit() and devid.isdigit() and (int(domid), int(devid)) not in present:
                await qsd.end(Place(folder, self.hyper_lock))
                shutil.rmtree(folder, ignore_errors=True)

    def shares(self, path: str) -> BlockDevice | None:
        """A device of ours that has the file open."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        for device in self.devices.values():
            if device.backing and device.backing.identity == (status.st_dev, status.st_ino):
                return device
        return None

    def holder(self, path: str) -> str:
        """The same in words."""
        device = self.shares(path)
        return f" (domain {device.link.frontend_domid} has it as {device.name})" if device else ""


@dataclass(frozen=True)
class Ring:
    """What one queue stands on, whatever disk is behind it."""

    pages: Sequence[Mapping]
    port: Port
    journal_fd: int


class BlockDevice:
    """One device from its folder's appearing to its end."""

    def __init__(self, env: Environment, link: Link) -> None:
        self.link = link
        self.backing: Backing | None = None
        self.name = str(link.devid)
        self._env = env
        self._disk: DiskConfig | None = None
        self._queues: list[Queue] = []
        self._gone = Statistics()
        """Of queues that are no more."""
        self._nr_sectors = 0
        self._medium_changed = trio.Event()
        self._resize_done = ""

    async def run(self) -> None:
        """Raises: DeviceError and others; then the device is closed with their text."""
        key = (int(self.link.frontend_domid), self.link.devid)
        self._env.devices[key] = self
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._follow_requests, stack)
                    nursery.start_soon(self._publish_statistics)
                    await run_connections(self.link, self._connection)
                    nursery.cancel_scope.cancel()
        finally:
            if self._env.devices.get(key) is self:
                del self._env.devices[key]
            if not self._env.ending:
                with trio.CancelScope(shield=True):
                    for index in range(self._env.max_queues):
                        await self._env.journals.remove(journal_name(*key, index))

    # --- the disk

    async def _open(self, stack: AsyncExitStack) -> None:
        """Opens what the nodes name and tells both sides of it. Raises: DeviceError."""
        nodes = await self.link.read_config()
        self.name = nodes.get("dev", self.name)
        self._disk = disk = DiskConfig.from_nodes(nodes)
        self._resize_done = nodes.get("resize-done", "")
        unique = f"{self._env.host}/{self.link.frontend_domid}/{self.link.devid}"
        if self.link.resuming and self._env.shares(disk.target):
            disk = replace(disk, exclusive=False)  # it was allowed with "w!"; who is first now is chance
        try:
            opening = open_backing(
                disk,
                unique,
                self._env.place(self.link.frontend_domid, self.link.devid),
                resuming=self.link.resuming,
                stays=lambda: self._env.ending,
            )
            self.backing = await stack.enter_async_context(opening)
        except ImageLocked as error:
            raise DeviceError(f"{disk.target}: {error}{self._env.holder(disk.target)}") from None
        self._nr_sectors = await self.backing.nr_sectors()
        published = backend_nodes(
            nr_sectors=self._nr_sectors,
            sector_bytes=self.backing.sector_bytes,
            physical_bytes=self.backing.physical_bytes,
            read_only=self.backing.read_only,
            cdrom=disk.cdrom,
            removable=nodes.get("removable", "0") == "1",
            discard_bytes=self.backing.discard_bytes,
            max_queues=self._env.max_queues,
        )
        await self.link.hotplug_connected({**published, "physical-device-path": self.backing.path})
        self.link.log.info("disk open", path=disk.target, sectors=self._nr_sectors, format=disk.format)

    async def _follow_requests(self, stack: AsyncExitStack) -> None:
        """What xend asks for while the device is there: another medium, another size."""
        while True:
            await self.link.wait_changed()
            nodes = await self.link.read_config()
            if not nodes:
                continue
            if self._disk and (nodes.get("type"), nodes.get("params")) and self._other_medium(nodes):
                await self._change_medium(stack, nodes)
            request = nodes.get("resize-request", "")
            if request != self._resize_done:
                self._resize_done = request
                await self._resize(request)

    def _other_medium(self, nodes: dict[str, str]) -> bool:
        try:
            return DiskConfig.from_nodes(nodes) != self._disk
        except DeviceError:
            return True

    async def _change_medium(self, stack: AsyncExitStack, nodes: dict[str, str]) -> None:
        """Only removable ones change. What can't be opened leaves the old one in."""
        try:
            if not DiskConfig.from_nodes(nodes).cdrom:
                raise DeviceError("only a removable disk can be exchanged")
            fresh = AsyncExitStack()
            await self._open(fresh)
        except DeviceError as error:
            await self.link.publish({"error": error})
            return
        stack.push_async_exit(fresh)
        self._medium_changed.set()

    async def _resize(self, request: str) -> None:
        assert self.backing
        try:
            self._nr_sectors = await self.backing.nr_sectors()
        except (OSError, DeviceError) as error:
            await self.link.publish({"resize-error": error})
            return
        for queue in self._queues:
            queue.resize(self._nr_sectors)
        nodes: dict[str, object] = {"sectors": self._nr_sectors, "resize-done": request}
        if self.link.state == XenbusState.CONNECTED:
            nodes["state"] = int(XenbusState.CONNECTED)  # written again: that is what a frontend watches
        await self.link.publish(nodes)

    # --- a connection

    async def _connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        link = self.link
        frontend = FrontendConfig.from_nodes(await link.read_frontend(), self._env.max_queues)
        await link.hyp.map_bank(link.frontend_domid)
        async with AsyncExitStack() as stack:
            rings = [
                await stack.enter_async_context(self._ring(index, queue, frontend.protocol))
                for index, queue in enumerate(frontend.queues)
            ]
            resuming = link.resuming
            while True:
                self._medium_changed = trio.Event()
                async with self._serving(frontend, rings, resuming):
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    await self._watch()
                resuming = True

    @asynccontextmanager
    async def _ring(self, index: int, queue: QueueConfig, protocol: int) -> AsyncIterator[Ring]:
        link = self.link
        async with AsyncExitStack() as stack:
            pages = []
            for gref in queue.ring_refs:
                mapping = await link.hyp.map_grant(link.frontend_domid, gref)
                pages.append(await stack.enter_async_context(mapping))
            port = await stack.enter_async_context(await link.bind_port(queue.event_channel))
            name = journal_name(link.frontend_domid, link.devid, index)
            nbytes = journal_bytes(len(pages), protocol)
            if link.resuming:
                fd = await self._env.journals.find(name, nbytes)
                if fd is None:
                    raise DeviceError(f"queue {index}: nothing is known of what was under way")
                if self.backing and self.backing.is_successor and journal_unflushed(fd):
                    self._refuse_to_guess(journal_unflushed(fd))
            else:
                fd = await self._env.journals.make(name, nbytes)
            stack.callback(os.close, fd)
            yield Ring(pages, port, fd)

    @asynccontextmanager
    async def _serving(
        self, frontend: FrontendConfig, rings: Sequence[Ring], resuming: bool
    ) -> AsyncIterator[None]:
        """The queues, running."""
        try:
            for ring in rings:
                self._queues.append(Queue(self._env.engine, await self._parameters(frontend, ring, resuming)))
            for queue in self._queues:
                queue.start()
            yield
        finally:
            for queue in self._queues:
                closing = not self._env.ending and not self._medium_changed.is_set()
                await queue.stop(closing=closing)
                self._gone += queue.statistics_at_end
            self._queues = []

    async def _parameters(self, frontend: FrontendConfig, ring: Ring, resuming: bool) -> QueueParameters:
        assert self.backing
        persistent = min(MAX_PERSISTENT, PERSISTENT_PER_PAGE * len(ring.pages))
        return QueueParameters(
            domid=self.link.frontend_domid,
            ring_mfns=[page.mfn for page in ring.pages],
            protocol=frontend.protocol,
            max_persistent=persistent if frontend.persistent else 0,
            upcall_fd=ring.port.upcall_fd,
            doorbell_fd=ring.port.doorbell_fd,
            journal_fd=ring.journal_fd,
            resuming=resuming,
            kind=self.backing.kind,
            file=await self.backing.queue_fd(),
            nr_sectors=self._nr_sectors,
            sector_bytes=self.backing.sector_bytes,
            read_only=self.backing.read_only,
            discard=self.backing.discard_bytes > 0,
        )

    async def _watch(self) -> None:
        """Until the medium is changed. Raises: DeviceError when the frontend, or the disk, is beyond help."""
        async with trio.open_nursery() as nursery:
            restarting = trio.Lock()
            for queue in self._queues:
                nursery.start_soon(self._watch_queue, queue, restarting)
            await self._medium_changed.wait()
            nursery.cancel_scope.cancel()

    async def _watch_queue(self, queue: Queue, restarting: trio.Lock) -> None:
        while True:
            state = await queue.wait_state()
            if state.fault:
                raise DeviceError(state.fault)
            if state.lost:
                await self._bring_back(queue, restarting)

    async def _bring_back(self, queue: Queue, restarting: trio.Lock) -> None:
        """The disk's server is gone: another one, and a new socket for each queue that has lost its own."""
        assert self.backing
        async with restarting:
            if not queue.state().lost:
                return
            self.link.log.warning("the disk's server is gone; another is started", path=self.backing.path)
            self._refuse_to_guess(sum(each.statistics().unflushed for each in self._queues))
            await self.backing.restart()
            for each in self._queues:
                each.replace(await self.backing.queue_fd())

    def _refuse_to_guess(self, unflushed: int) -> None:
        """Raises: DeviceError when answered writes may be lost: the guest must not go on as if they were
        there.
        """
        if unflushed and self.backing and self.backing.caches_tables:
            text = f"{self.backing.path}: its storage daemon died with {unflushed} writes not flushed"
            raise DeviceError(text + "; the image may lack them")

    # --- statistics

    def statistics(self) -> Statistics:
        """Since the device appeared."""
        return sum((queue.statistics() for queue in self._queues), self._gone)

    async def _publish_statistics(self) -> None:
        last: Statistics | None = None
        while True:
            now = self.statistics()
            if now != last:
                await self.link.publish({f"statistics/{name}": getattr(now, name) for name in _SHOWN})
            last = now
            await trio.sleep(STATISTICS_SECONDS)
