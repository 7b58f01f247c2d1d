"""Our blkfront against a backend played in Python, with the protocol's layout written out a second time."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from domu.faults import Faults, drop, only, patch, say, twice
from domu.frontends import xenbus
from domu.frontends.blkfront import Disk, DiskError, Options, devid_of
from domu.frontends.blkfront.config import Agreed, Geometry
from domu.frontends.blkfront.request import Response
from domu.frontends.xenbus import DeviceGone
from tests.paper_domain import DOMID, PaperHost, paper_host

XVDA = 51712
OFFERS = {
    "max-ring-page-order": "4", "feature-max-indirect-segments": "256", "multi-queue-max-queues": "4",
    "feature-persistent": "1",
}  # fmt: skip


class PaperBlkback:
    """Serves `disk`. `log` has an entry for each request; `hold` makes it keep its answers."""

    def __init__(self, host: PaperHost, folder: str, sectors: int) -> None:
        self.host = host
        self.folder = folder
        self.front = f"/local/domain/{DOMID}/device/vbd/{XVDA}"
        self.disk = bytearray(sectors * 512)
        self.log: list[tuple[Any, ...]] = []
        self.hold = False
        self.keep_maps = False
        self.held: list[tuple[memoryview, int, bytes]] = []

    async def run(self, extra: dict[str, str]) -> None:
        dom0 = self.host.dom0
        await self.wait_frontend("1", over="none")
        await self.set_state(2)
        if not await self.wait_frontend("3"):
            return
        nodes = {name: await dom0.read(f"{self.front}/{name}") for name in await dom0.directory(self.front)}
        async with trio.open_nursery() as nursery:
            for number in range(int(nodes.get("multi-queue-num-queues", 1))):
                prefix = f"queue-{number}/" if "multi-queue-num-queues" in nodes else ""
                nursery.start_soon(
                    self.serve, *await self.rings(prefix, int(nodes.get("ring-page-order", 0)))
                )
            for name, value in (self.geometry() | extra).items():
                await self.write(name, value)
            await self.set_state(4)
            await self.wait_frontend("5", "6")
            nursery.cancel_scope.cancel()
        await self.set_state(6)

    def geometry(self) -> dict[str, str]:
        return {"sectors": str(len(self.disk) // 512), "sector-size": "512", "info": "0"}

    async def write(self, name: str, value: str) -> None:
        await self.host.dom0.write(f"{self.folder}/{name}", value)

    async def set_state(self, state: int) -> None:
        await self.write("state", str(state))

    async def wait_frontend(self, *states: str, over: str = "6") -> bool:
        async with self.host.dom0.watch(f"{self.front}/state") as changes:
            async for _ in changes:
                state = await self.host.dom0.read_if_exists(f"{self.front}/state")
                if state in states:
                    return True
                if state == over:
                    return False
        return False

    async def rings(self, prefix: str, order: int) -> tuple[memoryview, Any]:
        async def read(name: str) -> int:
            return int(await self.host.dom0.read(f"{self.front}/{prefix}{name}"))

        names = [f"ring-ref{n}" for n in range(1 << order)] if order else ["ring-ref"]
        ring = self.host.frames([await read(name) for name in names])
        return ring, self.host.bind(await read("event-channel"))

    async def serve(self, ring: memoryview, port: Any) -> None:
        entries = 1 << ((len(ring) - 64) // 112).bit_length() - 1
        cons = prod = 0
        while True:
            for index in range(cons, struct.unpack_from("<I", ring, 0)[0]):
                raw = bytes(ring[64 + 112 * (index % entries) :][:112])
                response = self.answer(raw)
                if response is not None:
                    ring[64 + 112 * (prod % entries) :][:16] = response
                    prod += 1
                cons = index + 1
            struct.pack_into("<I", ring, 4, cons + 1)
            struct.pack_into("<I", ring, 8, prod)
            port.notify()
            await port.wait()

    def answer(self, raw: bytes) -> bytes | None:
        operation, nr, _, req_id, sector = struct.unpack_from("<BBHxxxxQQ", raw)
        kind = operation
        if operation == 6:
            kind, nr, req_id, sector = struct.unpack_from("<xBHxxxxQQ", raw)
            grefs = struct.unpack_from("<8I", raw, 28)[: -(-nr // 512)]
            table = b"".join(bytes(self.host.frame(gref, write=False)) for gref in grefs)
        else:
            table = raw[24:]
        if operation == 5:
            self.log.append((5, sector, struct.unpack_from("<Q", raw, 24)[0]))
            return struct.pack("<QBxhxxxx", req_id, operation, 0)
        segments = [struct.unpack_from("<IBB", table, 8 * n) for n in range(nr)]
        self.log.append((operation, kind, sector, nr))
        status, at = 0, sector * 512
        for gref, first, last in segments:
            size = (last - first + 1) * 512
            if at + size > len(self.disk):
                status = -1
                break
            view = self.host.frame(gref, write=kind == 0)[first * 512 : first * 512 + size]
            if self.keep_maps:
                self.host.hyp.grant_table.live[gref].maps += 1
            if kind == 0:
                view[:] = self.disk[at : at + size]
            else:
                self.disk[at : at + size] = view
            at += size
        if kind not in (0, 1, 2, 3):
            status = -2
        return None if self.hold else struct.pack("<QBxhxxxx", req_id, operation, status)


@asynccontextmanager
async def setup(
    folder: Path, options: Options | None = None, offers: dict[str, str] = OFFERS, sectors: int = 4096,
    extra: dict[str, str] | None = None,
) -> AsyncIterator[tuple[Disk, PaperBlkback]]:  # fmt: skip
    async with paper_host(folder) as host:
        backend = PaperBlkback(
            host, await host.add_device("vbd", XVDA, {"state": "1", **offers}, {}), sectors
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.run, extra or {})
            async with host.domain.disk("xvda", options) as disk:
                yield disk, backend


SHAPES = {
    "as much as there is": (Options(queues=4, ring_page_order=3), OFFERS),
    "plain": (Options(), {}),
    "no persistent grants": (Options(persistent=False, queues=2), OFFERS),
    "few pages": (Options(buffer_pages=16, max_segments=11), OFFERS),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_reads_and_writes(tmp_path: Path, shape: str) -> None:
    options, offers = SHAPES[shape]
    async with setup(tmp_path, options, offers) as (disk, backend):
        assert disk.sectors == 4096
        data = bytes(range(256)) * 2 * 600
        await disk.write(17, data)
        assert backend.disk[17 * 512 :][: len(data)] == data
        assert await disk.read(17, 600) == data
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(disk.write, 2000 + number, bytes([number]) * 512)
        assert bytes(backend.disk[2000 * 512 : 2100 * 512]) == b"".join(bytes([n]) * 512 for n in range(100))
        assert await disk.read(0, 0) == b""
        indirect = any(entry[0] == 6 for entry in backend.log)
        assert indirect == (disk.agreed.max_segments > 11)
        assert disk.statistics().errors == 0 and all(queue.nr_strays == 0 for queue in disk.queues)


async def test_flush_discard_and_refusals(tmp_path: Path) -> None:
    async with setup(tmp_path) as (disk, backend):
        await disk.flush()
        await disk.discard(8, 16)
        assert backend.log[-2:] == [(3, 3, 0, 0), (5, 8, 16)]
        with pytest.raises(DiskError, match="read at sector 4090: ERROR"):
            await disk.read(4090, 8)
        with pytest.raises(DiskError):
            await disk.read(4000, 5000)
        with pytest.raises(ValueError, match="sector 1, 100 bytes"):
            await disk.write(1, bytes(100))
        assert disk.statistics().errors >= 2
        assert await disk.read(4090, 6) == bytes(3072)


async def test_big_sectors(tmp_path: Path) -> None:
    async with setup(tmp_path, extra={"sector-size": "4096", "info": "4"}) as (disk, _):
        assert disk.geometry.read_only
        with pytest.raises(ValueError, match="4096"):
            await disk.read(4, 8)
        assert len(await disk.read(8, 8)) == 4096


async def test_a_cancelled_call_leaves_its_pages_until_the_answer(tmp_path: Path) -> None:
    async with setup(tmp_path, Options(buffer_pages=4)) as (disk, backend):
        backend.hold = True
        with trio.move_on_after(0.05):
            await disk.read(0, 32)
        assert disk._pool.nr_free == 0
        (queue,) = disk.queues
        backend.hold = False
        queue._arrived(Response(0, 0, 0))
        assert disk._pool.nr_free == 4
        assert len(await disk.read(0, 32)) == 32 * 512


async def test_a_grant_that_the_backend_keeps_is_not_used_again(tmp_path: Path) -> None:
    async with setup(tmp_path, Options(persistent=False, buffer_pages=2)) as (disk, backend):
        backend.keep_maps = True
        await disk.read(0, 8)
        backend.keep_maps = False
        grants = backend.host.hyp.grant_table.live
        kept = [grant for grant in grants.values() if grant.maps]
        await disk.read(0, 8)
        with trio.move_on_after(0.05) as scope:
            await disk.read(0, 16)
        assert scope.cancelled_caught
        for grant in kept:
            grant.maps = 0
        assert len(await disk.read(0, 16)) == 16 * 512


async def test_the_backend_resizes_and_closes(tmp_path: Path) -> None:
    async with setup(tmp_path) as (disk, backend):
        backend.disk += bytes(512 * 100)
        await backend.write("sectors", "4196")
        await backend.set_state(4)
        while disk.sectors != 4196:
            await trio.sleep(0.01)
        await backend.set_state(5)
        while not disk._gone:
            await trio.sleep(0.01)
        with pytest.raises(DeviceGone, match="the backend closes it"):
            await disk.read(0, 8)
        while await backend.host.dom0.read(f"{backend.front}/state") != "6":
            await trio.sleep(0.01)


async def test_a_disk_is_opened_again_in_other_shapes(tmp_path: Path) -> None:
    async with paper_host(tmp_path) as host:
        folder = await host.add_device("vbd", XVDA, {"state": "1", **OFFERS}, {})
        for options in (Options(), Options(queues=3), Options(ring_page_order=0), Options(queues=2)):
            backend = PaperBlkback(host, folder, 64)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(backend.run, {})
                async with host.domain.disk(XVDA, options) as disk:
                    assert len(await disk.read(0, 64)) == 32768


async def test_no_disk_and_a_refused_one(tmp_path: Path) -> None:
    async with paper_host(tmp_path) as host:
        with pytest.raises(DeviceGone, match="no such device"):
            async with host.domain.disk("xvdb"):
                pass
        folder = await host.add_device("vbd", XVDA, {"state": "1"}, {})
        await host.dom0.write(f"{folder}/error", "2 no such image")
        await host.dom0.write(f"{folder}/state", "6")
        with pytest.raises(DeviceGone, match="no such image"):
            async with host.domain.disk("xvda"):
                pass


async def test_a_backend_that_answers_too_much(tmp_path: Path) -> None:
    async with setup(tmp_path) as (disk, _):
        (queue,) = disk.queues
        struct.pack_into("<I", queue._shared.view, 8, 77)
        queue.port._pending.set()  # type: ignore[attr-defined]
        with pytest.raises(DeviceGone, match="answered more"):
            while True:
                await disk.read(0, 8)


async def test_faults_on_the_nth_request(tmp_path: Path) -> None:
    async with setup(tmp_path) as (disk, backend):
        disk.faults.at(2, drop)
        disk.faults.at(3, patch(0, b"\x09"))
        disk.faults.every(5, twice)
        await disk.flush()
        with trio.move_on_after(0.05) as scope:
            await disk.flush()
        assert scope.cancelled_caught
        with pytest.raises(DiskError, match="EOPNOTSUPP"):
            await disk.flush()
        await disk.flush()
        await disk.flush()
        while not disk.queues[0].nr_strays:
            await trio.sleep(0.01)
        assert [entry[0] for entry in backend.log] == [3, 9, 3, 3, 3]


async def test_lies_in_xenstore(tmp_path: Path) -> None:
    async with paper_host(tmp_path) as host:
        await host.add_device("vbd", XVDA, {"state": "1"}, {})
        async with xenbus.device(host.domain.xs, "vbd", XVDA) as device:
            device.faults.always(only("ring-ref", say("-1")))
            await device.publish({"ring-ref": 9, "event-channel": 3})
            assert await device.read("ring-ref") == "-1"
            assert await device.read("event-channel") == "3"
            device.faults.clear()
            await host.dom0.write(f"/local/domain/0/backend/vbd/{DOMID}/{XVDA}/state", "6")


def test_fault_rules() -> None:
    faults: Faults[int] = Faults()
    faults.always(lambda item: [item, -item])
    faults.at(2, drop)
    assert [faults.apply(n) for n in (1, 2, 3)] == [[1, -1], [], [3, -3]]
    faults.clear()
    assert faults.apply(4) == [4] and faults.count == 4


@pytest.mark.parametrize(
    ("name", "number"),
    [("xvda", 51712), ("xvda1", 51713), ("xvdp15", 51967), ("xvdq", 268439552), ("xvda16", 268435472),
     ("xvdaa", (1 << 28) | 26 << 8), ("hda", 768), ("hdb", 832), ("hdc", 5632), ("sda", 2048), ("sdb2",
     2066), ("51712", 51712)],
)  # fmt: skip
def test_device_numbers(name: str, number: int) -> None:
    assert devid_of(name) == number


@pytest.mark.parametrize("name", ["", "xvd", "vda", "hde", "sdz", "xvdabc", "/dev/xvda"])
def test_names_of_no_disk(name: str) -> None:
    with pytest.raises(ValueError, match="disk"):
        devid_of(name)


def test_what_is_agreed_on_when_the_backend_writes_nonsense() -> None:
    nonsense = {
        "max-ring-page-order": "x", "feature-max-indirect-segments": "-4", "multi-queue-max-queues": "",
        "feature-persistent": "yes",
    }  # fmt: skip
    agreed = Agreed.between(Options(), nonsense)
    assert agreed == Agreed(0, 1, 11, indirect=False, persistent=False)
    for nodes in ({}, {"sectors": "many"}, {"sectors": "-1"}, {"sectors": "8", "sector-size": "1000"}):
        with pytest.raises(ValueError):
            Geometry.read(nodes)
