"""A network card: its queues, each with a ring out and a ring in.

Out: a packet is copied to pages of the queue, one slot per page, behind the first one an extra slot when it
is to be segmented; send() returns when it lies in the ring. In: all pages are offered to the backend; what it
fills is copied out and the page is offered again. A reader that is slow leaves packets in the ring, and then
the backend drops them.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import trio

from domu.faults import Faults, Node
from domu.frontends import xenbus
from domu.frontends.netfront.config import Agreed, Options, nodes, parse_mac
from domu.frontends.netfront.request import (
    EXTRA_MORE,
    MAX_PACKET,
    MAX_SLOTS,
    RX_ENTRY_BYTES,
    RX_RESPONSE_BYTES,
    TX_ENTRY_BYTES,
    TX_RESPONSE_BYTES,
    BadPacket,
    ExtraType,
    Flag,
    Gso,
    Packet,
    RxSlot,
    TxSlot,
    TxStatus,
    pack_extra_gso,
    pack_rx_request,
    received,
    tx_flags,
    unpack_extra_gso,
    unpack_rx_response,
    unpack_tx_response,
)
from domu.frontends.pool import Page, Pool
from domu.frontends.xenbus import DeviceGone
from hyper.guest.front import RequestRing
from hyper.guest.ports import Port, SharedWait
from hyper.guest.rings import RingError
from hyper.public.types import PAGE_SIZE
from hyper.public.xenbus import XenbusState

if TYPE_CHECKING:
    from domu.domain import Domain

_WAITING_PACKETS = 256


@asynccontextmanager
async def nic(
    domain: Domain, number: int = 0, options: Options | None = None, handshake: Faults[Node] | None = None
) -> AsyncIterator[Nic]:
    """Network card `number` of the domain, connected; closed at the end of the block.

    `handshake` are faults of the nodes written on the way there.

    Raises: DeviceGone when there is none or the backend refuses it; OutOfFrames.
    """
    options = options or Options()
    async with xenbus.device(domain.xs, "vif", number, handshake) as bus:
        await bus.wait_backend(XenbusState.INIT_WAIT)
        agreed = Agreed.between(options, await bus.read_backend())
        found = Nic(domain, bus, options, agreed)
        failure: BaseException | None = None
        try:
            await found._open(parse_mac(await bus.read("mac") or ""))
            async with trio.open_nursery() as nursery:
                for queue in found.queues:
                    nursery.start_soon(queue.run_tx)
                    nursery.start_soon(queue.run_rx)
                try:
                    await found._connect()
                    nursery.start_soon(found._follow)
                    yield found
                except BaseException as error:  # raised again below: not as an exception group
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                found._end("the network card is closed")
                with trio.move_on_after(xenbus.CLOSE_SECONDS):
                    await bus.close()
                await found._close()
        if failure is not None:
            raise failure


@dataclass(frozen=True)
class NicStatistics:
    tx_packets: int
    tx_errors: int
    """Slots the backend has answered with an error or dropped."""
    rx_packets: int
    rx_errors: int


class Nic:
    """Made by nic(). Any number of tasks may send and receive."""

    def __init__(self, domain: Domain, bus: xenbus.Device, options: Options, agreed: Agreed) -> None:
        self.bus = bus
        self.options = options
        self.agreed = agreed
        self.mac = bytes(6)
        self.faults: Faults[bytes] = Faults()
        """Of the raw tx slots, as they go into the rings."""
        self.rx_faults: Faults[bytes] = Faults()
        """Of the raw rx requests."""
        self.queues: list[Queue] = []
        self._domain = domain
        self._gone = ""
        self._packets, self._incoming = trio.open_memory_channel[Packet](_WAITING_PACKETS)

    async def send(self, packet: Packet | bytes) -> None:
        """An Ethernet frame. Returns when it lies in the ring.

        Raises: DeviceGone; ValueError for one that is empty or needs what was not agreed.
        """
        if not isinstance(packet, Packet):
            packet = Packet(packet)
        most = MAX_PACKET if self.agreed.scatter_gather else PAGE_SIZE
        if not 0 < len(packet.data) <= most or (packet.gso and not self.agreed.gso):
            raise ValueError(f"a packet of {len(packet.data)} bytes, gso={packet.gso}: {self.agreed}")
        flow = zlib.crc32(packet.data[:38]) if len(self.queues) > 1 else 0
        await self.queues[flow % len(self.queues)].send(packet)

    async def receive(self) -> Packet:
        """The next packet.

        Raises: DeviceGone.
        """
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel:
            raise DeviceGone(f"{self.bus.path}: {self._gone}") from None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Packet:
        try:
            return await self.receive()
        except DeviceGone:
            raise StopAsyncIteration from None

    def statistics(self) -> NicStatistics:
        queues = self.queues
        return NicStatistics(
            sum(queue.tx_packets for queue in queues), sum(queue.tx_errors for queue in queues),
            sum(queue.rx_packets for queue in queues), sum(queue.rx_errors for queue in queues),
        )  # fmt: skip

    def _check(self) -> None:
        if self._gone:
            raise DeviceGone(f"{self.bus.path}: {self._gone}")

    async def _open(self, mac: bytes) -> None:
        self.mac = mac
        for _ in range(self.agreed.queues):
            port = await self._domain.hyp.alloc_port(self.bus.backend_domid)
            rx_port = port
            if self.agreed.split_event_channels:
                rx_port = await self._domain.hyp.alloc_port(self.bus.backend_domid)
            self.queues.append(Queue(self, self._domain, port, rx_port))

    async def _connect(self) -> None:
        """Raises: DeviceGone."""
        values = nodes(self.options)
        if len(self.queues) > 1:
            values["multi-queue-num-queues"] = len(self.queues)
        for number, queue in enumerate(self.queues):
            prefix = f"queue-{number}/" if len(self.queues) > 1 else ""
            values |= {prefix + name: value for name, value in queue.nodes().items()}
        for queue in self.queues:
            queue.offer()
        await self.bus.publish(values, XenbusState.CONNECTED)
        await self.bus.wait_backend(XenbusState.CONNECTED)

    async def _follow(self) -> None:
        await self.bus.wait_over()
        self._end("the backend closes it")
        await self.bus.close()

    def _end(self, reason: str) -> None:
        self._gone = self._gone or reason
        self._packets.close()
        for queue in self.queues:
            queue.wake()

    async def _close(self) -> None:
        for queue in self.queues:
            await queue.close()


class Queue:
    """One pair of rings."""

    def __init__(self, nic: Nic, domain: Domain, tx_port: Port, rx_port: Port) -> None:
        domid = nic.bus.backend_domid
        self.tx_packets = self.tx_errors = self.rx_packets = self.rx_errors = 0
        self._nic = nic
        self._ports = tx_port, rx_port
        self._tx_wait = SharedWait(tx_port)
        self._rx_wait = self._tx_wait if rx_port is tx_port else SharedWait(rx_port)
        self._shared = domain.memory.share(2, domid)
        self.tx = RequestRing(self._shared.page(0), TX_ENTRY_BYTES, TX_RESPONSE_BYTES)
        self.rx = RequestRing(self._shared.page(1), RX_ENTRY_BYTES, RX_RESPONSE_BYTES)
        self._tx_pool = Pool(domain.memory, domid, nic.options.tx_pages, readonly=True)
        self._tx_pages: dict[int, Page] = {}
        self._tx_id = 0
        self._tx_turn = trio.Lock()
        self._room = trio.lowlevel.ParkingLot()
        self._rx_pool = Pool(domain.memory, domid, nic.options.rx_pages)
        self._rx_pages: dict[int, Page] = {}
        self._rx_index = 0
        self._parts = _Parts()

    def nodes(self) -> dict[str, object]:
        """What the backend must know, below the queue's folder."""
        tx, rx = self._ports
        ports: dict[str, object] = {"event-channel": tx.number}
        if rx is not tx:
            ports = {"event-channel-tx": tx.number, "event-channel-rx": rx.number}
        return {"tx-ring-ref": self._shared.grefs[0], "rx-ring-ref": self._shared.grefs[1], **ports}

    # --- out

    async def send(self, packet: Packet) -> None:
        """Raises: DeviceGone, ValueError."""
        pieces = [packet.data[at : at + PAGE_SIZE] for at in range(0, len(packet.data), PAGE_SIZE)]
        if len(pieces) > MAX_SLOTS:
            raise ValueError(f"a packet of {len(pieces)} pages, backends take {MAX_SLOTS}")
        async with self._tx_turn:
            pages = await self._tx_pool.take(len(pieces))
            try:
                while self.tx.room < len(pieces) + bool(packet.gso):
                    self._nic._check()
                    await self._room.park()
                self._nic._check()
            except BaseException:
                self._tx_pool.give_back(pages)
                raise
            for raw in self._slots(packet, pieces, pages):
                for item in self._nic.faults.apply(raw):
                    if self.tx.room:
                        self.tx.put(item)
        self.tx_packets += 1
        if self.tx.push():
            self._ports[0].notify()

    def _slots(self, packet: Packet, pieces: list[bytes], pages: list[Page]) -> list[bytes]:
        raws = []
        for number, (piece, page) in enumerate(zip(pieces, pages)):
            page.view[: len(piece)] = piece
            flags = Flag.TX_MORE_DATA if number + 1 < len(pieces) else 0
            size = len(piece)
            if number == 0:
                size = len(packet.data)
                flags |= tx_flags(packet) | (Flag.TX_EXTRA_INFO if packet.gso else 0)
            self._tx_id = slot_id = (self._tx_id + 1) & 0xFFFF
            self._tx_pages[slot_id] = page
            raws.append(TxSlot(page.gref, 0, int(flags), slot_id, size).pack())
            if number == 0 and packet.gso:
                raws.append(pack_extra_gso(packet.gso))
        return raws

    async def run_tx(self) -> None:
        """Takes responses until cancelled. A ring that makes no sense ends the card."""
        with suppress(trio.ClosedResourceError):
            while True:
                try:
                    for raw in self.tx.take():
                        self._tx_done(*unpack_tx_response(raw))
                except RingError as error:
                    self._nic._end(str(error))
                    return
                if not self.tx.sleep():
                    await self._tx_wait.wait()

    def _tx_done(self, slot_id: int, status: int) -> None:
        if status != TxStatus.NULL:  # an extra, whose id is none
            self.tx_errors += status != TxStatus.OKAY
            if page := self._tx_pages.pop(slot_id, None):
                self._tx_pool.give_back([page])
        self._room.unpark_all()

    # --- in

    def offer(self) -> None:
        """Offers every free page."""
        while self._rx_pool.nr_free and self.rx.room:
            self._offer(self._rx_pool.take_nowait())
        if self.rx.push():
            self._ports[1].notify()

    def _offer(self, page: Page) -> None:
        slot_id = self.rx.next_index % self.rx.nr_entries
        self._rx_pages[slot_id] = page
        for item in self._nic.rx_faults.apply(pack_rx_request(slot_id, page.gref)):
            if self.rx.room:
                self.rx.put(item)

    async def run_rx(self) -> None:
        """The same for what comes in."""
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            while True:
                try:
                    for raw in self.rx.take():
                        if packet := self._rx_one(raw):
                            await self._nic._packets.send(packet)
                except RingError as error:
                    self._nic._end(str(error))
                    return
                self.offer()
                if not self.rx.sleep():
                    await self._rx_wait.wait()

    def _rx_one(self, raw: bytes) -> Packet | None:
        """Takes one response: the packet it completes, if it does. It answers the request of its index."""
        page = self._rx_pages.pop(self._rx_index % self.rx.nr_entries, None)
        self._rx_index = (self._rx_index + 1) & 0xFFFFFFFF
        try:
            packet = self._parts.add(raw, page.view) if page else None
        except BadPacket:
            self.rx_errors += 1
            packet = None
        if page:
            self._rx_pool.give_back([page])
        self.rx_packets += packet is not None
        return packet

    # --- life

    def wake(self) -> None:
        """Whoever waits for room looks again."""
        self._room.unpark_all()

    async def close(self) -> None:
        for port in set(self._ports):
            await port.close()
        self._shared.close()
        self._tx_pool.close()
        self._rx_pool.close()


