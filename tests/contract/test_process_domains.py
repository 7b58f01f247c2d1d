"""Process domains other than Dom0: their making, memory, grants, events, pausing and end."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import trio

import hyper.guest
from dom0.libxc import process
from dom0.libxc.process import ProcessSpec
from hyper.guest import GrantCopy, GrantError, Hypervisor, HypervisorGone, abi
from hyper.public.errors import (
    BadArgument,
    Busy,
    NoFreeSlot,
    NoSuchDomain,
    NotPrivileged,
    OutOfFrames,
    OutOfRange,
)
from tests.conftest import open_fds
from tests.process_kit import MEMORY_KIB, PATIENCE, Host, process_host

lib = abi.lib
SELF = lib.DOMID_SELF


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with process_host(tmp_path / "control") as host:
        yield host


async def shut_down(guest: Hypervisor, reason: int) -> None:
    with guest.arena.new("struct sched_shutdown", reason=reason) as buf:
        await guest.hypercall(abi.nr.sched_op, lib.SCHEDOP_shutdown, buf.addr)


async def wait_for_shutdown(host: Host, domid: int) -> int:
    with trio.fail_after(PATIENCE):
        while not (info := await host.xc.getdomaininfo(domid)).shutdown:
            await trio.sleep(0.001)
    return info.shutdown_reason


# --- making


async def test_what_a_process_finds(host: Host) -> None:
    image, sock = await host.create()
    async with hyper.guest.attach(sock) as guest:
        start = guest.process_domain
        assert start is not None
        assert guest.domid == image.domid
        places = [
            start.shared_info_mfn,
            start.grant_mfn,
            start.store_mfn,
            start.console_mfn,
            start.first_free_mfn,
        ]
        assert places[0] == start.base_mfn and places == sorted(places)
        assert (image.store_mfn, image.store_port) == (start.store_mfn, start.store_port)
        assert (image.console_mfn, image.console_port) == (start.console_mfn, start.console_port)
        assert image.nr_pages == MEMORY_KIB // 4
        assert guest.memory.free_frames == image.nr_pages - 2
        info = await host.xc.getdomaininfo(image.domid)
        assert (info.tot_pages, info.nr_online_vcpus, info.shared_info_frame) == (
            image.nr_pages, 1, start.shared_info_mfn,
        )  # fmt: skip
        with pytest.raises(OutOfRange):
            guest.frame(start.base_mfn - 1)
        with pytest.raises(OutOfRange):
            guest.frame(start.base_mfn + start.nr_frames)


async def test_time_is_published_in_its_shared_info(host: Host) -> None:
    async with host.guest() as guest:
        assert guest.process_domain
        shared = abi.struct("struct shared_info", guest.frame(guest.process_domain.shared_info_mfn))
        assert shared.wc_sec > 0
        assert shared.vcpu_info[0].time.tsc_to_system_mul


@pytest.mark.parametrize("nbytes", [0, 4095, 4096, 15 << 12, (1 << 30) + 4096, 1 << 60])
async def test_banks_of_no_sensible_size(host: Host, nbytes: int) -> None:
    domid = await host.xc.domain_create(uuid4(), 1)
    host.domids.append(domid)
    with pytest.raises(BadArgument):
        await host.hyp.adopt(domid, nbytes)


async def test_who_cannot_be_adopted(host: Host) -> None:
    image, sock = await host.create()
    with sock:
        with pytest.raises(BadArgument):
            await host.hyp.adopt(0, 1 << 20)
        with pytest.raises(NoSuchDomain):
            await host.hyp.adopt(4000, 1 << 20)
        with pytest.raises(BadArgument):
            await host.hyp.adopt(image.domid, 1 << 20)
        domid = await host.xc.domain_create(uuid4(), 1)
        host.domids.append(domid)
        with pytest.raises(OutOfFrames):  # no limit of memory yet
            await host.hyp.adopt(domid, 1 << 20)
        await host.xc.max_mem(domid, 1 << 20)
        with pytest.raises(OutOfFrames):  # more than the host has
            await host.hyp.adopt(domid, 128 << 20)
        await host.xc.populate_physmap(domid, range(4), 0)
        with pytest.raises(Busy):
            await host.hyp.adopt(domid, 1 << 20)


async def test_memory_of_banks_is_the_hosts(host: Host) -> None:
    """A bank is charged to the host's memory, and comes back with its domain."""
    before = (await host.xc.physinfo()).free_pages
    image, sock = await host.create()
    taken = before - (await host.xc.physinfo()).free_pages
    assert image.nr_pages <= taken <= image.nr_pages + 8
    with sock:
        await host.xc.domain_destroy(image.domid)
    await host.destroy_all()
    assert (await host.xc.physinfo()).free_pages == before


