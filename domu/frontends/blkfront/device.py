"""A disk: its queues, and the pages on which data travels.

A call is cut into requests of at most `max_segments` pages. Each takes its pages from a pool, copies, goes
into the ring of the least busy queue, and waits; a task per queue takes the responses. Pages of the pool keep
their grants as long as the disk is open (the backend maps each once), or get one per request when grants are
not persistent.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from domu.faults import Faults, Node
from domu.frontends import xenbus
from domu.frontends.blkfront.config import Agreed, Geometry, Options, devid_of
from domu.frontends.blkfront.request import (
    ENTRY_BYTES,
    MAX_SEGMENTS,
    RESPONSE_BYTES,
    SECTOR,
    SEGMENTS_PER_PAGE,
    DiskError,
    Operation,
    Response,
    Segment,
    pack_direct,
    pack_discard,
    pack_indirect,
    pack_segments,
    unpack_response,
)
from domu.frontends.pool import Page, Pool
from domu.frontends.xenbus import DeviceGone
from hyper.guest.front import RequestRing
from hyper.guest.ports import Port
from hyper.guest.rings import RingError
from hyper.public.types import PAGE_SIZE
from hyper.public.xenbus import XenbusState

if TYPE_CHECKING:
    from domu.domain import Domain
    from domu.memory import Shared

Packer = Callable[[int], bytes]
"""Makes a raw request of its id."""

DRAIN_SECONDS = 5.0
"""How long a backend that closes may take for what is on the way."""


@asynccontextmanager
async def disk(
    domain: Domain, name: str | int, options: Options | None = None, handshake: Faults[Node] | None = None
) -> AsyncIterator[Disk]:
    """The disk of that name ("xvda") or number, connected; closed at the end of the block.

    `handshake` are faults of the nodes written on the way there.

    Raises: DeviceGone when there is none or the backend refuses it; OutOfFrames.
    """
    devid = devid_of(str(name))
    async with xenbus.device(domain.xs, "vbd", devid, handshake) as bus:
        await bus.wait_backend(XenbusState.INIT_WAIT)
        options = options or Options()
        agreed = Agreed.between(options, await bus.read_backend())
        pool = Pool(domain.memory, bus.backend_domid, options.buffer_pages, agreed.persistent)
        found = Disk(domain, bus, devid, agreed, pool)
        failure: BaseException | None = None
        try:
            await found._open()
            async with trio.open_nursery() as nursery:
                for queue in found.queues:
                    nursery.start_soon(queue.run)
                try:
                    await found._connect()
                    nursery.start_soon(found._follow)
                    yield found
                except BaseException as error:  # raised again below: not as an exception group
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                found._end("the disk is closed")
                with trio.move_on_after(xenbus.CLOSE_SECONDS):
                    await bus.close()
                await found._close()
        if failure is not None:
            raise failure


@dataclass(frozen=True)
class DiskStatistics:
    requests: int
    errors: int
    in_flight: int


class Disk:
    """Sectors are of 512 bytes and must be multiples of `geometry.sector_size`. Made by disk().

    Any number of tasks may use it. A cancelled call leaves its requests to the backend: their pages come back
    with the answer.
    """

    def __init__(self, domain: Domain, bus: xenbus.Device, devid: int, agreed: Agreed, pool: Pool) -> None:
        self.bus = bus
        self.devid = devid
        self.agreed = agreed
        self.geometry = Geometry(0, SECTOR, True, False, False, False, False, 0)
        """Changes when the disk is resized."""
        self.faults: Faults[bytes] = Faults()
        """Of the raw requests, as they go into the rings."""
        self.queues: list[Queue] = []
        self._domain = domain
        self._pool = pool
        self._gone = ""
        self._requests = self._errors = 0

    @property
    def sectors(self) -> int:
        return self.geometry.sectors

    async def read(self, sector: int, count: int) -> bytes:
        """`count` sectors from `sector` on.

        Raises: DiskError, DeviceGone; ValueError for part of a sector.
        """
        data = bytearray(count * SECTOR)
        await self._transfer(Operation.READ, sector, memoryview(data))
        return bytes(data)

    async def write(self, sector: int, data: bytes, barrier: bool = False) -> None:
        """Whole sectors. `barrier`: after all that was written before and before all that is written later.

        Raises: DiskError, DeviceGone; ValueError for part of a sector.
        """
        operation = Operation.WRITE_BARRIER if barrier else Operation.WRITE
        await self._transfer(operation, sector, memoryview(data))

    async def flush(self) -> None:
        """All that was answered before is on the disk after this.

        Raises: DiskError, DeviceGone.
        """
        await self.request(lambda req_id: pack_direct(Operation.FLUSH_DISKCACHE, self.handle, req_id, 0))

    async def discard(self, sector: int, count: int, secure: bool = False) -> None:
        """The disk need not keep these sectors.

        Raises: DiskError, DeviceGone.
        """
        await self.request(lambda req_id: pack_discard(self.handle, req_id, sector, count, secure), sector)

    @property
    def handle(self) -> int:
        """What stands in a request for the disk: the low 16 bits of its number."""
        return self.devid & 0xFFFF

    def statistics(self) -> DiskStatistics:
        return DiskStatistics(self._requests, self._errors, sum(len(queue.waiting) for queue in self.queues))

    async def request(self, raw: Packer, sector: int = 0) -> None:
        """Sends one raw request, made by `raw` for its id, and waits for its answer.

        Raises: DiskError, DeviceGone.
        """
        await self._finished(await self._send(raw, Answer()), sector)

    # --- data

    async def _transfer(self, operation: Operation, sector: int, data: memoryview) -> None:
        if len(data) % self.geometry.sector_size or sector * SECTOR % self.geometry.sector_size or sector < 0:
            raise ValueError(f"sector {sector}, {len(data)} bytes: sectors have {self.geometry.sector_size}")
        most = self.agreed.max_segments * PAGE_SIZE
        if len(data) <= most:
            if data:
                await self._transfer_one(operation, sector, data)
            return
        errors: list[Exception] = []

        async def part(at: int) -> None:
            try:
                await self._transfer_one(operation, sector + at // SECTOR, data[at : at + most])
            except (DiskError, DeviceGone) as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for at in range(0, len(data), most):
                nursery.start_soon(part, at)
        if errors:
            raise errors[0]

    async def _transfer_one(self, operation: Operation, sector: int, data: memoryview) -> None:
        self._check()
        reads = operation == Operation.READ
        pieces = [data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE)]
        nr_tables = math.ceil(len(pieces) / SEGMENTS_PER_PAGE) if len(pieces) > MAX_SEGMENTS else 0
        answer = Answer(await self._pool.take(len(pieces) + nr_tables, readonly=not reads))
        try:
            if not reads:
                for page, piece in zip(answer.pages, pieces):
                    page.view[: len(piece)] = piece
            segments = [
                Segment(page.gref, 0, len(piece) // SECTOR - 1) for page, piece in zip(answer.pages, pieces)
            ]
            tables = answer.pages[len(pieces) :]
            write_tables(tables, segments)

            def raw(req_id: int) -> bytes:
                if not tables:
                    return pack_direct(operation, self.handle, req_id, sector, segments)
                grefs = [table.gref for table in tables]
                return pack_indirect(operation, self.handle, req_id, sector, len(segments), grefs)

            await self._finished(await self._send(raw, answer), sector)
            if reads:
                for page, piece in zip(answer.pages, pieces):
                    piece[:] = page.view[: len(piece)]
        finally:
            if answer.is_over:
                self._pool.give_back(answer.pages)
            else:
                answer.abandoned = True

    async def _send(self, raw: Packer, answer: Answer) -> Answer:
        self._check()
        queue = min(self.queues, key=lambda queue: len(queue.waiting))
        await queue.send(raw, answer)
        self._requests += 1
        return answer

    async def _finished(self, answer: Answer, sector: int) -> None:
        await answer.arrived.wait()
        if answer.response is None:
            raise DeviceGone(f"{self.bus.path}: {self._gone}")
        if answer.response.status:
            self._errors += 1
            raise DiskError(answer.operation, sector, answer.response.status)

    def _check(self) -> None:
        if self._gone:
            raise DeviceGone(f"{self.bus.path}: {self._gone}")

    # --- life

    async def _open(self) -> None:
        for _ in range(self.agreed.queues):
            port = await self._domain.hyp.alloc_port(self.bus.backend_domid)
            self.queues.append(Queue(self, self._domain, port))

    async def _connect(self) -> None:
        """Raises: DeviceGone."""
        nodes: dict[str, object] = {"protocol": "x86_64-abi"}
        nodes["feature-persistent"] = int(self.agreed.persistent)
        if self.agreed.ring_page_order:
            nodes["ring-page-order"] = self.agreed.ring_page_order
        if len(self.queues) > 1:
            nodes["multi-queue-num-queues"] = len(self.queues)
        for number, queue in enumerate(self.queues):
            prefix = f"queue-{number}/" if len(self.queues) > 1 else ""
            nodes |= {prefix + name: value for name, value in queue.nodes().items()}
        await self.bus.publish(nodes, XenbusState.INITIALISED)
        await self.bus.wait_backend(XenbusState.CONNECTED)
        await self._read_geometry()
        await self.bus.set_state(XenbusState.CONNECTED)

    async def _read_geometry(self) -> None:
        try:
            self.geometry = Geometry.read(await self.bus.read_backend())
        except ValueError as error:
            raise DeviceGone(f"{self.bus.path}: {error}") from error

    async def _follow(self) -> None:
        """New sizes, and the end that the backend wants: what is on the way is answered first."""
        while await self.bus.wait_change() == XenbusState.CONNECTED:
            await self._read_geometry()
        await self.bus.wait_over()
        self._gone = "the backend closes it"
        with trio.move_on_after(DRAIN_SECONDS):
            for queue in self.queues:
                await queue.wait_idle()
        self._end(self._gone)
        await self.bus.close()

    def _end(self, reason: str) -> None:
        """Nothing is answered any more."""
        self._gone = self._gone or reason
        for queue in self.queues:
            queue.end()

    async def _close(self) -> None:
        for queue in self.queues:
            await queue.close()
        self._pool.close()


def write_tables(tables: list[Page], segments: list[Segment]) -> None:
    """Fills the pages of an indirect request, which name its data."""
    for number, table in enumerate(tables):
        first = number * SEGMENTS_PER_PAGE
        packed = pack_segments(segments[first : first + SEGMENTS_PER_PAGE])
        table.view[: len(packed)] = packed


class Answer:
    """Room for the response to one request, and the pages it is about."""

    def __init__(self, pages: list[Page] | None = None) -> None:
        self.pages = pages or []
        self.arrived = trio.Event()
        self.response: Response | None = None
        self.operation = Operation.READ
        self.sent = False
        self.abandoned = False
        """Nobody waits any more: the pages are given back when the response arrives."""

    @property
    def is_over(self) -> bool:
        """The backend does not use the pages."""
        return not self.sent or self.response is not None


class Queue:
    """One ring, its port, and who waits for which response."""

    def __init__(self, disk: Disk, domain: Domain, port: Port) -> None:
        self.port = port
        self.waiting: dict[int, Answer] = {}
        self.nr_strays = 0
        """Responses to what nobody has asked, or not any more."""
        self._disk = disk
        self._shared: Shared = domain.memory.share(1 << disk.agreed.ring_page_order, disk.bus.backend_domid)
        self.ring = RequestRing(self._shared.view, ENTRY_BYTES, RESPONSE_BYTES)
        self._room = trio.lowlevel.ParkingLot()

    def nodes(self) -> dict[str, object]:
        """What the backend must know, below the queue's folder."""
        grefs = self._shared.grefs
        names = [f"ring-ref{number}" for number in range(len(grefs))] if len(grefs) > 1 else ["ring-ref"]
        return {"event-channel": self.port.number, **dict(zip(names, grefs))}

    async def send(self, raw: Packer, answer: Answer) -> None:
        """Waits for room in the ring only.

        Raises: DeviceGone.
        """
        while not self.ring.room:
            await self._room.park()
            self._disk._check()
        req_id = self.ring.next_index
        request = raw(req_id)
        answer.operation = Operation(request[1] if request[0] == Operation.INDIRECT else request[0])
        self.waiting[req_id] = answer
        answer.sent = True
        for item in self._disk.faults.apply(request):
            if self.ring.room:
                self.ring.put(item)
        if self.ring.push():
            self.port.notify()

    async def run(self) -> None:
        """Takes responses until cancelled. A ring that makes no sense ends the disk."""
        with suppress(trio.ClosedResourceError):
            while True:
                try:
                    for raw in self.ring.take():
                        self._arrived(unpack_response(raw))
                except RingError as error:
                    self._disk._end(str(error))
                    return
                if not self.ring.sleep():
                    await self.port.wait()

    async def wait_idle(self) -> None:
        """Until everything is answered."""
        while self.waiting:
            await self._room.park()

    def end(self) -> None:
        """Who waits is told that the disk is gone."""
        for answer in self.waiting.values():
            answer.arrived.set()
        self.waiting.clear()
        self._room.unpark_all()

    async def close(self) -> None:
        await self.port.close()
        self._shared.close()

    def _arrived(self, response: Response) -> None:
        answer = self.waiting.pop(response.req_id, None)
        if answer is None:
            self.nr_strays += 1
        else:
            answer.response = response
            answer.arrived.set()
            if answer.abandoned:
                self._disk._pool.give_back(answer.pages)
        self._room.unpark_all()
