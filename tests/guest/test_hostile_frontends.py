"""Frontends that break every rule, against the real backends. Whatever they do, the backend's process
goes on, another guest on it reads and writes as ever, and nothing is left behind (the `host` fixture
counts).
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domu.faults import Faults, Node
from domu.frontends import blkfront, netfront, xenbus
from domu.frontends.blkfront.request import Segment, pack_direct, pack_discard, pack_indirect
from domu.frontends.netfront.request import TxSlot, pack_rx_request
from domu.frontends.xenbus import DeviceGone
from domu.guests import ip
from hyper.guest.front import RequestRing, RingIndex
from hyper.guest.xenstore import XenstoreGone
from hyper.public.errors import HypervisorGone
from tests.guest import hostile
from tests.guest.hostile import NUMBERS, Piece, Vandal, lies_of
from tests.toolstack_kit import Guest, Toolstack, toolstack
from toolstack.lab.host import Host

pytestmark = pytest.mark.timeout(240)

WANTED = os.environ.get("UMXEN_STORMS")
storm = settings(
    max_examples=int(WANTED or 12),
    derandomize=not WANTED,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""A few storms, always the same; UMXEN_STORMS=1000 looks longer."""
SECTORS = 4096
CONNECT_SECONDS = 0.3
"""A backend that waits for the rest of a handshake may do so for ever."""
BLK_NODES = (
    "ring-ref", "ring-ref0", "ring-ref1", "ring-page-order", "event-channel", "protocol", "state",
    "multi-queue-num-queues", "feature-persistent", "queue-0/ring-ref", "queue-1/event-channel",
)  # fmt: skip
NET_NODES = (
    "tx-ring-ref", "rx-ring-ref", "event-channel", "event-channel-tx", "event-channel-rx", "request-rx-copy",
    "multi-queue-num-queues", "state", "feature-sg", "feature-gso-tcpv4", "ctrl-ring-ref",
    "queue-1/tx-ring-ref", "feature-rx-notify",
)  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frontends that lie don't wait long for the other half to close."""
    monkeypatch.setattr(xenbus, "CLOSE_SECONDS", CONNECT_SECONDS)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk for whoever is hostile."""
    return make_image(tmp_path / "hostile.img")


def make_image(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(SECTORS * 512)
    return path


def pid_of(host: Host, daemon: str) -> int:
    found = host.daemon(daemon)
    assert found is not None
    return found.pid


def lies(names: tuple[str, ...]) -> st.SearchStrategy[list[tuple[str, str]]]:
    return st.lists(
        st.tuples(st.sampled_from(names), st.sampled_from((*NUMBERS, "-"))), min_size=1, max_size=3
    )


def run(host: Host, work: Callable[[Toolstack, Guest], Awaitable[None]]) -> None:
    """`work` with a guest of its own."""

    async def main() -> None:
        with trio.fail_after(60):
            async with toolstack(host.paths) as dom0, dom0.guest() as guest:
                await work(dom0, guest)

    trio.run(main)


# --- blkback


async def honest_disk(dom0: Toolstack, folder: Path) -> None:
    """Another guest on the same backend writes and reads."""
    path = make_image(folder / "honest.img")
    data = random.Random(5).randbytes(512 * 1024)
    with trio.fail_after(20):
        async with (
            dom0.guest() as guest,
            dom0.vbd(guest, path),
            guest.domain.disk("xvda", blkfront.Options(queues=2)) as disk,
        ):
            await disk.write(8, data)
            await disk.flush()
            assert await disk.read(8, 1024) == data
            assert all(queue.nr_strays == 0 for queue in disk.queues)
    assert path.read_bytes()[4096 : 4096 + len(data)] == data


def valid_disk_request(disk: blkfront.Disk) -> Callable[[RequestRing, random.Random], bytes]:
    grefs = [page.gref if page.gref > 0 else 8 + number for number, page in enumerate(disk._pool._pages)]

    def make(ring: RequestRing, source: random.Random) -> bytes:
        req_id, sector = source.randrange(1 << 20), source.randrange(SECTORS)
        kind = source.randrange(8)
        count = source.choice((1, 2, 11))
        segments = [
            Segment(source.choice(grefs), source.randrange(8), source.randrange(8)) for _ in range(count)
        ]
        if kind < 4:
            return pack_direct(source.choice((0, 1, 2, 3)), 51712, req_id, sector, segments)
        if kind < 6:
            nr_segments = source.choice((0, 1, 12, 256, 257, 512, 4096, 65535))
            tables = [source.choice(grefs) for _ in range(8)]
            return pack_indirect(source.choice((0, 1, 6)), 51712, req_id, sector, nr_segments, tables)
        return pack_discard(
            51712, req_id, sector, source.choice((0, 1, SECTORS, 1 << 63)), source.random() < 0.5
        )

    return make


def disk_vandal(guest: Guest, disk: blkfront.Disk) -> Vandal:
    async def use() -> None:
        try:
            await disk.write(source.randrange(SECTORS - 64), source.randbytes(64 * 512))
            await disk.read(0, 256)
        except (blkfront.DiskError, DeviceGone):
            pass

    source = random.Random(1)
    rings = [(queue.ring, queue.port) for queue in disk.queues]
    return Vandal(guest.domain, disk.bus.path, rings, valid_disk_request(disk), use)


disk_pieces = st.lists(
    hostile.common
    | st.tuples(st.just("node"), st.sampled_from(BLK_NODES), hostile.values)
    | st.tuples(st.just("remove"), st.sampled_from(BLK_NODES)),
    min_size=1,
    max_size=10,
)


def test_a_disk_survives_its_frontend(host: Host, image: Path, tmp_path: Path) -> None:
    @storm
    @given(pieces=disk_pieces, queues=st.sampled_from((1, 2)), persistent=st.booleans())
    def rage(pieces: list[Piece], queues: int, persistent: bool) -> None:
        async def work(dom0: Toolstack, guest: Guest) -> None:
            options = blkfront.Options(queues=queues, persistent=persistent, buffer_pages=300)
            async with dom0.vbd(guest, image):
                with suppress(DeviceGone):
                    async with guest.domain.disk("xvda", options) as disk:
                        vandal = disk_vandal(guest, disk)
                        for piece in pieces:
                            await vandal.do(piece)

        run(host, work)

    with the_same(host, "blkback"):
        rage()
        run(host, lambda dom0, _: honest_disk(dom0, tmp_path))


@contextmanager
def the_same(host: Host, daemon: str) -> Iterator[None]:
    """The daemon may not have been started again at the end of the block."""
    before = pid_of(host, daemon)
    yield
    assert pid_of(host, daemon) == before, host.log(daemon)[-3000:]


def test_lies_about_a_disk(host: Host, image: Path, tmp_path: Path) -> None:
    @storm
    @given(told=lies(BLK_NODES), queues=st.sampled_from((1, 2)), order=st.sampled_from((0, 1, 2)))
    def lie(told: list[tuple[str, str]], queues: int, order: int) -> None:
        async def work(dom0: Toolstack, guest: Guest) -> None:
            options = blkfront.Options(queues=queues, ring_page_order=order, buffer_pages=16)
            async with dom0.vbd(guest, image):
                with trio.move_on_after(CONNECT_SECONDS), suppress(DeviceGone, blkfront.DiskError):
                    async with guest.domain.disk("xvda", options, lies_of(told)) as disk:
                        await disk.read(0, 8)

        run(host, work)

    with the_same(host, "blkback"):
        lie()
        run(host, lambda dom0, _: honest_disk(dom0, tmp_path))


@pytest.mark.parametrize("how", hostile.GREFS)
def test_ring_grants_that_are_none(host: Host, image: Path, tmp_path: Path, how: str) -> None:
    """The ring's own gref: not granted, read-only, somebody else's, of no frame, ..."""

    async def work(dom0: Toolstack, guest: Guest) -> None:
        own = guest.domain.hyp.process_domain
        assert own is not None
        grants = guest.domain.hyp.frames(own.grant_mfn, own.nr_grant_frames)
        hostile.plant(guest.domain, grants, 700, how)
        gref = {"reserved": 1, "huge": 1 << 30}.get(how, 700)
        told = [("ring-ref", str(gref))]
        if how == "again":
            told = [("ring-ref0", "8"), ("ring-ref1", "8"), ("ring-ref2", "8"), ("ring-ref3", "8")]
        options = blkfront.Options(ring_page_order=2 if how == "again" else 0, buffer_pages=16)
        async with dom0.vbd(guest, image):
            with trio.move_on_after(CONNECT_SECONDS), suppress(DeviceGone, blkfront.DiskError):
                async with guest.domain.disk("xvda", options, lies_of(told)) as disk:
                    await disk.read(0, 8)
        await honest_disk(dom0, tmp_path)

    with the_same(host, "blkback"):
        run(host, work)


def test_guests_that_die_with_requests_on_the_way(host: Host, tmp_path: Path) -> None:
    """Their domain is destroyed in the middle; the backend must let go of it at once."""
    path = make_image(tmp_path / "dying.img")
    gone = (BaseExceptionGroup, DeviceGone, HypervisorGone, XenstoreGone)

    async def busy(disk: blkfront.Disk, number: int) -> None:
        with suppress(DeviceGone, blkfront.DiskError):
            while True:
                await disk.write(number * 64, bytes(32768))
                await disk.read(number * 64, 64)

    async def work(dom0: Toolstack, guest: Guest) -> None:
        for life in range(6):
            with suppress(*gone):
                async with (
                    dom0.guest() as dying,
                    dom0.vbd(dying, path),
                    dying.domain.disk("xvda", blkfront.Options(persistent=bool(life % 2))) as disk,
                    trio.open_nursery() as nursery,
                ):
                    for number in range(8):
                        nursery.start_soon(busy, disk, number)
                    await trio.sleep(0.02 * life)
                    await dom0.xc.domain_destroy(dying.domid)
        await honest_disk(dom0, tmp_path)

    with the_same(host, "blkback"):
        run(host, work)


def test_noise_does_not_stop_others(host: Host, image: Path, tmp_path: Path) -> None:
    """One guest writes its state and rings its bell without end; another's reads still take no time."""

    async def noise(guest: Guest, disk: blkfront.Disk) -> None:
        for number in range(1 << 30):
            for _ in range(100):
                disk.queues[0].port.notify()
            await guest.domain.xs.write(f"data/{number % 50}", str(number))
            await guest.domain.xs.write(f"{disk.bus.path}/noise", str(number))

    async def work(dom0: Toolstack, guest: Guest) -> None:
        async with (
            dom0.vbd(guest, image),
            guest.domain.disk("xvda") as disk,
            dom0.guest() as other,
            dom0.vbd(other, make_image(tmp_path / "other.img")),
            other.domain.disk("xvda") as honest,
            trio.open_nursery() as nursery,
        ):
            for _ in range(4):
                nursery.start_soon(noise, guest, disk)
            with trio.fail_after(20):
                for _ in range(200):
                    await honest.read(0, 8)
            nursery.cancel_scope.cancel()

    with the_same(host, "blkback"), the_same(host, "xenstored"):
        run(host, work)