def test_a_bank_has_exactly_the_memory_asked_for() -> None:
    for kib in (64, 4096, 65536, 65540, 999 << 10):
        frames = process.bank_bytes(kib) >> 12
        assert frames - 1 - min(max(-(-frames // 512), 2), 64) == kib // 4


# --- memory and grants


async def test_alloc_and_free(host: Host) -> None:
    async with host.guest() as guest:
        total = guest.memory.free_frames
        first, second, third = guest.memory.alloc(), guest.memory.alloc(3), guest.memory.alloc()
        second.page(2)[:3] = b"abc"
        second.free()
        second.free()
        with guest.memory.alloc(2) as again:
            assert again.mfn == second.mfn
        first.free()
        third.free()
        assert guest.memory.free_frames == total
        with guest.memory.alloc(total) as everything:
            assert not any(everything.view)
        with pytest.raises(OutOfFrames):
            guest.memory.alloc(total + 1)


async def test_dom0_maps_what_it_is_granted(host: Host) -> None:
    async with host.guest() as guest, host.guest() as other:
        page, theirs = guest.memory.alloc(), other.memory.alloc()
        page.view[:5], theirs.view[:5] = b"hello", b"other"
        gref = guest.grant_table.grant_access(0, page.mfn)
        mapping = await host.hyp.map_grant(guest.domid, gref)
        their_mapping = await host.hyp.map_grant(other.domid, other.grant_table.grant_access(0, theirs.mfn))
        assert (bytes(mapping.view[:5]), bytes(their_mapping.view[:5])) == (b"hello", b"other")
        mapping.view[:5] = b"world"
        assert bytes(page.view[:5]) == b"world"
        assert guest.grant_table.is_used(gref)
        assert not guest.grant_table.end_access(gref)
        await mapping.close()
        await their_mapping.close()
        assert guest.grant_table.end_access(gref)
        with pytest.raises(GrantError):
            await host.hyp.map_grant(guest.domid, gref)


async def test_the_rings_are_granted_from_the_start(host: Host) -> None:
    async with host.guest() as guest:
        assert guest.process_domain
        for gref, mfn in (
            (lib.GNTTAB_RESERVED_XENSTORE, guest.process_domain.store_mfn),
            (lib.GNTTAB_RESERVED_CONSOLE, guest.process_domain.console_mfn),
        ):
            async with await host.hyp.map_grant(guest.domid, gref) as mapping:
                mapping.view[:4] = b"ring"
                assert bytes(guest.frame(mfn)[:4]) == b"ring"


async def test_the_table_runs_full(host: Host) -> None:
    async with host.guest() as guest:
        page, total = guest.memory.alloc(), guest.grant_table.free
        grefs = [guest.grant_table.grant_access(0, page.mfn) for _ in range(total)]
        with pytest.raises(NoFreeSlot):
            guest.grant_table.grant_access(0, page.mfn)
        assert total >= guest.memory.nr_frames // 2
        mapping = await host.hyp.map_grant(guest.domid, grefs[-1])
        await mapping.close()
        assert all(guest.grant_table.end_access(gref) for gref in grefs)
        with pytest.raises(ValueError):
            guest.grant_table.end_access(grefs[0])


async def test_copies_between_guests(host: Host) -> None:
    """A process copies from a grant into its arena, and back into another's."""
    async with host.guest() as lender, host.guest() as user, host.guest() as third:
        page, target = lender.memory.alloc(), third.memory.alloc()
        page.view[:] = os.urandom(4096)
        readable = lender.grant_table.grant_access(user.domid, page.mfn, readonly=True)
        writable = third.grant_table.grant_access(user.domid, target.mfn)
        local = user.arena.alloc(4096, align=4096)
        mine = (SELF, local.addr >> 12)
        statuses = await user.grant_copy(
            GrantCopy((lender.domid, readable), mine, 4000, 96, 96),
            GrantCopy(mine, (third.domid, writable), 4096),
            GrantCopy((lender.domid, readable), (third.domid, writable), 96),
            GrantCopy(mine, (lender.domid, readable), 1),
            GrantCopy((lender.domid, 4000), mine, 1),
        )
        assert statuses == [0, 0, 0, lib.GNTST_general_error, lib.GNTST_bad_gntref]
        assert bytes(target.view) == bytes(page.view)
        local.free()


async def test_its_ring_for_hot_calls(host: Host) -> None:
    async with host.guest() as guest, guest.hypercall_ring() as ring:
        assert ring.hypercall(abi.nr.xen_version, lib.XENVER_version, 0) == 4 << 16 | 17
        with pytest.raises(NotPrivileged):
            ring.hypercall(abi.nr.domctl, ring.window_addr)


async def test_map_bank_of_other_domains(host: Host) -> None:
    async with host.guest() as guest:
        await host.hyp.map_bank(guest.domid)
        await host.hyp.map_bank(guest.domid)
        assert guest.process_domain
        page = guest.memory.alloc()
        page.view[:2] = b"hi"
        assert bytes(host.hyp.frame(page.mfn)[:2]) == b"hi"
        await host.hyp.map_bank(0)
        with pytest.raises(NoSuchDomain):
            await host.hyp.map_bank(4000)


# --- events


async def test_events_both_ways(host: Host) -> None:
    async with host.guest() as guest:
        assert guest.process_domain
        port = await guest.open_port(guest.process_domain.store_port)
        far = await host.hyp.bind_interdomain(guest.domid, port.number)
        with trio.fail_after(PATIENCE):
            await far.wait()  # a fresh binding is pending
            for _ in range(3):
                far.notify()
                await port.wait()
                port.notify()
                await far.wait()
            mine = await guest.alloc_port(0)
            bound = await host.hyp.bind_interdomain(guest.domid, mine.number)
            await bound.wait()
            bound.notify()
            await mine.wait()
        await mine.close()
        await bound.close()
        await far.close()


async def test_events_sent_before_the_port_was_opened(host: Host) -> None:
    image, sock = await host.create()
    far = await host.hyp.bind_interdomain(image.domid, image.console_port)
    far.notify()
    await trio.sleep(0.01)
    async with hyper.guest.attach(sock) as guest:
        port = await guest.open_port(image.console_port)
        with trio.fail_after(PATIENCE):
            await port.wait()
        with trio.move_on_after(0.02) as scope:
            await port.wait()
        assert scope.cancelled_caught
    await far.close()


async def test_a_thousand_notifications_nobody_reads(host: Host) -> None:
    """The socket of a client that does not read fills up; nobody waits for it, and it is pending once."""
    async with host.guest() as guest:
        mine = await guest.alloc_port(0)
        far = await host.hyp.bind_interdomain(guest.domid, mine.number)
        for _ in range(3000):
            far.notify()
            await host.hyp.hypercall(abi.nr.xen_version, 0, 0) if _ % 100 == 0 else None
        with trio.fail_after(PATIENCE):
            await mine.wait()
        await far.close()


# --- pausing


async def test_a_paused_domain_is_held(host: Host) -> None:
    image, sock = await host.create(unpause=False)
    far = await host.hyp.bind_interdomain(image.domid, image.store_port)
    async with hyper.guest.attach(sock) as guest, trio.open_nursery() as nursery:
        assert not (await host.xc.getdomaininfo(image.domid)).running
        with trio.fail_after(PATIENCE):
            await far.wait()
            port = await guest.open_port(image.store_port)
            calls: list[int] = []

            async def call() -> None:
                calls.append(await guest.hypercall(abi.nr.xen_version, 0, 0))

            nursery.start_soon(call)
            port.notify()
            far.notify()
            with trio.move_on_after(0.05):
                await port.wait()
                calls.append(-1)
            with trio.move_on_after(0.02):
                await far.wait()
                calls.append(-2)
            assert calls == []
            await host.xc.domain_unpause(image.domid)
            await port.wait()
            await far.wait()
            while not calls:
                await trio.sleep(0.001)
    await far.close()


async def test_pausing_holds_calls_of_rings(host: Host) -> None:
    async with host.guest() as guest, guest.hypercall_ring() as ring:
        await host.xc.domain_pause(guest.domid)
        done = trio.Event()

        async def call() -> None:
            await trio.to_thread.run_sync(ring.hypercall, abi.nr.xen_version, 0, 0)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            with trio.move_on_after(0.05):
                await done.wait()
            assert not done.is_set()
            await host.xc.domain_unpause(guest.domid)


# --- the end


@pytest.mark.parametrize("reason", [lib.SHUTDOWN_poweroff, lib.SHUTDOWN_reboot, lib.SHUTDOWN_crash])
async def test_shutdown(host: Host, reason: int) -> None:
    async with await host.hyp.bind_virq(lib.VIRQ_DOM_EXC) as news, host.guest() as guest:
        await shut_down(guest, reason)
        assert await wait_for_shutdown(host, guest.domid) == reason
        with trio.fail_after(PATIENCE):
            await news.wait()


async def test_a_lost_connection_is_a_crash(host: Host) -> None:
    image, sock = await host.create()
    sock.close()
    assert await wait_for_shutdown(host, image.domid) == lib.SHUTDOWN_crash
    info = await host.xc.getdomaininfo(image.domid)
    assert (info.running, info.paused) == (False, False)  # it used to say that it runs
    assert "last process is gone" in await host.xc.readconsole()


async def test_the_end_of_a_process_in_order_is_no_crash(host: Host) -> None:
    async with host.guest() as guest:
        await shut_down(guest, lib.SHUTDOWN_poweroff)
    assert await wait_for_shutdown(host, guest.domid) == lib.SHUTDOWN_poweroff


async def test_destroy_hangs_up(host: Host) -> None:
    async with host.guest() as guest, guest.hypercall_ring() as ring:
        ring.hypercall(abi.nr.xen_version, 0, 0)
        await host.xc.domain_destroy(guest.domid)
        with trio.fail_after(PATIENCE):
            assert await guest.wait_gone()
        with pytest.raises(HypervisorGone):
            ring.hypercall(abi.nr.xen_version, 0, 0)
        with pytest.raises(HypervisorGone):
            await guest.hypercall(abi.nr.xen_version, 0, 0)


async def test_a_destroyed_domain_stays_until_its_frames_are_let_go(host: Host) -> None:
    """Whoever has a frame mapped keeps it; afterwards there are zeroes, whatever takes the place."""
    image, sock = await host.create()
    async with hyper.guest.attach(sock) as guest:
        page = guest.memory.alloc()
        page.view[:4] = b"data"
        mapping = await host.hyp.map_grant(guest.domid, guest.grant_table.grant_access(0, page.mfn))
    await host.xc.domain_destroy(image.domid)
    await trio.sleep(0.02)
    assert (await host.xc.getdomaininfo(image.domid)).dying
    assert bytes(mapping.view[:4]) == b"data"
    await mapping.close()
    await host.destroy_all()
    assert bytes(mapping.view[:4]) == bytes(4)
    async with host.guest() as successor:
        other = successor.memory.alloc()
        other.view[:] = b"x" * 4096
        assert bytes(mapping.view[:4]) == bytes(4)


async def live_and_die(host: Host) -> None:
    image, sock = await host.create()
    async with hyper.guest.attach(sock, 1 << 20) as guest:
        page = guest.memory.alloc()
        async with await host.hyp.map_grant(guest.domid, guest.grant_table.grant_access(0, page.mfn)):
            pass
        await guest.open_port(image.store_port)
    await host.destroy_all()


async def test_many_in_turn_leave_nothing(host: Host) -> None:
    gc.collect()
    fds = open_fds()
    for _ in range(10):
        await live_and_die(host)
    await trio.sleep(0.01)
    gc.collect()  # mappings of arenas
    assert open_fds() == fds
    assert host.machine.statistics()["nr_banks"] == 0


async def test_limits_and_handle_survive_the_adoption(host: Host) -> None:
    uuid = uuid4()
    domid = await host.xc.domain_create(uuid, 1)
    host.domids.append(domid)
    await host.xc.max_mem(domid, 8192)
    _, sock = await process.build(host.xc, ProcessSpec(domid, 4096))
    with sock:
        info = await host.xc.getdomaininfo(domid)
        assert (info.handle, info.max_pages, info.paused) == (uuid, 2048, True)
        await host.xc.max_mem(domid, 16384)
        assert (await host.xc.getdomaininfo(domid)).max_pages == 4096
