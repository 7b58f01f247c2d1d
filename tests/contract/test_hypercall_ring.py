"""Hypercall rings of the real core: calls, grant operations in batches, ends, and clients that lie."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import hyper.guest
from hyper.guest import abi
from hyper.guest.hcall import HypercallRing
from hyper.machine import Machine
from hyper.public.errors import HypervisorGone, NoFreeSlot, NoSuchOp
from hyper.server import Server, listen
from tests.core_kit import ARENA_BYTES, Process, lib, nr_threads
from tests.ring_kit import FIRST_GREF, NR_FRAMES, Granter, copies, open_ring, raw_ring

VERSION = 4 << 16 | 17
SELF = lib.DOMID_SELF


@pytest.fixture(autouse=True)
def threads(machine: Machine) -> Iterator[None]:
    """A ring's thread ends with its connection."""
    before = nr_threads()
    yield
    assert nr_threads() == before


@pytest.fixture
def guest(dom0: Process) -> Iterator[Granter]:
    granter = Granter(dom0)
    yield granter
    dom0.destroy(granter.domid)


def map_all(ring: HypercallRing, domid: int) -> Any:
    ops = abi.ffi.new("struct gnttab_map_grant_ref[]", NR_FRAMES)
    for index in range(NR_FRAMES):
        ops[index].dom, ops[index].ref, ops[index].flags = domid, FIRST_GREF + index, lib.GNTMAP_host_map
    assert lib.hcall_grant_map(ring._ring(), ops, NR_FRAMES) == 0
    return ops


def unmap_all(ring: HypercallRing, maps: Any) -> list[int]:
    ops = abi.ffi.new("struct gnttab_unmap_grant_ref[]", NR_FRAMES)
    for index in range(NR_FRAMES):
        ops[index].handle = maps[index].handle
    assert lib.hcall_grant_unmap(ring._ring(), ops, NR_FRAMES) == 0
    return [op.status for op in ops]


# --- calls


def test_calls_and_refusals(dom0: Process) -> None:
    with open_ring(dom0) as ring:
        for _ in range(100):  # the entries are used over and over
            assert ring.hypercall(abi.nr.xen_version, lib.XENVER_version, 0) == VERSION
        with pytest.raises(NoSuchOp, match="hypercall 60"):
            ring.hypercall(60)
        with pytest.raises(NoSuchOp):
            ring.hypercall(abi.nr.event_channel_op, 99, 0)


def test_arguments_lie_in_the_arena(dom0: Process) -> None:
    with open_ring(dom0) as ring:
        ipi = abi.struct("struct evtchn_bind_ipi", ring.window.view)
        ipi.vcpu = 0
        ring.hypercall(abi.nr.event_channel_op, lib.EVTCHNOP_bind_ipi, ring.window_addr)
        assert dom0.evtchn("status", dom=SELF, port=ipi.port).status == lib.EVTCHNSTAT_ipi
        dom0.evtchn("close", port=ipi.port)  # a port belongs to the connection, not to the ring


def test_a_server_that_sleeps_is_woken(dom0: Process) -> None:
    with open_ring(dom0) as ring:
        for _ in range(20):
            time.sleep(0.002)
            assert ring.hypercall(abi.nr.xen_version, lib.XENVER_version, 0) == VERSION


def test_a_long_call_is_repeated_until_it_is_done(dom0: Process, guest: Granter) -> None:
    """4096 copies of a page take longer than one piece of a call may."""
    with open_ring(dom0) as ring:
        view = guest.page(0)
        view[:] = os.urandom(4096)
        handle, ops = dom0.new("struct gnttab_copy", 4096)
        page = dom0.page()
        for index in range(4096):
            copies.fill(
                ops[index], (guest.domid, FIRST_GREF), (SELF, page.gmfn), 4096, lib.GNTCOPY_source_gref
            )
            ops[index].status = 1
        assert ring.hypercall(abi.nr.grant_table_op, lib.GNTTABOP_copy, handle, 4096) == 0
        assert {ops[index].status for index in range(4096)} == {0}
        assert bytes(page.view) == bytes(view)


