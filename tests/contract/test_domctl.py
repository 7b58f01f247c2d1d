"""domctl, sysctl, xen_version, console and multicall of the real core, as Xen 4.17's tools see them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from hyper.guest import abi
from hyper.machine import Machine
from hyper.public.errors import XenError
from tests.core_kit import ANY_DOMAIN, Process, lib

CREATE = {
    "max_vcpus": 1,
    "max_evtchn_port": 1023,
    "max_grant_frames": -1,
    "max_maptrack_frames": -1,
    "grant_opts": 1,
}


@pytest.fixture
def guest(dom0: Process) -> Iterator[int]:
    domid = dom0.create(max_vcpus=2)
    yield domid
    dom0.destroy(domid)


# --- the frame of every call


def test_interface_versions(dom0: Process) -> None:
    for nr, ctype in ((abi.nr.domctl, "struct xen_domctl"), (abi.nr.sysctl, "struct xen_sysctl")):
        handle, op = dom0.new(ctype, cmd=3, interface_version=0x14)
        assert dom0.raw(nr, handle) == -lib.XEN_EACCES
        op.interface_version = 0x15
        op.cmd = 77
        assert dom0.raw(nr, handle) == -lib.XEN_ENOSYS
        assert dom0.raw(nr, 0) == -lib.XEN_EFAULT


def test_unknown_hypercalls_and_those_of_cpu_guests(dom0: Process) -> None:
    for nr in (11, 38, 47, 64, 1 << 40):
        assert dom0.raw(nr, 0) == -lib.XEN_ENOSYS
    for nr in (abi.nr.set_trap_table, abi.nr.stack_switch, abi.nr.vcpu_op, abi.nr.iret):
        assert dom0.raw(nr, 0) == -lib.XEN_EPERM


def test_unknown_domains(dom0: Process) -> None:
    for cmd in ("pausedomain", "destroydomain", "max_vcpus", "getvcpuinfo", "scheduler_op"):
        for domid in (999, lib.DOMID_SELF):
            with pytest.raises(XenError) as error:
                dom0.domctl(cmd, domid)
            assert error.value.errno == lib.XEN_ESRCH


# --- creation


def test_ids_go_up_and_are_not_reused_at_once(dom0: Process) -> None:
    first, second = dom0.create(), dom0.create()
    assert second == first + 1
    dom0.destroy(first)
    third = dom0.create()
    assert third == second + 1
    dom0.destroy(second)
    dom0.destroy(third)


def test_a_chosen_id(dom0: Process) -> None:
    assert dom0.create(domid=1234) == 1234
    with pytest.raises(XenError) as error:
        dom0.create(domid=1234)
    assert error.value.errno == lib.XEN_EEXIST
    dom0.destroy(1234)


REFUSED_CREATIONS = [
    ({"flags": lib.XEN_DOMCTL_CDF_hvm}, lib.XEN_EOPNOTSUPP),
    ({"flags": 1 << 30}, lib.XEN_EINVAL),
    ({"flags": lib.XEN_DOMCTL_CDF_hap}, lib.XEN_EINVAL),
    ({"max_vcpus": 0}, lib.XEN_EINVAL),
    ({"max_vcpus": 129}, lib.XEN_EINVAL),
    ({"grant_opts": 0}, lib.XEN_EINVAL),
    ({"grant_opts": 2}, lib.XEN_EINVAL),
    ({"max_grant_frames": 100000}, lib.XEN_EINVAL),
    ({"cpupool_id": 3}, lib.XEN_ENOENT),
]


@pytest.mark.parametrize(("fields", "errno"), REFUSED_CREATIONS)
def test_refused_creations(dom0: Process, fields: dict[str, int], errno: int) -> None:
    with pytest.raises(XenError) as error:
        dom0.domctl("createdomain", ANY_DOMAIN, "createdomain", **(CREATE | fields))
    assert error.value.errno == errno


def test_max_vcpus_must_match(dom0: Process) -> None:
    op = dom0.domctl("createdomain", ANY_DOMAIN, "createdomain", **(CREATE | {"max_vcpus": 3}))
    with pytest.raises(XenError):
        dom0.domctl("max_vcpus", op.domain, "max_vcpus", max=2)
    dom0.domctl("max_vcpus", op.domain, "max_vcpus", max=3)
    assert dom0.domctl("getdomaininfo", op.domain).u.getdomaininfo.max_vcpu_id == 2
    dom0.destroy(op.domain)


def test_many_vcpus(dom0: Process) -> None:
    dom0.destroy(dom0.create(max_vcpus=128))


def test_dom0_cant_be_ended(dom0: Process) -> None:
    for cmd in ("destroydomain", "pausedomain", "unpausedomain"):
        with pytest.raises(XenError) as error:
            dom0.domctl(cmd, 0)
        assert error.value.errno == lib.XEN_EINVAL


def test_fifty_domains_leave_nothing(dom0: Process, machine: Machine) -> None:
    before = machine.statistics()
    for _ in range(50):
        domid = dom0.create(max_vcpus=2)
        dom0.populate(domid, 16)
        dom0.evtchn("alloc_unbound", dom=domid, remote_dom=0)
        dom0.destroy(domid)
    assert machine.statistics() == before


# --- information


def test_a_new_domain(dom0: Process) -> None:
    domid = dom0.create(max_vcpus=2, handle=bytes(range(16)))
    dom0.populate(domid, 5)
    info = dom0.domctl("getdomaininfo", domid).u.getdomaininfo
    assert info.domain == domid
    assert info.flags & 0x1FF == lib.XEN_DOMINF_paused | lib.XEN_DOMINF_blocked
    assert (info.tot_pages, info.max_pages) == (5, 1024)
    assert (info.nr_online_vcpus, info.max_vcpu_id) == (0, 1)
    assert bytes(info.handle) == bytes(range(16))
    assert info.shared_info_frame
    dom0.destroy(domid)


def test_getdomaininfo_answers_for_the_next_domain(dom0: Process) -> None:
    dom0.create(domid=2000)
    assert dom0.domctl("getdomaininfo", 1500).domain == 2000
    for domid, errno in ((2001, lib.XEN_ESRCH), (lib.DOMID_SELF, lib.XEN_EINVAL)):
        with pytest.raises(XenError) as error:
            dom0.domctl("getdomaininfo", domid)
        assert error.value.errno == errno
    dom0.destroy(2000)


def test_the_list(dom0: Process, guest: int) -> None:
    size = abi.sizeof("struct xen_domctl_getdomaininfo")
    handle, view = dom0.buffer(10 * size)
    found = dom0.sysctl("getdomaininfolist", max_domains=10, buffer=handle).num_domains
    infos = abi.struct("struct xen_domctl_getdomaininfo", view)
    assert [infos[i].domain for i in range(found)] == [0, guest]
    assert infos[0].flags & lib.XEN_DOMINF_running
    assert dom0.sysctl("getdomaininfolist", max_domains=1, buffer=handle).num_domains == 1


def test_vcpu_info(dom0: Process, guest: int) -> None:
    op = dom0.domctl("getvcpuinfo", guest, "getvcpuinfo", vcpu=1).u.getvcpuinfo
    assert (op.online, op.blocked, op.running, op.cpu_time) == (0, 0, 0, 0)
    with pytest.raises(XenError) as error:
        dom0.domctl("getvcpuinfo", guest, "getvcpuinfo", vcpu=2)
    assert error.value.errno == lib.XEN_EINVAL


# --- pausing and shutdown


def test_pauses_nest(dom0: Process, guest: int) -> None:
    def paused() -> bool:
        return bool(dom0.domctl("getdomaininfo", guest).u.getdomaininfo.flags & lib.XEN_DOMINF_paused)

    dom0.domctl("pausedomain", guest)
    dom0.domctl("unpausedomain", guest)
    assert paused()
    dom0.domctl("unpausedomain", guest)
    assert not paused()
    with pytest.raises(XenError) as error:
        dom0.domctl("unpausedomain", guest)
    assert error.value.errno == lib.XEN_EINVAL


def test_shutdown_and_resume(dom0: Process, guest: int) -> None:
    def info() -> int:
        return dom0.domctl("getdomaininfo", guest).u.getdomaininfo.flags

    assert info() >> 16 & 255 == 255
    handle, _ = dom0.new("struct sched_remote_shutdown", domain_id=guest, reason=lib.SHUTDOWN_suspend)
    dom0.call(abi.nr.sched_op, lib.SCHEDOP_remote_shutdown, handle)
    deadline = time.monotonic() + 5
    while not info() & lib.XEN_DOMINF_shutdown:
        assert time.monotonic() < deadline
    assert info() >> 16 & 255 == lib.SHUTDOWN_suspend
    dom0.domctl("resumedomain", guest)
    assert not info() & lib.XEN_DOMINF_shutdown
    assert info() >> 16 & 255 == 255


def test_remote_shutdown_of_nobody_and_dom0(dom0: Process) -> None:
    handle, op = dom0.new("struct sched_remote_shutdown", domain_id=999)
    assert dom0.raw(abi.nr.sched_op, lib.SCHEDOP_remote_shutdown, handle) == -lib.XEN_ESRCH
    op.domain_id = 0
    assert dom0.raw(abi.nr.sched_op, lib.SCHEDOP_remote_shutdown, handle) == -lib.XEN_EPERM
    assert dom0.raw(abi.nr.sched_op, lib.SCHEDOP_block, 0) == -lib.XEN_ENOSYS


# --- contexts


def test_a_context_needs_page_tables(dom0: Process, guest: int) -> None:
    context, _ = dom0.buffer(abi.sizeof("struct vcpu_guest_context"))
    for vcpu, errno in ((0, lib.XEN_EINVAL), (9, lib.XEN_EINVAL)):
        with pytest.raises(XenError) as error:
            dom0.domctl("setvcpucontext", guest, "vcpucontext", vcpu=vcpu, ctxt=context)
        assert error.value.errno == errno
    with pytest.raises(XenError) as error:
        dom0.domctl("getvcpucontext", guest, "vcpucontext", vcpu=0, ctxt=context)
    assert error.value.errno == lib.XEN_ENODATA


# --- scheduling


def affinity(dom0: Process, cmd: str, domid: int, bits: int, flags: int) -> int:
    handle, view = dom0.buffer(16)
    view[:] = bits.to_bytes(16, "little")
    op_handle, op = dom0.new(
        "struct xen_domctl", cmd=getattr(lib, f"XEN_DOMCTL_{cmd}"), interface_version=0x15, domain=domid
    )
    for bitmap in (op.u.vcpuaffinity.cpumap_hard, op.u.vcpuaffinity.cpumap_soft):
        bitmap.bitmap, bitmap.nr_bits = handle, 128
    op.u.vcpuaffinity.flags = flags
    dom0.call(abi.nr.domctl, op_handle)
    return int.from_bytes(view, "little")


def test_affinity(dom0: Process, guest: int) -> None:
    assert affinity(dom0, "getvcpuaffinity", guest, 0, lib.XEN_VCPUAFFINITY_HARD) == 2**64 - 1
    assert affinity(dom0, "setvcpuaffinity", guest, 0b1110, lib.XEN_VCPUAFFINITY_HARD) == 0b10
    assert affinity(dom0, "getvcpuaffinity", guest, 0, lib.XEN_VCPUAFFINITY_HARD) == 0b1110
    assert affinity(dom0, "setvcpuaffinity", guest, 0b11, lib.XEN_VCPUAFFINITY_SOFT) == 0b10
    for bits, flags in ((0b100, lib.XEN_VCPUAFFINITY_HARD), (1, 0)):
        with pytest.raises(XenError) as error:
            affinity(dom0, "setvcpuaffinity", guest, bits, flags)
        assert error.value.errno == lib.XEN_EINVAL


def credit(dom0: Process, domid: int, cmd: int, weight: int = 0, cap: int = 0xFFFF) -> tuple[int, int]:
    handle, op = dom0.new(
        "struct xen_domctl", cmd=lib.XEN_DOMCTL_scheduler_op, interface_version=0x15, domain=domid
    )
    arg = op.u.scheduler_op
    arg.sched_id, arg.cmd = lib.XEN_SCHEDULER_CREDIT, cmd
    arg.u.credit.weight, arg.u.credit.cap = weight, cap
    dom0.call(abi.nr.domctl, handle)
    return arg.u.credit.weight, arg.u.credit.cap


def test_weight_and_cap(dom0: Process, guest: int) -> None:
    get, put = lib.XEN_DOMCTL_SCHEDOP_getinfo, lib.XEN_DOMCTL_SCHEDOP_putinfo
    assert credit(dom0, guest, get) == (256, 0)
    credit(dom0, guest, put, weight=512)
    assert credit(dom0, guest, get) == (512, 0)
    credit(dom0, guest, put, cap=50)
    assert credit(dom0, guest, get) == (512, 50)
    with pytest.raises(XenError) as error:
        credit(dom0, guest, lib.XEN_DOMCTL_SCHEDOP_getvcpuinfo)
    assert error.value.errno == lib.XEN_EINVAL


def test_global_scheduler_settings(dom0: Process) -> None:
    handle, op = dom0.new("struct xen_sysctl", cmd=lib.XEN_SYSCTL_scheduler_op, interface_version=0x15)
    arg = op.u.scheduler_op
    arg.sched_id, arg.cmd = lib.XEN_SCHEDULER_CREDIT, lib.XEN_SYSCTL_SCHEDOP_getinfo
    dom0.call(abi.nr.sysctl, handle)
    assert (arg.u.sched_credit.tslice_ms, arg.u.sched_credit.ratelimit_us) == (30, 1000)


# --- the rest of domctl


def test_time(dom0: Process, guest: int) -> None:
    info = dom0.domctl("getdomaininfo", guest).u.getdomaininfo
    shared = abi.struct("struct shared_info", dom0.frame(info.shared_info_frame))
    assert abs(shared.wc_sec - time.time()) < 60
    dom0.domctl("settimeoffset", guest, "settimeoffset", time_offset_seconds=-3600)
    assert abs(shared.wc_sec + 3600 - time.time()) < 60
    assert shared.wc_version % 2 == 0
    tsc = dom0.domctl("gettscinfo", guest).u.tsc_info
    assert 100_000 < tsc.gtsc_khz < 10_000_000
    dom0.domctl("settscinfo", guest, "tsc_info", tsc_mode=2)
    assert dom0.domctl("gettscinfo", guest).u.tsc_info.tsc_mode == 2


def test_address_size(dom0: Process, guest: int) -> None:
    assert dom0.domctl("get_address_size", guest).u.address_size.size == 64
    dom0.domctl("set_address_size", guest, "address_size", size=64)
    for size, errno in ((32, lib.XEN_EOPNOTSUPP), (16, lib.XEN_EINVAL)):
        with pytest.raises(XenError) as error:
            dom0.domctl("set_address_size", guest, "address_size", size=size)
        assert error.value.errno == errno


def test_hypercall_page(dom0: Process, guest: int) -> None:
    [gfn] = dom0.populate(guest, 1)
    dom0.domctl("hypercall_init", guest, "hypercall_init", gmfn=gfn)
    page = dom0.frame(gfn)
    assert page[32 * abi.nr.sched_op : 32 * abi.nr.sched_op + 32].tobytes().count(b"\x0f\x05") == 1
    with pytest.raises(XenError):
        dom0.domctl("hypercall_init", guest, "hypercall_init", gmfn=1 << 40)


def test_frame_kinds(dom0: Process, guest: int) -> None:
    gfns = dom0.populate(guest, 2)
    op, arg = dom0.new("struct mmuext_op", cmd=lib.MMUEXT_PIN_L1_TABLE)
    arg.arg1.mfn = gfns[0]
    dom0.call(abi.nr.mmuext_op, op, 1, 0, guest)
    array, view = dom0.buffer(24)
    kinds = view.cast("Q")
    kinds[0], kinds[1], kinds[2] = gfns[0], gfns[1], 1 << 40
    dom0.domctl("getpageframeinfo3", guest, "getpageframeinfo3", num=3, array=array)
    pinned = lib.XEN_DOMCTL_PFINFO_L1TAB | lib.XEN_DOMCTL_PFINFO_LPINTAB
    assert list(kinds) == [pinned, lib.XEN_DOMCTL_PFINFO_NOTAB, lib.XEN_DOMCTL_PFINFO_XTAB]


# --- the machine


def test_physinfo(dom0: Process, machine: Machine) -> None:
    info = dom0.sysctl("physinfo")
    assert (info.nr_cpus, info.max_cpu_id, info.nr_nodes) == (2, 1, 1)
    assert info.capabilities & lib.XEN_SYSCTL_PHYSCAP_pv
    assert info.free_pages == machine.statistics()["free_frames"]
    assert info.cpu_khz > 100_000
    assert info.hw_cap[0]


def test_cpus_and_nodes(dom0: Process) -> None:
    assert dom0.sysctl("cputopoinfo").num_cpus == 2
    assert dom0.sysctl("numainfo").num_nodes == 1
    assert dom0.sysctl("sched_id").sched_id == lib.XEN_SCHEDULER_CREDIT
    handle, view = dom0.buffer(16)
    assert dom0.sysctl("getcpuinfo", max_cpus=5, info=handle).nr_cpus == 2
    first = list(view.cast("Q"))
    time.sleep(0.02)
    dom0.sysctl("getcpuinfo", max_cpus=5, info=handle)
    assert all(after > before for before, after in zip(first, view.cast("Q")))


def test_the_pool(dom0: Process) -> None:
    pool = dom0.sysctl("cpupool_op", op=lib.XEN_SYSCTL_CPUPOOL_OP_INFO)
    assert (pool.cpupool_id, pool.n_dom, pool.sched_id) == (0, 1, lib.XEN_SCHEDULER_CREDIT)
    with pytest.raises(XenError) as error:
        dom0.sysctl("cpupool_op", op=lib.XEN_SYSCTL_CPUPOOL_OP_INFO, cpupool_id=1)
    assert error.value.errno == lib.XEN_ENOENT


def test_version(dom0: Process) -> None:
    def text(cmd: int, nbytes: int) -> str:
        handle, view = dom0.buffer(nbytes)
        dom0.call(abi.nr.xen_version, cmd, handle)
        return view.tobytes().rstrip(b"\0").decode()

    assert dom0.call(abi.nr.xen_version, lib.XENVER_version) == 4 << 16 | 17
    assert text(lib.XENVER_capabilities, 1024) == "xen-3.0-x86_64 "
    assert text(lib.XENVER_commandline, 1024) == "console=none"
    assert dom0.call(abi.nr.xen_version, lib.XENVER_pagesize) == 4096
    handle, info = dom0.new("struct xen_feature_info")
    dom0.call(abi.nr.xen_version, lib.XENVER_get_features, handle)
    assert info.submap & 1 << lib.XENFEAT_gnttab_map_avail_bits
    info.submap_idx = 1
    assert dom0.raw(abi.nr.xen_version, lib.XENVER_get_features, handle) == -lib.XEN_EINVAL
    assert dom0.raw(abi.nr.xen_version, lib.XENVER_build_id, 0) == -lib.XEN_ENODATA


# --- console


def console(dom0: Process, **fields: int) -> str:
    handle, view = dom0.buffer(100_000)
    op = dom0.sysctl("readconsole", buffer=handle, count=100_000, **fields)
    return view[: op.count].tobytes().decode()


def test_console(dom0: Process, machine: Machine) -> None:
    assert "(XEN) Xen version 4.17" in console(dom0)
    text, view = dom0.buffer(40)
    view[:40] = b"half a line, \x1b[31mred\x07\tand\x00 the rest\n...."[:40]
    dom0.call(abi.nr.console_io, lib.CONSOLEIO_write, 36, text)
    dom0.call(abi.nr.console_io, lib.CONSOLEIO_write, 1, dom0_newline(dom0))
    assert "(d0) half a line, [31mred\tand the rest\n" in console(dom0)
    console(dom0, clear=1)
    assert console(dom0) == ""
    machine.console_write("again")
    assert console(dom0) == "(XEN) again\n"


def dom0_newline(dom0: Process) -> int:
    handle, view = dom0.buffer(1)
    view[0] = 10
    return handle


def test_a_flood_does_not_wash_the_console(dom0: Process) -> None:
    """A domain's text is limited to some 128 KiB a second; the rest is dropped."""
    console(dom0, clear=1)
    handle, view = dom0.buffer(64_000)
    view[:] = (b"x" * 63 + b"\n") * 1000
    before = dom0.sysctl("readconsole").index
    for _ in range(20):
        dom0.call(abi.nr.console_io, lib.CONSOLEIO_write, 64_000, handle)
    after = dom0.sysctl("readconsole", clear=1).index
    assert len(console(dom0)) <= 64 << 10
    assert (after - before) % 2**32 <= 64 << 10


