"""A hypervisor on paper, for tests of the control library: what libxc asks of hyper, in the plainest Python.

It stands where hyper.guest.Hypervisor does: requests are real structures in a real arena. Page tables are
checked as strictly as by Xen: pinning walks the whole tree, and a table may nowhere be mapped writable.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import trio

from hyper.guest import Arena, Hypervisor, abi
from hyper.public.errors import XenErrno as E
from hyper.public.errors import xen_error

PAGE = 4096
P, RW, PSE = 1, 2, 0x80
ADDRESS = 0x000F_FFFF_FFFF_F000


class Refused(Exception):
    def __init__(self, errno: E) -> None:
        self.errno = errno


@dataclass
class PaperDomain:
    domid: int
    handle: UUID
    config: Any
    pause_count: int = 1
    shutdown_reason: int | None = None
    max_pages: int = 0
    nr_vcpus: int = 0
    gfns: set[int] = field(default_factory=set)
    shared_info: int = 0
    grant_table: int = 0
    memory_map: bytes = b""
    m2p: dict[int, int] = field(default_factory=dict)
    tables: dict[int, int] = field(default_factory=dict)
    """gfn of each page table under a pinned root -> its level."""
    contexts: dict[int, bytes] = field(default_factory=dict)
    affinity: dict[int, bytes] = field(default_factory=dict)
    credit: tuple[int, int] = (256, 0)
    hypercall_page: int | None = None
    ports: list[int] = field(default_factory=list)


class PaperXen:
    """`nr_extents` 2 MiB extents and `nr_frames` single frames of memory, in an order that is nobody's."""

    def __init__(self, nr_extents: int = 256, nr_frames: int = 1024, nr_cpus: int = 4) -> None:
        self.arena = Arena()
        self.domains: dict[int, PaperDomain] = {}
        self.console = b""
        self.keys = b""
        self.nr_cpus = nr_cpus
        self.log: list[str] = []
        """Commands in the order they came."""
        first_single = (nr_extents + 1) * 512
        self.bank = mmap.mmap(-1, (first_single + 2 * nr_frames + 1) * PAGE)
        self.free_extents = [512 * (index * 7 % nr_extents + 1) for index in range(nr_extents)]
        self.free_frames = [first_single + 2 * index for index in range(nr_frames)]

    @property
    def hypervisor(self) -> Hypervisor:
        return cast(Hypervisor, self)

    # --- what Hypervisor offers

    async def hypercall(self, nr: int, *args: int, **context: object) -> int:
        await trio.lowlevel.checkpoint()
        name = abi.HYPERCALL_NAMES[nr]
        try:
            handler: Callable[..., int] = getattr(self, name)
            return handler(*args)
        except Refused as exc:
            raise xen_error(name, exc.errno, **context) from None

    def frames(self, mfn: int, count: int) -> memoryview:
        return memoryview(self.bank)[mfn * PAGE : (mfn + count) * PAGE]

    def frame(self, mfn: int) -> memoryview:
        return self.frames(mfn, 1)

    async def alloc_unbound(self, domid: int, remote_domid: int) -> int:
        await trio.lowlevel.checkpoint()
        ports = self.domains[domid].ports
        ports.append(remote_domid)
        return len(ports)

    # --- hypercalls

    def domctl(self, address: int) -> int:
        op = self._struct("struct xen_domctl", address)
        if op.interface_version != 0x15:
            raise Refused(E.EACCES)
        name = self._name("XEN_DOMCTL_", op.cmd)
        if name == "createdomain":
            self._domctl_createdomain(op)
            return 0
        if name == "getdomaininfo":
            op.domain = min((domid for domid in self.domains if domid >= op.domain), default=0x7FF4)
        if op.domain not in self.domains:
            raise Refused(E.ESRCH)
        handler = getattr(self, f"_domctl_{name}", None)
        if handler is None:
            raise Refused(E.EOPNOTSUPP)
        handler(self.domains[op.domain], op)
        return 0

    def sysctl(self, address: int) -> int:
        op = self._struct("struct xen_sysctl", address)
        if op.interface_version != 0x15:
            raise Refused(E.EACCES)
        getattr(self, f"_sysctl_{self._name('XEN_SYSCTL_', op.cmd)}")(op)
        return 0

    def memory_op(self, command: int, address: int) -> int:
        result: int = getattr(self, f"_mem_{self._name('XENMEM_', command)}")(address)
        return result

    def mmu_update(self, address: int, count: int, done: int, domid: int) -> int:
        self.log.append("mmu_update")
        domain = self._domain(domid)
        data = self._bytes(address, 16 * count)
        for pointer, value in struct.iter_unpack("<QQ", data):
            if pointer & 3 != abi.lib.MMU_MACHPHYS_UPDATE or pointer >> 12 not in domain.gfns:
                raise Refused(E.EINVAL)
            domain.m2p[pointer >> 12] = value
        return 0

    def mmuext_op(self, address: int, count: int, done: int, domid: int) -> int:
        self.log.append("mmuext_op")
        op = self._struct("struct mmuext_op", address)
        assert (count, op.cmd) == (1, abi.lib.MMUEXT_PIN_L4_TABLE)
        domain = self._domain(domid)
        tables: dict[int, int] = {}
        mapped_writable: set[int] = set()
        self._check_table(domain, op.arg1.mfn, 4, tables, mapped_writable)
        if mapped_writable & tables.keys():
            raise Refused(E.EINVAL)
        domain.tables = tables
        return 0

    def sched_op(self, command: int, address: int) -> int:
        assert command == abi.lib.SCHEDOP_remote_shutdown
        op = self._struct("struct sched_remote_shutdown", address)
        self._domain(op.domain_id).shutdown_reason = op.reason
        return 0

    def xen_version(self, command: int, address: int) -> int:
        texts = {"extraversion": b".4", "capabilities": b"xen-3.0-x86_64 ", "changeset": b"none"}
        name = self._name("XENVER_", command)
        if name == "version":
            return 4 << 16 | 17
        if name == "pagesize":
            return PAGE
        if name == "compile_info":
            info = self._struct("struct xen_compile_info", address)
            info.compiler, info.compile_by, info.compile_domain, info.compile_date = (
                b"py",
                b"me",
                b"here",
                b"now",
            )
        elif name == "platform_parameters":
            self._struct("struct xen_platform_parameters", address).virt_start = 0xFFFF800000000000
        else:
            self._write(address, texts.get(name, b"placeholder") + b"\0")
        return 0

    # --- domctl

    def _domctl_createdomain(self, op: Any) -> None:
        config = op.u.createdomain
        domid = max(self.domains, default=0) + 1
        self.domains[domid] = PaperDomain(
            domid,
            UUID(bytes=bytes(config.handle)),
            abi.struct("struct xen_domctl", bytearray(abi.to_bytes(op))),
            shared_info=self.free_frames.pop(),
            grant_table=self.free_frames.pop(),
        )
        op.domain = domid

    def _domctl_destroydomain(self, domain: PaperDomain, op: Any) -> None:
        del self.domains[domain.domid]

    def _domctl_pausedomain(self, domain: PaperDomain, op: Any) -> None:
        domain.pause_count += 1

    def _domctl_unpausedomain(self, domain: PaperDomain, op: Any) -> None:
        domain.pause_count -= 1

    def _domctl_getdomaininfo(self, domain: PaperDomain, op: Any) -> None:
        self._fill_info(domain, op.u.getdomaininfo)

    def _domctl_max_mem(self, domain: PaperDomain, op: Any) -> None:
        domain.max_pages = op.u.max_mem.max_memkb >> 2

    def _domctl_max_vcpus(self, domain: PaperDomain, op: Any) -> None:
        if op.u.max_vcpus.max != domain.config.u.createdomain.max_vcpus:
            raise Refused(E.EINVAL)
        domain.nr_vcpus = op.u.max_vcpus.max

    def _domctl_setdomainhandle(self, domain: PaperDomain, op: Any) -> None:
        domain.handle = UUID(bytes=bytes(op.u.setdomainhandle.handle))

    def _domctl_hypercall_init(self, domain: PaperDomain, op: Any) -> None:
        assert op.u.hypercall_init.gmfn in domain.gfns
        domain.hypercall_page = op.u.hypercall_init.gmfn
        self.frame(domain.hypercall_page)[:] = b"\xcc" * PAGE

    def _domctl_setvcpucontext(self, domain: PaperDomain, op: Any) -> None:
        context = self._bytes(op.u.vcpucontext.ctxt, abi.sizeof("struct vcpu_guest_context"))
        domain.contexts[op.u.vcpucontext.vcpu] = bytes(context)

    def _domctl_getvcpucontext(self, domain: PaperDomain, op: Any) -> None:
        self._write(op.u.vcpucontext.ctxt, domain.contexts[op.u.vcpucontext.vcpu])

    def _domctl_getvcpuinfo(self, domain: PaperDomain, op: Any) -> None:
        info = op.u.getvcpuinfo
        if info.vcpu >= domain.nr_vcpus:
            raise Refused(E.EINVAL)
        info.online, info.running, info.cpu_time, info.cpu = 1, 1, 5_000_000_000, info.vcpu % self.nr_cpus

    def _domctl_setvcpuaffinity(self, domain: PaperDomain, op: Any) -> None:
        hard = op.u.vcpuaffinity.cpumap_hard
        asked = int.from_bytes(self._bytes(hard.bitmap, hard.nr_bits // 8), "little")
        allowed = asked & (1 << self.nr_cpus) - 1
        if not allowed:
            raise Refused(E.EINVAL)
        data = allowed.to_bytes(hard.nr_bits // 8, "little")
        domain.affinity[op.u.vcpuaffinity.vcpu] = data
        self._write(hard.bitmap, data)

    def _domctl_getvcpuaffinity(self, domain: PaperDomain, op: Any) -> None:
        affinity = op.u.vcpuaffinity
        self._write(affinity.cpumap_hard.bitmap, domain.affinity.get(affinity.vcpu, b"\xff"))
        self._write(affinity.cpumap_soft.bitmap, b"\xff" * (affinity.cpumap_soft.nr_bits // 8))

    def _domctl_scheduler_op(self, domain: PaperDomain, op: Any) -> None:
        scheduler = op.u.scheduler_op
        if scheduler.sched_id != abi.lib.XEN_SCHEDULER_CREDIT:
            raise Refused(E.EINVAL)
        credit = scheduler.u.credit
        if scheduler.cmd == abi.lib.XEN_DOMCTL_SCHEDOP_putinfo:
            domain.credit = credit.weight, credit.cap
        else:
            credit.weight, credit.cap = domain.credit

    def _fill_info(self, domain: PaperDomain, info: Any) -> None:
        info.domain = domain.domid
        info.flags = abi.lib.XEN_DOMINF_paused * bool(domain.pause_count)
        if domain.shutdown_reason is not None:
            info.flags |= (
                abi.lib.XEN_DOMINF_shutdown | domain.shutdown_reason << abi.lib.XEN_DOMINF_shutdownshift
            )
        info.tot_pages, info.max_pages = len(domain.gfns), domain.max_pages
        info.shared_info_frame = domain.shared_info
        info.max_vcpu_id = domain.nr_vcpus - 1 & 0xFFFFFFFF
        info.handle = list(domain.handle.bytes)

    # --- sysctl

    def _sysctl_getdomaininfolist(self, op: Any) -> None:
        request = op.u.getdomaininfolist
        size = abi.sizeof("struct xen_domctl_getdomaininfo")
        ids = sorted(domid for domid in self.domains if domid >= request.first_domain)[: request.max_domains]
        for index, domid in enumerate(ids):
            info = self._struct("struct xen_domctl_getdomaininfo", request.buffer + index * size)
            self._fill_info(self.domains[domid], info)
        request.num_domains = len(ids)

    def _sysctl_physinfo(self, op: Any) -> None:
        info = op.u.physinfo
        info.nr_cpus, info.max_cpu_id, info.cpu_khz = self.nr_cpus, self.nr_cpus - 1, 2_000_000
        info.free_pages = 512 * len(self.free_extents) + len(self.free_frames)
        info.hw_cap[1] = 7

    def _sysctl_sched_id(self, op: Any) -> None:
        op.u.sched_id.sched_id = abi.lib.XEN_SCHEDULER_CREDIT

    def _sysctl_getcpuinfo(self, op: Any) -> None:
        request = op.u.getcpuinfo
        for cpu in range(self.nr_cpus):
            self._struct("struct xen_sysctl_cpuinfo", request.info + 8 * cpu).idletime = 1000 + cpu
        request.nr_cpus = self.nr_cpus

    def _sysctl_readconsole(self, op: Any) -> None:
        request = op.u.readconsole
        start = request.index if request.incremental else 0
        text = self.console[start : start + request.count]
        self._write(request.buffer, text)
        request.count, request.index = len(text), start + len(text)
        if request.clear and request.index == len(self.console):
            self.console = b""

    def _sysctl_debug_keys(self, op: Any) -> None:
        self.keys += bytes(self._bytes(op.u.debug_keys.keys, op.u.debug_keys.nr_keys))

    # --- memory_op

    def _mem_populate_physmap(self, address: int) -> int:
        op = self._struct("struct xen_memory_reservation", address)
        domain = self._domain(op.domid)
        free = {9: self.free_extents, 0: self.free_frames}[op.extent_order]
        frames = self._bytes(op.extent_start, 8 * op.nr_extents).cast("Q")
        for index in range(op.nr_extents):
            if not free or len(domain.gfns) + (1 << op.extent_order) > domain.max_pages:
                return index
            frames[index] = free.pop()
            domain.gfns.update(range(frames[index], frames[index] + (1 << op.extent_order)))
        return cast(int, op.nr_extents)

    def _mem_set_memory_map(self, address: int) -> int:
        op = self._struct("struct xen_foreign_memory_map", address)
        self._domain(op.domid).memory_map = bytes(self._bytes(op.map.buffer, 20 * op.map.nr_entries))
        return 0

    def _mem_acquire_resource(self, address: int) -> int:
        op = self._struct("struct xen_mem_acquire_resource", address)
        if op.type != abi.lib.XENMEM_resource_grant_table or op.frame + op.nr_frames > 1:
            raise Refused(E.EINVAL)
        self._bytes(op.frame_list, 8).cast("Q")[0] = self._domain(op.domid).grant_table
        return 0

    # --- page tables

    def _check_table(
        self, domain: PaperDomain, gfn: int, level: int, tables: dict[int, int], writable: set[int]
    ) -> None:
        if gfn not in domain.gfns or tables.setdefault(gfn, level) != level:
            raise Refused(E.EINVAL)
        for slot, entry in self._entries(gfn):
            below = (entry & ADDRESS) >> 12
            if level == 4 and 256 <= slot < 272:  # Xen's own
                raise Refused(E.EINVAL)
            if level > 1:
                if entry & PSE:
                    raise Refused(E.EINVAL)
                self._check_table(domain, below, level - 1, tables, writable)
            elif below not in domain.gfns:
                raise Refused(E.EINVAL)
            elif entry & RW:
                writable.add(below)

    def _entries(self, gfn: int) -> Iterator[tuple[int, int]]:
        return ((slot, entry) for slot, entry in enumerate(self.frame(gfn).cast("Q")) if entry & P)

    def translate(self, root: int, vaddr: int) -> int:
        """gfn behind a virtual address. Raises: KeyError when it is not mapped."""
        gfn = root
        for level in (4, 3, 2, 1):
            slot = vaddr >> 3 + 9 * level & 511
            entry = self.frame(gfn).cast("Q")[slot]
            if not entry & P:
                raise KeyError(hex(vaddr))
            gfn = (entry & ADDRESS) >> 12
        return gfn

    def read(self, root: int, vaddr: int, nbytes: int) -> bytes:
        """What a guest reads at a virtual address."""
        found = b""
        while len(found) < nbytes:
            at = vaddr + len(found)
            page = bytes(self.frame(self.translate(root, at)))
            found += page[at % PAGE : at % PAGE + nbytes - len(found)]
        return found

    # --- arguments

    def _domain(self, domid: int) -> PaperDomain:
        if domid not in self.domains:
            raise Refused(E.ESRCH)
        return self.domains[domid]

    def _bytes(self, address: int, nbytes: int) -> memoryview:
        assert address, "a NULL handle"
        return self.arena._view[address : address + nbytes]

    def _write(self, address: int, data: bytes) -> None:
        self._bytes(address, len(data))[:] = data

    def _struct(self, ctype: str, address: int) -> Any:
        return abi.struct(ctype, self._bytes(address, abi.sizeof(ctype)))

    def _name(self, prefix: str, number: int) -> str:
        """Command `number` without its prefix; of several constants of that value, the one served here."""
        served = {"XEN_DOMCTL_": "_domctl_", "XEN_SYSCTL_": "_sysctl_", "XENMEM_": "_mem_"}.get(prefix, "")
        names = [
            name.removeprefix(prefix)
            for name in dir(abi.lib)
            if name.startswith(prefix) and getattr(abi.lib, name) == number
        ]
        name = next((name for name in names if hasattr(self, served + name)), names[0])
        self.log.append(name)
        return name