def test_a_frontend_that_reconnects_for_ever(host: Host, image: Path, tmp_path: Path) -> None:
    async def work(dom0: Toolstack, guest: Guest) -> None:
        async with dom0.vbd(guest, image):
            for number in range(20):
                async with guest.domain.disk(
                    "xvda", blkfront.Options(queues=number % 3 + 1, buffer_pages=16)
                ) as disk:
                    await disk.read(0, 8)
            for number in range(200):
                await guest.domain.xs.write(f"device/vbd/{51712}/state", str(number * 7 % 9))
        await honest_disk(dom0, tmp_path)

    with the_same(host, "blkback"):
        run(host, work)


def test_an_honest_guest_in_the_middle_of_storms(host: Host, image: Path, tmp_path: Path) -> None:
    """It reads what it wrote while others rage, and its image holds nothing else."""
    pieces: list[Piece] = [
        ("garbage", 1, 40),
        ("mutated", 2, 40),
        ("use",),
        ("index", 0, True, 4096),
        ("use",),
    ]

    async def rage(dom0: Toolstack, seed: int, done: trio.Event) -> None:
        path = make_image(tmp_path / f"rage{seed}.img")
        while not done.is_set():
            async with dom0.guest() as guest, dom0.vbd(guest, path):
                with trio.move_on_after(2):
                    try:
                        async with guest.domain.disk("xvda") as disk:
                            for piece in pieces:
                                await disk_vandal(guest, disk).do(piece)
                    except DeviceGone:
                        pass

    async def work(dom0: Toolstack, guest: Guest) -> None:
        done = trio.Event()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(dom0.vbd(guest, image))
            disk = await stack.enter_async_context(guest.domain.disk("xvda"))
            async with trio.open_nursery() as nursery:
                for seed in range(2):
                    nursery.start_soon(rage, dom0, seed, done)
                for number in range(60):
                    data = bytes([number]) * 512 * 40
                    await disk.write(number * 64, data)
                    assert await disk.read(number * 64, 40) == data
                    await trio.sleep(0.01)
                done.set()

    with the_same(host, "blkback"):
        run(host, work)
    written = image.read_bytes()
    for number in range(60):
        assert written[number * 64 * 512 :][: 64 * 512] == bytes([number]) * 512 * 40 + bytes(24 * 512)