def test_debug_keys(dom0: Process, guest: int) -> None:
    handle, view = dom0.buffer(8)
    view[:6] = b"hqremT"
    dom0.sysctl("debug_keys", keys=handle, nr_keys=6)
    text = console(dom0)
    assert f"d{guest}: PV" in text
    assert "CPU1: idle" in text


# --- multicall


def test_multicall(dom0: Process) -> None:
    handle, calls = dom0.new("struct multicall_entry", 3)
    calls[0].op, calls[1].op, calls[2].op = abi.nr.xen_version, 1000, abi.nr.multicall
    dom0.call(abi.nr.multicall, handle, 3)
    signed = [calls[i].result - (calls[i].result >> 63 << 64) for i in range(3)]
    assert signed == [4 << 16 | 17, -lib.XEN_ENOSYS, -lib.XEN_EINVAL]
    assert dom0.raw(abi.nr.multicall, handle, 1 << 20) == -lib.XEN_EFAULT


def test_a_long_multicall_is_continued(dom0: Process) -> None:
    count = 8000
    handle, calls = dom0.new("struct multicall_entry", count)
    for index in range(count):
        calls[index].op = abi.nr.xen_version
    pieces = 0
    while (
        ret := dom0.connection.hypercall(abi.nr.multicall, (handle, count, 0, 0, 0, 0))
    ) == -lib.XEN_ERESTART:
        pieces += 1
    assert ret == 0
    assert pieces > 0
    assert all(calls[index].result == 4 << 16 | 17 for index in range(count))
