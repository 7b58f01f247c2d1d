"""Control operations: what travels to the hypervisor, and what comes back."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from uuid import UUID

import pytest

from dom0.libxc.control import XenControl, ram_map
from dom0.libxc.info import CreditParameters, bits_of, bytes_of_bits
from hyper.guest import abi
from hyper.public.errors import BadArgument, NoSuchDomain, NotBuilt, XenError
from tests.paper_xen import PaperXen

HANDLE = UUID("00112233-4455-6677-8899-aabbccddeeff")


@pytest.fixture
def xen() -> Iterator[PaperXen]:
    xen = PaperXen(nr_extents=4)
    free = xen.arena.free_bytes
    yield xen
    assert xen.arena.free_bytes == free
    xen.arena.close()


@pytest.fixture
def xc(xen: PaperXen) -> XenControl:
    return XenControl(xen.hypervisor)


async def test_life_of_a_domain(xen: PaperXen, xc: XenControl) -> None:
    domid = await xc.domain_create(HANDLE, max_vcpus=2, flags=3, max_evtchn_port=127)
    config = xen.domains[domid].config.u.createdomain
    assert (config.max_vcpus, config.flags, config.max_evtchn_port) == (2, 3, 127)
    assert (config.max_grant_frames, config.grant_opts) == (-1, 1)
    await xc.max_vcpus(domid, 2)
    await xc.max_mem(domid, 4096)
    info = await xc.getdomaininfo(domid)
    assert (info.domid, info.handle, info.paused, info.shutdown) == (domid, HANDLE, True, False)
    assert (info.max_pages, info.tot_pages, info.max_vcpu_id) == (1024, 0, 1)
    await xc.domain_pause(domid)
    await xc.domain_unpause(domid)
    await xc.domain_unpause(domid)
    assert not (await xc.getdomaininfo(domid)).paused
    await xc.domain_shutdown(domid, abi.lib.SHUTDOWN_crash)
    info = await xc.getdomaininfo(domid)
    assert (info.shutdown, info.shutdown_reason) == (True, abi.lib.SHUTDOWN_crash)
    await xc.domain_destroy(domid)
    with pytest.raises(NoSuchDomain):
        await xc.getdomaininfo(domid)


async def test_info_is_of_the_domain_asked_for(xc: XenControl) -> None:
    """The hypercall answers for the next one."""
    domid = await xc.domain_create(HANDLE, max_vcpus=1)
    with pytest.raises(NoSuchDomain):
        await xc.getdomaininfo(domid - 1)
    assert (await xc.getdomaininfo(domid)).max_vcpu_id == -1


async def test_errors_say_what_was_asked(xc: XenControl) -> None:
    with pytest.raises(NoSuchDomain) as refused:
        await xc.max_mem(77, 1)
    assert str(refused.value) == "domctl: ESRCH (command=max_mem, domid=77)"
    domid = await xc.domain_create(HANDLE, max_vcpus=1)
    with pytest.raises(NotBuilt):
        await xc.settimeoffset(domid, 5)
    with pytest.raises(BadArgument):
        await xc.max_vcpus(domid, 9)


async def test_list_in_batches(xen: PaperXen, xc: XenControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dom0.libxc.control._DOMAINS_PER_CALL", 3)
    created = [await xc.domain_create(HANDLE, max_vcpus=1) for _ in range(7)]
    assert [info.domid for info in await xc.getdomaininfolist()] == created
    assert [info.domid for info in await xc.getdomaininfolist(first=6)] == [6, 7]


async def test_memory(xen: PaperXen, xc: XenControl) -> None:
    domid = await xc.domain_create(HANDLE, max_vcpus=1)
    await xc.max_mem(domid, 3 << 10)  # one extent and a half
    assert len(await xc.populate_physmap(domid, [0, 512], order=9)) == 1
    singles = await xc.populate_physmap(domid, range(512, 520), order=0)
    assert len(singles) == 8
    xc.foreign_frame(domid, singles[0])[:5] = b"hello"
    assert bytes(xen.frame(singles[0])[:5]) == b"hello"
    await xc.set_memory_map(domid, ram_map(5 << 20))
    assert xen.domains[domid].memory_map == struct.pack("<QQI", 0, 5 << 20, 1)
    with pytest.raises(ValueError):
        await xc.populate_physmap(domid, [], order=0)


async def test_vcpus(xen: PaperXen, xc: XenControl) -> None:
    domid = await xc.domain_create(HANDLE, max_vcpus=2)
    await xc.max_vcpus(domid, 2)
    context = bytearray(range(256)) * 21
    await xc.setvcpucontext(domid, 1, context[:5168])
    back = await xc.getvcpucontext(domid, 1)
    assert abi.to_bytes(back) == context[:5168]
    info = await xc.getvcpuinfo(domid, 1)
    assert (info.online, info.running, info.blocked, info.cpu_time_ns, info.cpu) == (
        True,
        True,
        False,
        5 * 10**9,
        1,
    )
    assert await xc.setvcpuaffinity(domid, 1, {1, 3, 200}) == {1, 3}
    affinity = await xc.getvcpuaffinity(domid, 1)
    assert affinity.hard == {1, 3}
    assert {0, 63} <= affinity.soft
    with pytest.raises(XenError):
        await xc.setvcpuaffinity(domid, 1, {200})


async def test_credit(xc: XenControl) -> None:
    domid = await xc.domain_create(HANDLE, max_vcpus=1)
    assert await xc.sched_credit_get(domid) == CreditParameters(256, 0)
    await xc.sched_credit_set(domid, CreditParameters(weight=512, cap=50))
    assert await xc.sched_credit_get(domid) == CreditParameters(512, 50)
    assert await xc.get_scheduler_id() == abi.lib.XEN_SCHEDULER_CREDIT


async def test_the_host(xen: PaperXen, xc: XenControl) -> None:
    info = await xc.physinfo()
    assert (info.nr_cpus, info.cpu_khz, info.hw_cap[1], info.free_pages) == (4, 2_000_000, 7, 4 * 512 + 1024)
    assert await xc.getcpuinfo() == [1000, 1001, 1002, 1003]
    version = await xc.version()
    assert (version.major, version.minor, version.extra, version.pagesize) == (4, 17, ".4", 4096)
    assert (version.compiler, version.compile_by, version.compile_date) == ("py", "me", "now")
    assert (version.capabilities, version.virt_start) == ("xen-3.0-x86_64 ", 0xFFFF800000000000)
    await xc.send_debug_keys("qr")
    assert xen.keys == b"qr"


@pytest.mark.parametrize("nbytes", [0, 10, 64 << 10, 200_000])
async def test_console(xen: PaperXen, xc: XenControl, nbytes: int) -> None:
    """Longer than one call takes, and exactly as long."""
    xen.console = bytes(65 + index % 26 for index in range(nbytes))
    text = xen.console.decode()
    assert await xc.readconsole() == text
    assert await xc.readconsole(clear=True) == text
    assert await xc.readconsole() == ""


def test_bitmaps() -> None:
    assert bits_of(bytes_of_bits({0, 7, 8, 255}, 256)) == {0, 7, 8, 255}
    with pytest.raises(ValueError, match="bit 256"):
        bytes_of_bits({256}, 256)
