"""Process DomUs that lie in every way: nobody else's frames, nobody stalled, nothing left.

The host of each test counts frames, ports, grants, rings, banks and connections at its end.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import random
import resource
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

import hyper.guest
from hyper.guest import GrantCopy, GrantError, Hypervisor, HypervisorGone, abi
from hyper.public import wire
from hyper.public.errors import XenErrno, XenError
from hyper.public.packets import close_fds, receive_packet, send_packet
from tests.process_kit import PATIENCE, Host, process_host

lib = abi.lib
SELF = lib.DOMID_SELF
VERSION = 4 << 16 | 17
HELLO = wire.encode_request(wire.Hello(wire.VERSION))


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with process_host(tmp_path / "control") as host:
        yield host
        with trio.fail_after(PATIENCE):  # whatever happened, Dom0 is served
            assert await host.hyp.hypercall(abi.nr.xen_version, 0, 0) == VERSION


async def refusal(guest: Hypervisor, nr: int, *args: int) -> int:
    """The errno of a hypercall that must be refused."""
    with pytest.raises(XenError) as error:
        await guest.hypercall(nr, *args)
    return error.value.errno


async def exchange(sock: socket.socket, packet: bytes) -> dict[str, Any]:
    await send_packet(sock, packet)
    answer, fds = await receive_packet(sock)
    close_fds(fds)
    return wire.decode_reply(answer)


# --- the control socket


@pytest.mark.parametrize(
    "request_",
    [
        wire.Adopt(1, 1 << 20),
        wire.Bank(0),
        wire.Bank(1),
        wire.Statistics(),
        wire.EngineStatistics(0),
        wire.FdGet("x"),
        wire.FdDel("x"),
    ],
    ids=lambda request: type(request).__name__,
)
async def test_requests_of_dom0(host: Host, request_: wire.Request) -> None:
    _, sock = await host.create()
    with sock:
        sock.setblocking(False)
        await exchange(sock, HELLO)
        assert await exchange(sock, wire.encode_request(request_)) == {"ret": -XenErrno.EPERM}


@pytest.mark.parametrize("packet", [b"", b"\xc1", b"x" * 5000, HELLO[:-1], wire.encode_request(wire.Ring())])
async def test_what_is_no_frame_ends_the_domain(host: Host, packet: bytes) -> None:
    image, sock = await host.create()
    with sock:
        sock.setblocking(False)
        await send_packet(sock, packet)
    with trio.fail_after(PATIENCE):
        while not (await host.xc.getdomaininfo(image.domid)).shutdown:
            await trio.sleep(0.001)


async def test_descriptors_do_not_reach_hyper(host: Host) -> None:
    """The last close of a TCP socket that lingers waits for as long as its sender has said."""
    _, sock = await host.create()
    spare = os.memfd_create("spare")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [spare]))]
    with sock:
        if not _kernel_can_refuse():
            pytest.skip("Linux before 6.16 can't refuse descriptors")
        with pytest.raises(PermissionError):
            sock.sendmsg([HELLO], rights)
    os.close(spare)


def _kernel_can_refuse() -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            ours.setsockopt(socket.SOL_SOCKET, 83, 0)
        except OSError:
            return False
    return True


async def test_floods_do_not_starve_dom0(host: Host) -> None:
    """Three domains send requests as fast as they can and read no answer."""
    socks = [(await host.create())[1] for _ in range(3)]
    packet = wire.encode_request(wire.Hypercall(abi.nr.xen_version, (0, 0)))
    for sock in socks:
        sock.setblocking(False)
        await exchange(sock, HELLO)
    worst = 0.0
    for _ in range(100):
        for sock in socks:
            for _ in range(20):
                try:
                    sock.send(packet)
                except BlockingIOError:
                    break
        began = time.perf_counter()
        await host.hyp.hypercall(abi.nr.xen_version, 0, 0)
        worst = max(worst, time.perf_counter() - began)
    assert worst < 2
    for sock in socks:
        sock.close()


# --- hypercalls


async def test_privileged_calls(host: Host) -> None:
    async with host.guest() as guest, host.guest() as victim:
        zero = guest.arena.alloc(4096)
        assert await refusal(guest, abi.nr.domctl, zero.addr) == lib.XEN_EPERM
        assert await refusal(guest, abi.nr.sysctl, zero.addr) == lib.XEN_EPERM
        assert await refusal(guest, abi.nr.platform_op, zero.addr) == lib.XEN_EPERM
        with guest.arena.new("struct sched_remote_shutdown", domain_id=victim.domid) as buf:
            assert (
                await refusal(guest, abi.nr.sched_op, lib.SCHEDOP_remote_shutdown, buf.addr) == lib.XEN_EPERM
            )
        with guest.arena.new("struct mmuext_op", cmd=lib.MMUEXT_PIN_L4_TABLE) as buf:
            for domid in (0, victim.domid, SELF):
                assert await refusal(guest, abi.nr.mmuext_op, buf.addr, 1, 0, domid)
        zero.free()


@pytest.mark.parametrize("op", ["current_reservation", "maximum_reservation", "maximum_gpfn"])
async def test_questions_about_the_memory_of_others(host: Host, op: str) -> None:
    async with host.guest() as guest, host.guest() as victim:
        for domid in (0, victim.domid):
            with guest.arena.new("struct xen_memory_domain", domid=domid) as buf:
                assert (
                    await refusal(guest, abi.nr.memory_op, getattr(lib, f"XENMEM_{op}"), buf.addr)
                    == lib.XEN_EPERM
                )


async def test_memory_of_others_and_more_of_its_own(host: Host) -> None:
    async with host.guest() as guest, host.guest() as victim:
        list_, before = guest.arena.alloc(64), await host.xc.getdomaininfo(guest.domid)
        for domid in (0, victim.domid, guest.domid, SELF):
            for op in (
                lib.XENMEM_populate_physmap,
                lib.XENMEM_increase_reservation,
                lib.XENMEM_decrease_reservation,
            ):
                fields = {"extent_start": list_.addr, "nr_extents": 4, "domid": domid}
                with guest.arena.new("struct xen_memory_reservation", **fields) as buf:
                    assert await guest.hypercall(abi.nr.memory_op, op, buf.addr) == 0  # extents done
            fields = {"domid": domid, "nr_frames": 1, "frame_list": list_.addr, "type": 1}
            with guest.arena.new("struct xen_mem_acquire_resource", **fields) as buf:
                assert (
                    await refusal(guest, abi.nr.memory_op, lib.XENMEM_acquire_resource, buf.addr)
                    == lib.XEN_EPERM
                )
        assert (await host.xc.getdomaininfo(guest.domid)).tot_pages == before.tot_pages
        list_.free()


@pytest.mark.parametrize("handle", [0, 1 << 20, (1 << 20) - 1, 1 << 63, (1 << 64) - 8])
async def test_handles_out_of_the_arena(host: Host, handle: int) -> None:
    async with host.guest() as guest:
        assert await refusal(guest, abi.nr.event_channel_op, lib.EVTCHNOP_send, handle) == lib.XEN_EFAULT
        assert await refusal(guest, abi.nr.grant_table_op, lib.GNTTABOP_copy, handle, 1) == lib.XEN_EFAULT


async def test_its_arena_is_its_own_and_given_once(host: Host) -> None:
    async with host.guest() as guest:
        for nbytes in (-1, 1 << 20):
            with pytest.raises(OSError):
                os.ftruncate(guest.arena.fd, guest.arena.bytes + nbytes)
        fields, fds = await guest._request(wire.MakeArena(1 << 20))
        assert (fields["ret"], fds) == (-XenErrno.EBUSY, [])


@pytest.mark.parametrize("nbytes", [0, 1, 4095, (16 << 20) + 4096, 1 << 63])
async def test_arenas_of_no_sensible_size(host: Host, nbytes: int) -> None:
    _, sock = await host.create()
    with sock:
        sock.setblocking(False)
        await exchange(sock, HELLO)
        answer = await exchange(sock, wire.encode_request(wire.MakeArena(nbytes)))
        assert answer == {"ret": -XenErrno.EINVAL}


# --- grants


async def test_mapping_is_not_for_it(host: Host) -> None:
    async with host.guest() as guest, host.guest() as lender:
        gref = lender.grant_table.grant_access(guest.domid, lender.memory.alloc().mfn)
        with pytest.raises(GrantError) as error:
            await guest.map_grant(lender.domid, gref)
        assert error.value.status == lib.GNTST_permission_denied


async def test_copies_of_what_it_was_not_granted(host: Host) -> None:
    async with host.guest() as guest, host.guest() as victim, host.guest() as friend:
        secret, local = victim.memory.alloc(), guest.arena.alloc(4096, align=4096)
        secret.view[:6] = b"secret"
        gref = victim.grant_table.grant_access(friend.domid, secret.mfn)
        readonly = victim.grant_table.grant_access(guest.domid, victim.memory.alloc().mfn, readonly=True)
        mine = (SELF, local.addr >> 12)
        statuses = await guest.grant_copy(
            GrantCopy((victim.domid, gref), mine, 6),
            GrantCopy((victim.domid, lib.GNTTAB_RESERVED_XENSTORE), mine, 6),
            GrantCopy(mine, (victim.domid, readonly), 6),
            GrantCopy((0, 8), mine, 6),
            GrantCopy((4000, 8), mine, 6),
            GrantCopy((SELF, 1 << 30), mine, 6),
            GrantCopy(mine, (SELF, (1 << 20) >> 12), 6),
            GrantCopy(mine, mine, 4096, 1),
            GrantCopy(mine, mine, 4096, 0, 0xFFFF),
        )
        assert all(status < 0 for status in statuses), statuses
        assert not any(local.view)
        with guest.arena.alloc(64) as buf:  # a foreign frame by its number instead of a grant
            op = abi.struct("struct gnttab_copy", buf.view)
            GrantCopy(mine, mine, 6).fill(op)
            op.source.domid, op.source.u.gmfn = victim.domid, secret.mfn
            await guest.hypercall(abi.nr.grant_table_op, lib.GNTTABOP_copy, buf.addr, 1)
            assert op.status == lib.GNTST_permission_denied
        local.free()


async def test_grants_of_frames_that_are_not_its_own(host: Host) -> None:
    """It writes any number it likes into its table; Dom0 is given none of these frames."""
    other = await host.xc.domain_create(uuid4(), 1)
    host.domids.append(other)
    await host.xc.max_mem(other, 64)
    (foreign,) = await host.xc.populate_physmap(other, [0], 0)
    async with host.guest() as guest, host.guest() as victim:
        assert guest.process_domain and victim.process_domain
        mine, theirs = guest.process_domain, victim.process_domain
        for mfn in (
            foreign, 0, 256, 1 << 24, (1 << 32) - 1, theirs.first_free_mfn, theirs.grant_mfn,
            mine.base_mfn - 1, mine.base_mfn + mine.nr_frames,
        ):  # fmt: skip
            gref = guest.grant_table.grant_access(0, mfn)
            with pytest.raises(GrantError) as error:
                await host.hyp.map_grant(guest.domid, gref)
            assert error.value.status == lib.GNTST_bad_page
        for mfn in (mine.shared_info_mfn, mine.grant_mfn):  # what hyper writes to is not for others to write
            gref = guest.grant_table.grant_access(0, mfn)
            with pytest.raises(GrantError):
                await host.hyp.map_grant(guest.domid, gref)


async def test_a_table_full_of_noise(host: Host) -> None:
    """Some entries are good by chance; all of them change while some are in use."""
    async with host.guest() as guest:
        start = guest.process_domain
        assert start
        table = guest.frames(start.grant_mfn, start.nr_grant_frames)
        entries = abi.struct("struct grant_entry_v1", table)
        noise = random.Random(1)
        mapped = 0
        for _ in range(20):
            table[:] = noise.randbytes(len(table))
            for gref in range(0, 512, 3):
                frame = start.base_mfn + noise.randrange(-8, start.nr_frames + 8)
                lib.grant_entry_set(entries + gref, noise.choice([0, 0, 7]), frame, noise.randrange(2))
            for gref in range(0, 512, 21):
                try:
                    mapping = await host.hyp.map_grant(guest.domid, gref)
                except GrantError:
                    continue
                assert 0 <= mapping.mfn - start.base_mfn < start.nr_frames
                mapped += 1
                table[:] = noise.randbytes(len(table))
                await mapping.close()
        assert mapped


async def test_an_entry_that_changes_while_it_is_used(host: Host) -> None:
    """What is mapped stays mapped, whatever the entry says later."""
    async with host.guest() as guest:
        page, other = guest.memory.alloc(), guest.memory.alloc()
        page.view[:4], other.view[:4] = b"page", b"othr"
        gref = guest.grant_table.grant_access(0, page.mfn)
        mapping = await host.hyp.map_grant(guest.domid, gref)
        lib.grant_entry_set(guest.grant_table._table + gref, 0, other.mfn, 0)
        again = await host.hyp.map_grant(guest.domid, gref)
        assert (again.mfn, bytes(again.view[:4])) == (page.mfn, b"page")
        await mapping.close()
        await again.close()


# --- its bank


async def test_the_bank_cannot_be_resized_and_holds_nothing_else(host: Host) -> None:
    _, sock = await host.create()
    with sock:
        sock.setblocking(False)
        await send_packet(sock, HELLO)
        answer, fds = await receive_packet(sock)
        (bank,) = fds
        process = wire.decode_reply(answer)["process"]
        assert os.fstat(bank).st_size == process["nr_frames"] << 12
        for nbytes in (0, 1 << 40):
            with pytest.raises(OSError):
                os.ftruncate(bank, nbytes)
        with pytest.raises(OSError):
            fcntl.fcntl(bank, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        os.close(bank)


async def test_holes_in_the_bank_and_the_arena(host: Host) -> None:
    """Memory it has given back to the host reads as zero, for all."""
    libc = ctypes.CDLL(None, use_errno=True)
    async with host.guest() as guest:
        page = guest.memory.alloc()
        page.view[:4] = b"data"
        gref = guest.grant_table.grant_access(0, page.mfn)
        async with await host.hyp.map_grant(guest.domid, gref) as mapping:
            hole = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
            nbytes = ctypes.c_long(1 << 20)
            assert libc.fallocate(guest.arena.fd, hole, ctypes.c_long(0), nbytes) == 0
            assert bytes(mapping.view[:4]) == b"data"
            assert await guest.hypercall(abi.nr.xen_version, 0, 0) == VERSION


async def test_noise_in_shared_info(host: Host) -> None:
    async with host.guest() as guest:
        assert guest.process_domain
        view = guest.frame(guest.process_domain.shared_info_mfn)
        for seed in range(20):
            view[:] = random.Random(seed).randbytes(4096)
            await host.xc.settimeoffset(guest.domid, seed)
            await host.xc.domain_pause(guest.domid)
            await host.xc.domain_unpause(guest.domid)
        assert await guest.hypercall(abi.nr.xen_version, 0, 0) == VERSION


# --- its ports


async def test_the_ports_of_others(host: Host) -> None:
    async with host.guest() as guest, host.guest() as victim, host.guest() as friend:
        waits = await victim.alloc_port(friend.domid)
        for domid, port in ((victim.domid, waits.number), (0, 1), (victim.domid, 900), (4000, 1)):
            with pytest.raises(XenError):
                await guest.bind_interdomain(domid, port)
        with pytest.raises(XenError) as error:
            await guest.alloc_unbound(victim.domid, guest.domid)
        assert error.value.errno == lib.XEN_EPERM
        for op, ctype in (("status", "status"), ("reset", "reset")):
            with guest.arena.new(f"struct evtchn_{ctype}", dom=victim.domid) as buf:
                command = getattr(lib, f"EVTCHNOP_{op}")
                assert await refusal(guest, abi.nr.event_channel_op, command, buf.addr) == lib.XEN_EPERM
        with pytest.raises(XenError):
            await guest.open_port(900)
        with pytest.raises(XenError):
            await guest.bind_virq(lib.VIRQ_DOM_EXC, 1)


async def test_descriptors_of_its_ports(host: Host) -> None:
    """Blocking, full, shut down or closed: events of others are delivered all the same."""
    async with host.guest() as guest, host.guest() as other:
        mine, theirs = await guest.alloc_port(0), await other.alloc_port(0)
        to_guest = await host.hyp.bind_interdomain(guest.domid, mine.number)
        to_other = await host.hyp.bind_interdomain(other.domid, theirs.number)
        os.set_blocking(mine.upcall_fd, True)
        os.set_blocking(mine.doorbell_fd, True)
        upcall = socket.socket(fileno=os.dup(mine.upcall_fd))
        with pytest.raises(OSError):
            upcall.send(b"is not read")
        upcall.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        os.eventfd_write(mine.doorbell_fd, (1 << 64) - 2)
        for step in range(3000):
            to_guest.notify()
            if step == 2000:
                upcall.shutdown(socket.SHUT_RDWR)
        upcall.close()
        with trio.fail_after(PATIENCE):
            await to_other.wait()
            to_other.notify()
            await theirs.wait()
            theirs.notify()
            await to_other.wait()


async def test_all_ports_there_are(host: Host) -> None:
    async with host.guest() as guest:
        ports = []
        with pytest.raises(XenError) as error:
            while True:
                ports.append(await guest.alloc_port(0))
        assert error.value.errno == lib.XEN_ENOSPC
        assert len(ports) == 128
        await ports[7].close()
        await guest.alloc_port(0)


# --- its rings


async def test_rings_are_few(host: Host) -> None:
    async with host.guest() as guest:
        managers = [guest.hypercall_ring(64) for _ in range(5)]
        for manager in managers[:4]:
            await manager.__aenter__()
        with pytest.raises(XenError) as error:
            await managers[4].__aenter__()
        assert error.value.errno == lib.XEN_ENOSPC
        for manager in managers[:4]:
            await manager.__aexit__(None, None, None)


async def test_calls_without_end_do_not_keep_a_domain_alive(host: Host) -> None:
    """Its ring serves the longest call there is, over and over, while it is destroyed."""
    async with host.guest() as guest, guest.hypercall_ring() as ring, trio.open_nursery() as nursery:
        copies = guest.arena.alloc(8000 * abi.sizeof("struct gnttab_copy"))
        page = guest.arena.alloc(4096, align=4096)
        ops = abi.struct("struct gnttab_copy", copies.view)
        for index in range(8000):
            GrantCopy((SELF, page.addr >> 12), (SELF, page.addr >> 12), 4096).fill(ops[index])

        def work() -> None:
            with pytest.raises((HypervisorGone, XenError)):
                while True:
                    ring.hypercall(abi.nr.grant_table_op, lib.GNTTABOP_copy, copies.addr, 8000)

        nursery.start_soon(trio.to_thread.run_sync, work)
        await trio.sleep(0.02)
        began = time.perf_counter()
        await host.xc.domain_destroy(guest.domid)
        assert time.perf_counter() - began < 1
        await host.destroy_all()
        page.free()


async def test_hanging_up_on_one_who_hangs_up(host: Host) -> None:
    """A socket that had just been closed was shut down: an error that could end hyper."""
    for _ in range(30):
        image, sock = await host.create(64)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.xc.domain_destroy, image.domid)
            sock.close()


async def test_adoption_without_descriptors_left(host: Host) -> None:
    """Whoever asks is told; hyper goes on, and the domain is there to be destroyed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(1, 5):  # it needs five
        domid = await host.xc.domain_create(uuid4(), 1)
        host.domids.append(domid)
        await host.xc.max_mem(domid, 4096)
        resource.setrlimit(resource.RLIMIT_NOFILE, (_first_free_fd() + spare, hard))
        try:
            with pytest.raises(XenError):
                await host.hyp.adopt(domid, 1 << 20)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await host.info(domid)


def _first_free_fd() -> int:
    fd = os.dup(0)
    os.close(fd)
    return fd


async def test_a_process_that_just_dies(host: Host) -> None:
    """With everything open: a mapped grant, ports, rings, a call under way."""
    image, sock = await host.create()
    with pytest.raises(HypervisorGone):
        async with hyper.guest.attach(sock, 1 << 20) as guest:
            gref = guest.grant_table.grant_access(0, guest.memory.alloc().mfn)
            mapping = await host.hyp.map_grant(guest.domid, gref)
            port = await guest.alloc_port(0)
            far = await host.hyp.bind_interdomain(guest.domid, port.number)
            async with guest.hypercall_ring() as ring:
                ring.hypercall(abi.nr.xen_version, 0, 0)
                sock.shutdown(socket.SHUT_RDWR)
                await guest.wait_gone()
                await guest.hypercall(abi.nr.xen_version, 0, 0)
    with trio.fail_after(PATIENCE):
        while not (await host.xc.getdomaininfo(image.domid)).shutdown:
            await trio.sleep(0.001)
        await far.wait()
    mapping.view[:1] = b"x"
    await mapping.close()
    await far.close()