# --- netback

MACS = ("00:16:3e:66:00:01", "00:16:3e:66:00:02", "00:16:3e:66:00:03")


async def honest_network(dom0: Toolstack) -> None:
    """Two other guests on the same switch ping each other."""
    with trio.fail_after(20):
        async with (
            dom0.guest() as one,
            dom0.guest() as two,
            dom0.vif(one, MACS[1]),
            dom0.vif(two, MACS[2]),
            one.domain.nic() as first,
            two.domain.nic() as second,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(ip.serve, second, ip.Host(second.mac, "10.9.9.2"))
            for _ in range(5):
                await ip.ping(first, ip.Host(first.mac, "10.9.9.1"), "10.9.9.2", bytes(1000))
            nursery.cancel_scope.cancel()


def valid_slot(nic: netfront.Nic) -> Callable[[RequestRing, random.Random], bytes]:
    tx_grefs = [page.gref for queue in nic.queues for page in queue._tx_pool._pages]
    rx_grefs = [page.gref for queue in nic.queues for page in queue._rx_pool._pages]

    def make(ring: RequestRing, source: random.Random) -> bytes:
        if ring.entry_bytes == 8:
            return pack_rx_request(source.randrange(1 << 16), source.choice(rx_grefs + tx_grefs))
        flags, size = source.randrange(16), source.choice((0, 1, 13, 14, 60, 1514, 4096, 4097, 65535))
        return TxSlot(
            source.choice(tx_grefs), source.choice((0, 0, 4000, 4095, 65535)), flags, 1, size
        ).pack()

    return make


def nic_vandal(guest: Guest, nic: netfront.Nic) -> Vandal:
    async def use() -> None:
        try:
            await nic.send(b"\xff" * 6 + nic.mac + b"\x08\x00" + source.randbytes(1000))
            await nic.send(
                netfront.Packet(
                    nic.mac + nic.mac + b"\x08\x00" + source.randbytes(20000), gso=netfront.Gso(1)
                )
            )
            await nic.receive()
        except (DeviceGone, ValueError):
            pass

    source = random.Random(1)
    rings = [pair for queue in nic.queues for pair in zip((queue.tx, queue.rx), queue._ports)]
    return Vandal(guest.domain, nic.bus.path, rings, valid_slot(nic), use)


net_pieces = st.lists(
    hostile.common
    | st.tuples(st.just("node"), st.sampled_from(NET_NODES), hostile.values)
    | st.tuples(st.just("remove"), st.sampled_from(NET_NODES)),
    min_size=1,
    max_size=10,
)


def test_a_network_survives_its_frontend(host: Host) -> None:
    @storm
    @given(pieces=net_pieces, queues=st.sampled_from((1, 2)), split=st.booleans())
    def rage(pieces: list[Piece], queues: int, split: bool) -> None:
        async def work(dom0: Toolstack, guest: Guest) -> None:
            options = netfront.Options(queues=queues, split_event_channels=split)
            async with dom0.vif(guest, MACS[0]):
                with suppress(DeviceGone):
                    async with guest.domain.nic(0, options) as nic:
                        vandal = nic_vandal(guest, nic)
                        for piece in pieces:
                            await vandal.do(piece)

        run(host, work)

    with the_same(host, "netback"):
        rage()
        run(host, lambda dom0, _: honest_network(dom0))


@pytest.mark.parametrize("name", ["tx-ring-ref", "rx-ring-ref"])
@pytest.mark.parametrize("how", hostile.GREFS)
def test_network_rings_that_are_none(host: Host, name: str, how: str) -> None:
    async def work(dom0: Toolstack, guest: Guest) -> None:
        own = guest.domain.hyp.process_domain
        assert own is not None
        hostile.plant(guest.domain, guest.domain.hyp.frames(own.grant_mfn, own.nr_grant_frames), 700, how)
        gref = {"reserved": 1, "huge": 1 << 30, "again": 8}.get(how, 700)
        async with dom0.vif(guest, MACS[0]):
            with trio.move_on_after(CONNECT_SECONDS), suppress(DeviceGone):
                async with guest.domain.nic(0, None, lies_of([(name, str(gref))])) as nic:
                    await nic.send(b"\xff" * 60)
        if how == "again":
            await honest_network(dom0)

    with the_same(host, "netback"):
        run(host, work)


def test_a_control_ring_of_nonsense(host: Host) -> None:
    """Requests are answered whatever they hold; indices that run away end that card alone."""

    async def work(dom0: Toolstack, guest: Guest) -> None:
        here = guest.domain
        page, port = here.memory.share(1, 0), await here.hyp.alloc_port(0)
        ring = RequestRing(page.view, 16, 12)
        handshake: Faults[Node] = Faults()
        nodes = [Node("ctrl-ring-ref", str(page.grefs[0])), Node("event-channel-ctrl", str(port.number))]
        handshake.at(1, lambda node: [node, *nodes])
        source = random.Random(3)
        async with dom0.vif(guest, MACS[0]), here.nic(0, None, handshake) as nic:
            for _ in range(500):
                ring.put(source.randbytes(16))
                ring.push()
                port.notify()
                while not ring.take():
                    if not ring.sleep():
                        await port.wait()
            ring.store(RingIndex.REQ_PROD, 1 << 20)
            port.notify()
            with pytest.raises(DeviceGone), trio.fail_after(10):
                await nic.receive()
        page.close()
        await port.close()
        await honest_network(dom0)

    with the_same(host, "netback"):
        run(host, work)


def test_lies_about_a_network(host: Host) -> None:
    @storm
    @given(told=lies(NET_NODES), queues=st.sampled_from((1, 2)))
    def lie(told: list[tuple[str, str]], queues: int) -> None:
        async def work(dom0: Toolstack, guest: Guest) -> None:
            async with dom0.vif(guest, MACS[0]):
                with trio.move_on_after(CONNECT_SECONDS), suppress(DeviceGone):
                    async with guest.domain.nic(0, netfront.Options(queues=queues), lies_of(told)) as nic:
                        await nic.send(b"\xff" * 60)

        run(host, work)

    with the_same(host, "netback"):
        lie()
        run(host, lambda dom0, _: honest_network(dom0))
