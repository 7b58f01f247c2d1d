"""Our netfront against a backend played in Python, with the protocol's layout written out a second time."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from domu.faults import drop
from domu.frontends.netfront import Gso, Nic, Options, Packet
from domu.frontends.netfront.config import parse_mac
from domu.frontends.xenbus import DeviceGone
from tests.paper_domain import DOMID, PaperHost, paper_host

OFFERS = {
    "feature-sg": "1", "feature-gso-tcpv4": "1", "feature-gso-tcpv6": "1", "multi-queue-max-queues": "4",
    "feature-split-event-channels": "1", "feature-rx-copy": "1",
}  # fmt: skip
MAC = "00:16:3e:01:02:03"


class Ring:
    """A ring from the backend's side."""

    def __init__(self, page: memoryview, entry: int) -> None:
        self.page = page
        self.entry = entry
        self.entries = 1 << ((4096 - 64) // entry).bit_length() - 1
        self.cons = self.prod = 0

    def requests(self, most: int = 1 << 30) -> list[bytes]:
        prod = struct.unpack_from("<I", self.page, 0)[0]
        found = []
        while self.cons != prod and len(found) < most:
            at = 64 + self.entry * (self.cons % self.entries)
            found.append(bytes(self.page[at : at + self.entry]))
            self.cons += 1
        struct.pack_into("<I", self.page, 4, self.cons + 1)
        return found

    def respond(self, data: bytes) -> None:
        at = 64 + self.entry * (self.prod % self.entries)
        self.page[at : at + len(data)] = data
        self.prod += 1
        struct.pack_into("<I", self.page, 8, self.prod)


class PaperNetback:
    """Keeps what the guest sends (`sent`: slots and their bytes); `deliver` sends it something."""

    def __init__(self, host: PaperHost, folder: str) -> None:
        self.host = host
        self.folder = folder
        self.front = f"/local/domain/{DOMID}/device/vif/0"
        self.sent: list[list[tuple[bytes, bytes]]] = []
        self.tx_status = 0
        self.rx: list[tuple[Ring, Any]] = []
        self.connected = trio.Event()

    async def run(self) -> None:
        dom0 = self.host.dom0
        await dom0.write(f"{self.folder}/state", "2")
        async with dom0.watch(f"{self.front}/state") as changes, trio.open_nursery() as nursery:
            async for _ in changes:
                state = await dom0.read_if_exists(f"{self.front}/state")
                if state == "4" and not self.connected.is_set():
                    await self.connect(nursery)
                    await dom0.write(f"{self.folder}/state", "4")
                    self.connected.set()
                if state in ("5", "6"):
                    break
            nursery.cancel_scope.cancel()
        await dom0.write(f"{self.folder}/state", "6")

    async def connect(self, nursery: trio.Nursery) -> None:
        async def read(name: str) -> int:
            return int(await self.host.dom0.read_if_exists(f"{self.front}/{name}") or -1)

        queues = await read("multi-queue-num-queues")
        for number in range(max(1, queues)):
            prefix = f"queue-{number}/" if queues > 1 else ""
            tx = Ring(self.host.frame(await read(prefix + "tx-ring-ref")), 12)
            rx = Ring(self.host.frame(await read(prefix + "rx-ring-ref")), 8)
            if (shared := await read(prefix + "event-channel")) >= 0:
                port = rx_port = self.host.bind(shared)
            else:
                port = self.host.bind(await read(prefix + "event-channel-tx"))
                rx_port = self.host.bind(await read(prefix + "event-channel-rx"))
            self.rx.append((rx, rx_port))
            nursery.start_soon(self.serve_tx, tx, port)

    async def serve_tx(self, ring: Ring, port: Any) -> None:
        packet: list[tuple[bytes, bytes]] = []
        extra = False
        while True:
            for raw in ring.requests():
                if extra:
                    packet.append((raw, b""))
                    extra = False
                    ring.respond(struct.pack("<Hh", 0xFFFF, 1))
                else:
                    gref, offset, flags, slot_id, size = struct.unpack("<IHHHH", raw)
                    if not packet:
                        extra = bool(flags & 8)
                    here = size if packet else min(size, 4096)  # the first slot says the size of all
                    view = self.host.frame(gref, write=False)
                    packet.append((raw, bytes(view[offset : offset + here])))
                    ring.respond(struct.pack("<Hh", slot_id, self.tx_status))
                    if not flags & 4:
                        last = packet
                        packet = []
                        self.sent.append(last)
            port.notify()
            await port.wait()

    def deliver(self, parts: list[bytes], flags: int = 0, extra: bytes | None = None, queue: int = 0) -> None:
        ring, port = self.rx[queue]
        for number, part in enumerate(parts):
            (raw,) = ring.requests(1)
            slot_id, gref = struct.unpack("<HxxI", raw)
            self.host.frame(gref)[4 : 4 + len(part)] = part
            more = 4 if number + 1 < len(parts) else 0
            first = (flags | (8 if extra else 0)) if number == 0 else 0
            ring.respond(struct.pack("<HHHh", slot_id, 4, first | more, len(part)))
            if number == 0 and extra:
                ring.requests(1)
                ring.respond(extra)
        port.notify()


@asynccontextmanager
async def setup(
    folder: Path, options: Options | None = None, offers: dict[str, str] = OFFERS
) -> AsyncIterator[tuple[Nic, PaperNetback]]:
    async with paper_host(folder) as host:
        backend = PaperNetback(
            host, await host.add_device("vif", 0, {"state": "1", **offers}, {"mac": MAC, "handle": "0"})
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.run)
            async with host.domain.nic(0, options) as nic:
                yield nic, backend


def data_of(packet: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(data for _, data in packet)


SHAPES = {
    "plain": (Options(), {}),
    "split": (Options(), OFFERS),
    "queues": (Options(queues=3, split_event_channels=False), OFFERS),
    "few pages": (Options(tx_pages=18, rx_pages=2), OFFERS),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_small_packets(tmp_path: Path, shape: str) -> None:
    async with setup(tmp_path, *SHAPES[shape]) as (nic, backend):
        assert nic.mac == bytes.fromhex("00163e010203")
        for number in range(1000):
            await nic.send(number.to_bytes(4, "big") * 20)
        while len(backend.sent) < 1000:
            await trio.lowlevel.checkpoint()
        sent = sorted(data_of(packet) for packet in backend.sent)
        assert sent == [number.to_bytes(4, "big") * 20 for number in range(1000)]
        for number in range(200):
            queue = number % len(backend.rx)
            while struct.unpack_from("<I", backend.rx[queue][0].page, 0)[0] == backend.rx[queue][0].cons:
                await trio.lowlevel.checkpoint()
            backend.deliver([number.to_bytes(4, "big") * 20], queue=queue)
        got = [(await nic.receive()).data for _ in range(200)]
        assert sorted(got) == [number.to_bytes(4, "big") * 20 for number in range(200)]
        statistics = nic.statistics()
        assert (statistics.tx_packets, statistics.rx_packets, statistics.tx_errors) == (1000, 200, 0)


async def test_big_packets_checksums_and_segmentation(tmp_path: Path) -> None:
    async with setup(tmp_path) as (nic, backend):
        big = bytes(range(256)) * 200
        await nic.send(Packet(big, gso=Gso(1448)))
        await nic.send(Packet(b"x" * 60, csum_blank=True))
        while len(backend.sent) < 2:
            await trio.lowlevel.checkpoint()
        first, second = backend.sent
        assert data_of(first)[: len(big)] == big
        flags, size = struct.unpack("<IHHHH", first[0][0])[2], struct.unpack("<IHHHH", first[0][0])[4]
        assert (flags, size) == (1 | 2 | 4 | 8, len(big))
        assert first[1][0][:8] == struct.pack("<BBHBBH", 1, 0, 1448, 1, 0, 0)
        assert struct.unpack("<IHHHH", second[0][0])[2] == 3
        parts = [b"a" * 4000, b"b" * 4000, b"c"]
        backend.deliver(parts, flags=2, extra=struct.pack("<BBHBBH", 1, 0, 1000, 2, 0, 0))
        assert await nic.receive() == Packet(b"".join(parts), csum_blank=True, gso=Gso(1000, 2))


async def test_what_was_not_agreed_is_refused(tmp_path: Path) -> None:
    async with setup(tmp_path, offers={}) as (nic, _):
        with pytest.raises(ValueError, match="5000 bytes"):
            await nic.send(bytes(5000))
        with pytest.raises(ValueError, match="gso"):
            await nic.send(Packet(bytes(100), gso=Gso(1)))
        with pytest.raises(ValueError, match="0 bytes"):
            await nic.send(b"")


async def test_errors_of_either_direction(tmp_path: Path) -> None:
    async with setup(tmp_path) as (nic, backend):
        backend.tx_status = -1
        await nic.send(b"x" * 60)
        while not nic.statistics().tx_errors:
            await trio.lowlevel.checkpoint()
        ring, port = backend.rx[0]
        ring.requests(2)
        ring.respond(struct.pack("<HHHh", 0, 0, 0, -1))
        ring.respond(struct.pack("<HHHh", 1, 4000, 0, 200))
        port.notify()
        backend.deliver([b"good"])
        assert (await nic.receive()).data == b"good"
        assert nic.statistics().rx_errors == 2


async def test_the_backend_goes(tmp_path: Path) -> None:
    async with setup(tmp_path) as (nic, backend):
        await backend.host.dom0.write(f"{backend.folder}/state", "5")
        with pytest.raises(DeviceGone, match="closes it"):
            await nic.receive()
        with pytest.raises(DeviceGone):
            await nic.send(b"x")
        assert [packet async for packet in nic] == []


async def test_a_packet_that_never_reaches_the_ring(tmp_path: Path) -> None:
    async with setup(tmp_path) as (nic, backend):
        nic.faults.at(1, drop)
        await nic.send(b"first")
        await nic.send(b"second")
        while not backend.sent:
            await trio.lowlevel.checkpoint()
        assert [data_of(packet) for packet in backend.sent] == [b"second"]


@pytest.mark.parametrize("text", ["", "00:16:3e:01:02", "00163e010203", "xx:16:3e:01:02:03"])
def test_no_mac(text: str) -> None:
    with pytest.raises(ValueError):
        parse_mac(text)