class _Parts:
    """Puts a packet together from its slots."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._data: list[bytes] = []
        self._flags: int | None = None
        self._gso: Gso | None = None
        self._extra = False
        self._more = False
        self._bad = False

    def add(self, raw: bytes, page: memoryview) -> Packet | None:
        """The packet that this slot completes.

        Raises: BadPacket at the last slot of one with an error in it.
        """
        if self._extra:
            kind, flags, gso = unpack_extra_gso(raw)
            self._extra = bool(flags & EXTRA_MORE)
            if kind == ExtraType.GSO:
                self._gso = gso
        else:
            self._add_data(unpack_rx_response(raw), page)
        if self._more or self._extra:
            return None
        packet = received(self._data, self._flags or 0, self._gso)
        bad = self._bad or len(packet.data) > MAX_PACKET
        self._clear()
        if bad:
            raise BadPacket
        return packet

    def _add_data(self, slot: RxSlot, page: memoryview) -> None:
        if self._flags is None:
            self._flags = slot.flags
            self._extra = bool(slot.flags & Flag.RX_EXTRA_INFO)
        self._more = bool(slot.flags & Flag.RX_MORE_DATA)
        if slot.status <= 0 or slot.offset + slot.status > PAGE_SIZE:
            self._bad = True
        else:
            self._data.append(bytes(page[slot.offset : slot.offset + slot.status]))