def test_several_rings_at_once(dom0: Process, guest: Granter) -> None:
    """Each with its thread; one connection's grant table and ports are used by all."""
    failures: list[BaseException] = []

    def work(ring: HypercallRing) -> None:
        try:
            for _ in range(20):
                maps = map_all(ring, guest.domid)
                assert {op.status for op in maps} == {0}
                assert set(unmap_all(ring, maps)) == {0}
        except BaseException as error:
            failures.append(error)

    with open_ring(dom0) as first, open_ring(dom0) as second, open_ring(dom0) as third:
        threads = [threading.Thread(target=work, args=(ring,)) for ring in (first, second, third)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert guest.used() == 0


# --- grant operations


def test_map_and_unmap_in_one_batch(dom0: Process, guest: Granter) -> None:
    with open_ring(dom0) as ring:
        maps = map_all(ring, guest.domid)
        assert [op.dev_bus_addr >> 12 for op in maps] == guest.gfns
        assert len({op.handle for op in maps}) == NR_FRAMES
        assert unmap_all(ring, maps) == [0] * NR_FRAMES
        assert set(unmap_all(ring, maps)) == {lib.GNTST_bad_handle}


def test_a_small_window_splits_the_batch(dom0: Process, guest: Granter) -> None:
    room = 3 * abi.sizeof("struct gnttab_map_grant_ref")
    with open_ring(dom0, room) as ring:
        assert unmap_all(ring, map_all(ring, guest.domid)) == [0] * NR_FRAMES
    with open_ring(dom0, 8) as ring:
        ops = abi.ffi.new("struct gnttab_unmap_grant_ref[1]")
        assert lib.hcall_grant_unmap(ring._ring(), ops, 1) == -lib.XEN_E2BIG


def test_maps_of_a_ring_outlive_it_and_end_with_the_connection(machine: Machine, guest: Granter) -> None:
    with Process(machine) as other:
        with open_ring(other) as ring:
            map_all(ring, guest.domid)
        assert guest.used() == NR_FRAMES
    assert guest.used() == 0


def test_copies_between_the_arena_and_a_grant(dom0: Process, guest: Granter) -> None:
    source, target = dom0.page(), dom0.page()
    source.view[:] = os.urandom(4096)
    with open_ring(dom0) as ring:
        assert copies.one(ring, (SELF, source.gmfn), (guest.domid, FIRST_GREF), 4096, to_gref=True) == 0
        assert bytes(guest.page(0)) == bytes(source.view)
        assert copies.one(ring, (guest.domid, FIRST_GREF), (SELF, target.gmfn), 100, from_gref=True) == 0
        assert bytes(target.view) == bytes(source.view[:100]) + bytes(3996)


def test_a_copy_from_guest_to_guest(dom0: Process, guest: Granter) -> None:
    other = Granter(dom0)
    guest.page(1)[:] = os.urandom(4096)
    with open_ring(dom0) as ring:
        source, target = (guest.domid, FIRST_GREF + 1), (other.domid, FIRST_GREF + 2)
        assert copies.one(ring, source, target, 4096, from_gref=True, to_gref=True) == 0
    assert bytes(other.page(2)) == bytes(guest.page(1))
    dom0.destroy(other.domid)


@pytest.mark.parametrize("gmfn", [ARENA_BYTES >> 12, (ARENA_BYTES >> 12) + 1, 1 << 40, (1 << 64) - 1])
def test_a_page_beyond_the_arena(dom0: Process, guest: Granter, gmfn: int) -> None:
    with open_ring(dom0) as ring:
        granted = (guest.domid, FIRST_GREF)
        assert copies.one(ring, granted, (SELF, gmfn), 1, from_gref=True) == lib.GNTST_bad_page
        assert copies.one(ring, (SELF, gmfn), granted, 1, to_gref=True) == lib.GNTST_bad_page
        assert copies.one(ring, (SELF, gmfn), (SELF, gmfn), 1) == lib.GNTST_bad_page
        assert guest.used() == 0


# --- ends


def test_a_ring_needs_an_arena(machine: Machine) -> None:
    with machine.connect(0) as connection:
        assert connection.open_ring()[0] == -lib.XEN_EINVAL


def test_the_arena_is_given_once(dom0: Process) -> None:
    with hyper.guest.Arena(8192) as arena:
        assert dom0.connection.set_arena(arena.fd, 8192) == -lib.XEN_EBUSY


def test_an_arena_of_huge_pages_is_refused(machine: Machine) -> None:
    """Where the host has none left, touching it would kill us."""
    fd = os.memfd_create("huge", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    try:
        os.ftruncate(fd, 2 << 20)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        with machine.connect(0) as connection:
            assert connection.set_arena(fd, 2 << 20) == -lib.XEN_EINVAL
    finally:
        os.close(fd)


def test_rings_are_counted_and_places_come_back(dom0: Process, machine: Machine) -> None:
    with open_ring(dom0) as ring:
        ring.hypercall(abi.nr.xen_version, 0, 0)
        assert machine.statistics()["nr_rings"] == 1
    wait_for_rings(machine, 0)
    rings = [raw_ring(dom0) for _ in range(64)]
    assert dom0.connection.open_ring()[0] == -lib.XEN_ENOSPC
    for page, bell in rings:
        page.close()
        bell.close()
    wait_for_rings(machine, 0)
    with open_ring(dom0) as ring:
        ring.hypercall(abi.nr.xen_version, 0, 0)


def wait_for_rings(machine: Machine, count: int) -> None:
    deadline = time.monotonic() + 10
    while machine.statistics()["nr_rings"] != count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_end_of_the_connection_ends_calls(machine: Machine, dom0: Process) -> None:
    """A client that waits is told; its ring's thread is gone when the connection is."""
    process = Process(machine)
    threads = nr_threads()
    with open_ring(process) as ring:
        ring.hypercall(abi.nr.xen_version, 0, 0)
        assert nr_threads() == threads + 1
        process.close()
        assert nr_threads() == threads
        with pytest.raises(HypervisorGone):
            ring.hypercall(abi.nr.xen_version, 0, 0)


def test_a_client_that_sleeps_learns_that_hyper_is_gone(dom0: Process) -> None:
    """Nobody closes the page properly when hyper is killed: the client looks at the doorbell."""
    memfd = os.memfd_create("ring")
    os.ftruncate(memfd, 4096)
    ours, theirs = socket.socketpair()
    _, window = dom0.buffer(64)
    raw = abi.ffi.from_buffer(window)
    ring = lib.hcall_open(memfd, ours.fileno(), raw, 64, 64)
    timer = threading.Timer(0.05, theirs.close)
    timer.start()
    assert lib.hcall(ring, abi.nr.xen_version, [0] * 5) == -lib.XEN_EIO
    lib.hcall_close(ring)
    timer.join()
    ours.close()
    os.close(memfd)


async def test_over_the_control_socket(machine: Machine, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        with listen(tmp_path / "control") as listener:
            nursery.start_soon(Server(machine).serve, listener)
            async with hyper.guest.connect(tmp_path / "control", arena_bytes=1 << 20) as hyp:
                free = hyp.arena.free_bytes
                async with hyp.hypercall_ring() as ring:
                    assert ring.hypercall(abi.nr.xen_version, 0, 0) == VERSION
                with pytest.raises(ValueError):
                    ring.hypercall(abi.nr.xen_version, 0, 0)
                assert hyp.arena.free_bytes == free
                held = [hyp.hypercall_ring(64) for _ in range(65)]
                for manager in held[:64]:
                    await manager.__aenter__()
                with pytest.raises(NoFreeSlot):
                    await held[64].__aenter__()
                address, nbytes = hyp.bank
                assert address and nbytes == machine.bank_bytes and hyp.max_mfn >= nbytes >> 12
                for manager in held[:64]:
                    await manager.__aexit__(None, None, None)
            nursery.cancel_scope.cancel()


# --- clients that lie


@pytest.mark.parametrize("prod", [17, 1000, 1 << 31, (1 << 32) - 1])
def test_a_producer_that_runs_away_ends_its_ring_only(dom0: Process, machine: Machine, prod: int) -> None:
    with open_ring(dom0) as other:
        page, bell = raw_ring(dom0)
        page[0:4] = prod.to_bytes(4, "little")
        with suppress(BrokenPipeError):  # its thread may not have slept yet
            bell.send(b"x")
        bell.settimeout(10)
        assert bell.recv(1) == b""
        assert int.from_bytes(page[72:76], "little") == 1  # closed
        assert other.hypercall(abi.nr.xen_version, lib.XENVER_version, 0) == VERSION
        page.close()
        bell.close()


def test_a_doorbell_that_never_stops(dom0: Process) -> None:
    with open_ring(dom0) as other:
        page, bell = raw_ring(dom0)
        bell.setblocking(False)
        for _ in range(2000):
            try:
                bell.send(b"x" * 1000)
            except BlockingIOError:
                pass
        assert other.hypercall(abi.nr.xen_version, lib.XENVER_version, 0) == VERSION
        page.close()
        bell.close()


def test_words_of_the_other_side(dom0: Process) -> None:
    """rsp_prod, server_waits and closed are only written by hyper: what a client writes there confuses the
    client.
    """
    page, bell = raw_ring(dom0)
    page[64:128] = b"\xff" * 64
    page[128:136] = abi.nr.xen_version.to_bytes(8, "little")
    page[0:4] = (1).to_bytes(4, "little")
    bell.send(b"x")
    deadline = time.monotonic() + 10
    while int.from_bytes(page[64:68], "little") != 1:
        assert time.monotonic() < deadline
    assert int.from_bytes(page[176:184], "little") == VERSION
    page.close()
    bell.close()


def test_the_page_cannot_be_cut_short(dom0: Process) -> None:
    ret, memfd, doorbell = dom0.connection.open_ring()
    assert ret == 0
    for nbytes in (0, 1 << 20):
        with pytest.raises(OSError):
            os.ftruncate(memfd, nbytes)
    os.close(memfd)
    os.close(doorbell)
