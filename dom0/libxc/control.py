"""Control operations of Xen (domctl, sysctl, memory_op and friends), each a call named as its command.

A call fills the real structure in an arena buffer, makes the hypercall and gives back plain Python values.
Refusals are XenError, with command and domain in their context. Several tasks may share one XenControl.
"""

from __future__ import annotations

import socket
import struct
from array import array
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from dom0.libxc.cpuid import Leaves
from dom0.libxc.info import (
    CpuAffinity,
    CreditParameters,
    DomainInfo,
    PhysInfo,
    VcpuInfo,
    XenInfo,
    bits_of,
    bytes_of_bits,
    c_string,
)
from hyper.guest import Hypervisor, ProcessDomain, abi
from hyper.public.errors import NoSuchDomain
from hyper.public.types import DomId, EvtchnPort, Gfn, Mfn

PAGE_SHIFT = 12
E820_RAM = 1

_E820_ENTRY = struct.Struct("<QQI")
_LEAF = "struct xen_cpuid_leaf"
_CPUID_LEAF = struct.Struct("<6I")
_MAX_LEAVES = 128
_AFFINITY_BITS = 256
_DOMAINS_PER_CALL = 256
_CONSOLE_CHUNK = 64 << 10
_MAX_CPUS = 1024
_EXTENTS_PER_CALL = 1 << 16
_UPDATES_PER_CALL = 1 << 15


class XenControl:
    """The host as its control tools see it. Lives as long as the connection `hyp`."""

    def __init__(self, hyp: Hypervisor) -> None:
        self._hyp = hyp

    # --- domains

    async def domain_create(
        self,
        handle: UUID,
        max_vcpus: int,
        *,
        flags: int = 0,
        ssidref: int = 0,
        max_evtchn_port: int = 1023,
        max_grant_frames: int = -1,
        max_maptrack_frames: int = -1,
        max_grant_version: int = 1,
        cpupool_id: int = 0,
    ) -> DomId:
        """A new domain without memory and vCPUs, paused. Negative limits: the hypervisor's default.

        Returns: its id.
        Raises: XenError: OutOfFrames, BadArgument.
        """
        answer = await self._domctl(
            "createdomain", 0, "createdomain",
            ssidref=ssidref, handle=list(handle.bytes), flags=flags, max_vcpus=max_vcpus,
            max_evtchn_port=max_evtchn_port, max_grant_frames=max_grant_frames,
            max_maptrack_frames=max_maptrack_frames, grant_opts=max_grant_version, cpupool_id=cpupool_id,
        )  # fmt: skip
        return DomId(answer.domain)

    async def max_vcpus(self, domid: int, max_vcpus: int) -> None:
        """Allocates the vCPUs; the number must be the one given to domain_create."""
        await self._domctl("max_vcpus", domid, "max_vcpus", max=max_vcpus)

    async def domain_destroy(self, domid: int) -> None:
        """Ends a domain and gives back its memory; returns when the hypervisor has taken it apart."""
        await self._domctl("destroydomain", domid)

    async def domain_pause(self, domid: int) -> None:
        """Pauses nest: as many unpauses are needed."""
        await self._domctl("pausedomain", domid)

    async def domain_unpause(self, domid: int) -> None:
        await self._domctl("unpausedomain", domid)

    async def domain_shutdown(self, domid: int, reason: int) -> None:
        """Stops the domain as if it had shut itself down with `reason` (SHUTDOWN_*)."""
        with self._hyp.arena.new("struct sched_remote_shutdown", domain_id=domid, reason=reason) as buf:
            await self._hyp.hypercall(
                abi.nr.sched_op,
                abi.lib.SCHEDOP_remote_shutdown,
                buf.addr,
                command="remote_shutdown",
                domid=domid,
            )

    async def setdomainhandle(self, domid: int, handle: UUID) -> None:
        await self._domctl("setdomainhandle", domid, "setdomainhandle", handle=list(handle.bytes))

    async def settimeoffset(self, domid: int, seconds: int) -> None:
        """Moves the wall clock the domain sees."""
        await self._domctl("settimeoffset", domid, "settimeoffset", time_offset_seconds=seconds)

    async def getdomaininfo(self, domid: int) -> DomainInfo:
        """Raises: NoSuchDomain (the hypercall itself answers for the next domain that exists)."""
        answer = await self._domctl("getdomaininfo", domid)
        if answer.domain != domid:
            raise NoSuchDomain("domctl", command="getdomaininfo", domid=domid)
        return DomainInfo.from_struct(answer.u.getdomaininfo)

    async def getdomaininfolist(self, first: int = 0) -> list[DomainInfo]:
        """All domains with an id >= `first`, by id."""
        found: list[DomainInfo] = []
        size = abi.sizeof("struct xen_domctl_getdomaininfo")
        while True:
            with self._hyp.arena.alloc(size * _DOMAINS_PER_CALL) as buf:
                answer = await self._sysctl(
                    "getdomaininfolist", "getdomaininfolist",
                    first_domain=first, max_domains=_DOMAINS_PER_CALL, buffer=buf.addr,
                )  # fmt: skip
                count = answer.u.getdomaininfolist.num_domains
                infos = abi.array("struct xen_domctl_getdomaininfo", bytearray(buf.view))
                found += [DomainInfo.from_struct(infos[index]) for index in range(count)]
            if count < _DOMAINS_PER_CALL:
                return found
            first = found[-1].domid + 1

    # --- memory

    async def max_mem(self, domid: int, kib: int) -> None:
        """The most memory the domain may have; it may hold more at the moment, and then gets none."""
        await self._domctl("max_mem", domid, "max_mem", max_memkb=kib)

    async def set_memory_map(self, domid: int, entries: Sequence[tuple[int, int, int]]) -> None:
        """The e820 map that the guest reads: (address, size, type), in bytes."""
        packed = b"".join(_E820_ENTRY.pack(*entry) for entry in entries)
        with (
            self._hyp.arena.alloc(max(len(packed), 1)) as table,
            self._hyp.arena.new(
                "struct xen_foreign_memory_map", domid=domid,
                map={"nr_entries": len(entries), "buffer": table.addr},
            ) as buf,
        ):  # fmt: skip
            table.view[: len(packed)] = packed
            await self._memory_op("set_memory_map", buf.addr, domid)

    async def populate_physmap(self, domid: int, gpfns: Sequence[int], order: int) -> list[Gfn]:
        """Gives the domain 2^order frames at each of `gpfns`, at most 65536 of them.

        Returns: the first gfn of each extent; fewer than asked when memory or the domain's limit runs out.
        """
        if not 0 < len(gpfns) <= _EXTENTS_PER_CALL:
            raise ValueError(f"{len(gpfns)} extents in one call; want 1 to {_EXTENTS_PER_CALL}")
        extents = array("Q", gpfns)
        with (
            self._hyp.arena.alloc(len(extents) * extents.itemsize) as frames,
            self._hyp.arena.new(
                "struct xen_memory_reservation", extent_start=frames.addr, nr_extents=len(extents),
                extent_order=order, domid=domid,
            ) as buf,
        ):  # fmt: skip
            frames.view[:] = extents.tobytes()
            done = await self._memory_op(
                "populate_physmap", buf.addr, domid, order=order, nr_extents=len(extents)
            )
            return [Gfn(gfn) for gfn in frames.view.cast("Q")[:done]]

    async def acquire_resource(
        self, domid: int, kind: int, ident: int, frame: int, nr_frames: int
    ) -> list[Mfn]:
        """Machine frames of a resource (XENMEM_resource_*) of the domain, for access by mfn."""
        with (
            self._hyp.arena.alloc(8 * nr_frames) as frames,
            self._hyp.arena.new(
                "struct xen_mem_acquire_resource", domid=domid, type=kind, id=ident, nr_frames=nr_frames,
                frame=frame, frame_list=frames.addr,
            ) as buf,
        ):  # fmt: skip
            await self._memory_op("acquire_resource", buf.addr, domid, type=kind, frame=frame)
            return [Mfn(mfn) for mfn in frames.view.cast("Q")]

    async def grant_table_frame(self, domid: int, frame: int = 0) -> memoryview:
        """A page of the domain's own grant table (version 1 entries)."""
        kind, ident = abi.lib.XENMEM_resource_grant_table, abi.lib.XENMEM_resource_grant_table_id_shared
        (mfn,) = await self.acquire_resource(domid, kind, ident, frame, 1)
        return self._hyp.frame(mfn)

    def foreign_frames(self, domid: int, gfn: int, count: int) -> memoryview:
        """The bytes of `count` frames in a row of another domain's RAM, writable. Never blocks.

        The one place that knows how a gfn becomes an mfn: equal today, for frames from populate_physmap.
        Raises: OutOfRange.
        """
        return self._hyp.frames(Mfn(gfn), count)

    def foreign_frame(self, domid: int, gfn: int) -> memoryview:
        """The 4096 bytes of one frame; see foreign_frames."""
        return self.foreign_frames(domid, gfn, 1)

    async def adopt(self, domid: int, bank_bytes: int) -> tuple[ProcessDomain, socket.socket]:
        """Makes the domain, just created, a process domain; see dom0.libxc.process.

        Raises: XenError: NoSuchDomain, BadArgument, Busy, OutOfFrames.
        """
        return await self._hyp.adopt(domid, bank_bytes)

    # --- a PV guest's page tables

    async def machphys_update(self, domid: int, updates: array[int]) -> None:
        """Writes machine-to-phys entries. `updates` is struct mmu_update[]: gfn << 12 | 1, pfn."""
        data = memoryview(updates).cast("B")
        size = abi.sizeof("struct mmu_update")
        for start in range(0, len(data), _UPDATES_PER_CALL * size):
            piece = data[start : start + _UPDATES_PER_CALL * size]
            with self._hyp.arena.alloc(len(piece)) as buf:
                buf.view[:] = piece
                await self._hyp.hypercall(
                    abi.nr.mmu_update, buf.addr, len(piece) // size, 0, domid, domid=domid
                )

    async def pin_l4_table(self, domid: int, gfn: int) -> None:
        """Makes `gfn` a level-4 table: the hypervisor checks the whole tree below it.

        Raises: XenError: BadArgument when an entry is refused.
        """
        with self._hyp.arena.new(
            "struct mmuext_op", cmd=abi.lib.MMUEXT_PIN_L4_TABLE, arg1={"mfn": gfn}
        ) as buf:
            await self._hyp.hypercall(
                abi.nr.mmuext_op, buf.addr, 1, 0, domid, command="PIN_L4_TABLE", domid=domid, gfn=gfn
            )

    async def hypercall_init(self, domid: int, gfn: int) -> None:
        """Fills the guest's hypercall page."""
        await self._domctl("hypercall_init", domid, "hypercall_init", gmfn=gfn)

    # --- vCPUs and scheduling

    async def setvcpucontext(self, domid: int, vcpu_id: int, context: bytes | bytearray) -> None:
        """`context` is a struct vcpu_guest_context; see abi.struct. The domain must be paused."""
        with self._hyp.arena.alloc(abi.sizeof("struct vcpu_guest_context")) as buf:
            buf.view[:] = context
            await self._domctl("setvcpucontext", domid, "vcpucontext", vcpu=vcpu_id, ctxt=buf.addr)

    async def getvcpucontext(self, domid: int, vcpu_id: int) -> Any:
        """A copy of the vCPU's struct vcpu_guest_context, as a cffi pointer."""
        with self._hyp.arena.alloc(abi.sizeof("struct vcpu_guest_context")) as buf:
            await self._domctl("getvcpucontext", domid, "vcpucontext", vcpu=vcpu_id, ctxt=buf.addr)
            return abi.struct("struct vcpu_guest_context", bytearray(buf.view))

    async def getvcpuinfo(self, domid: int, vcpu_id: int) -> VcpuInfo:
        answer = await self._domctl("getvcpuinfo", domid, "getvcpuinfo", vcpu=vcpu_id)
        return VcpuInfo.from_struct(answer.u.getvcpuinfo)

    async def getvcpuaffinity(self, domid: int, vcpu_id: int) -> CpuAffinity:
        with (
            self._hyp.arena.alloc(_AFFINITY_BITS // 8) as hard,
            self._hyp.arena.alloc(_AFFINITY_BITS // 8) as soft,
        ):
            await self._domctl(
                "getvcpuaffinity", domid, "vcpuaffinity", vcpu=vcpu_id,
                flags=abi.lib.XEN_VCPUAFFINITY_HARD | abi.lib.XEN_VCPUAFFINITY_SOFT,
                cpumap_hard={"bitmap": hard.addr, "nr_bits": _AFFINITY_BITS},
                cpumap_soft={"bitmap": soft.addr, "nr_bits": _AFFINITY_BITS},
            )  # fmt: skip
            return CpuAffinity(bits_of(bytes(hard.view)), bits_of(bytes(soft.view)))

    async def setvcpuaffinity(self, domid: int, vcpu_id: int, cpus: Collection[int]) -> frozenset[int]:
        """Restricts the vCPU to `cpus` (hard affinity).

        Returns: where it may run in fact.
        Raises: XenError: BadArgument when none of `cpus` exists.
        """
        with self._hyp.arena.alloc(_AFFINITY_BITS // 8) as hard:
            hard.view[:] = bytes_of_bits(cpus, _AFFINITY_BITS)
            await self._domctl(
                "setvcpuaffinity", domid, "vcpuaffinity", vcpu=vcpu_id, flags=abi.lib.XEN_VCPUAFFINITY_HARD,
                cpumap_hard={"bitmap": hard.addr, "nr_bits": _AFFINITY_BITS},
            )  # fmt: skip
            return bits_of(bytes(hard.view))

    async def sched_credit_get(self, domid: int) -> CreditParameters:
        answer = await self._domctl(
            "scheduler_op", domid, "scheduler_op",
            sched_id=abi.lib.XEN_SCHEDULER_CREDIT, cmd=abi.lib.XEN_DOMCTL_SCHEDOP_getinfo,
        )  # fmt: skip
        credit = answer.u.scheduler_op.u.credit
        return CreditParameters(credit.weight, credit.cap)

    async def sched_credit_set(self, domid: int, parameters: CreditParameters) -> None:
        await self._domctl(
            "scheduler_op", domid, "scheduler_op",
            sched_id=abi.lib.XEN_SCHEDULER_CREDIT, cmd=abi.lib.XEN_DOMCTL_SCHEDOP_putinfo,
            u={"credit": {"weight": parameters.weight, "cap": parameters.cap}},
        )  # fmt: skip

    # --- CPU policy and extended state

    async def get_cpu_policy(self, domid: int) -> Leaves:
        """What CPUID tells the domain."""
        with self._hyp.arena.alloc(_MAX_LEAVES * abi.sizeof(_LEAF)) as buf:
            answer = await self._domctl(
                "get_cpu_policy", domid, "cpu_policy", nr_leaves=_MAX_LEAVES, leaves=buf.addr
            )
            return _leaves_of(buf.view, answer.u.cpu_policy.nr_leaves)

    async def set_cpu_policy(self, domid: int, leaves: Leaves) -> None:
        """Changes leaves of a domain that has not run yet, as far as the machine has what they ask for."""
        size = abi.sizeof(_LEAF)
        with self._hyp.arena.alloc(max(len(leaves), 1) * size) as buf:
            for index, (place, words) in enumerate(leaves.items()):
                buf.view[index * size : (index + 1) * size] = _CPUID_LEAF.pack(*place, *words)
            await self._domctl(
                "set_cpu_policy", domid, "cpu_policy", nr_leaves=len(leaves), leaves=buf.addr
            )

    async def host_cpu_policy(self) -> Leaves:
        """The same leaves as the host's own CPUID has them."""
        with self._hyp.arena.alloc(_MAX_LEAVES * abi.sizeof(_LEAF)) as buf:
            answer = await self._sysctl(
                "get_cpu_policy", "cpu_policy",
                index=abi.lib.XEN_SYSCTL_cpu_policy_host, nr_leaves=_MAX_LEAVES, leaves=buf.addr,
            )  # fmt: skip
            return _leaves_of(buf.view, answer.u.cpu_policy.nr_leaves)

    async def getvcpuextstate(self, domid: int, vcpu_id: int) -> bytes:
        """XCR0, every component it ever had, and an XSAVE area; what setvcpuextstate takes."""
        room = (await self._domctl("getvcpuextstate", domid, "vcpuextstate", vcpu=vcpu_id)).u.vcpuextstate
        with self._hyp.arena.alloc(room.size) as buf:
            await self._domctl(
                "getvcpuextstate", domid, "vcpuextstate",
                vcpu=vcpu_id, xfeature_mask=room.xfeature_mask, size=room.size, buffer=buf.addr,
            )  # fmt: skip
            return bytes(buf.view[: room.size])

    async def setvcpuextstate(self, domid: int, vcpu_id: int, state: bytes) -> None:
        with self._hyp.arena.alloc(max(len(state), 1)) as buf:
            buf.view[: len(state)] = state
            await self._domctl(
                "setvcpuextstate", domid, "vcpuextstate", vcpu=vcpu_id, size=len(state), buffer=buf.addr
            )

    # --- event channels

    async def evtchn_alloc_unbound(self, domid: int, remote_domid: int) -> EvtchnPort:
        """Reserves a port of `domid` that only `remote_domid` may bind."""
        return await self._hyp.alloc_unbound(domid, remote_domid)

    # --- the host

    async def physinfo(self) -> PhysInfo:
        answer = await self._sysctl("physinfo")
        return PhysInfo.from_struct(answer.u.physinfo)

    async def getcpuinfo(self) -> list[int]:
        """Idle time of each physical CPU, in ns."""
        with self._hyp.arena.alloc(_MAX_CPUS * abi.sizeof("struct xen_sysctl_cpuinfo")) as buf:
            answer = await self._sysctl("getcpuinfo", "getcpuinfo", max_cpus=_MAX_CPUS, info=buf.addr)
            return list(
                buf.view.cast("Q")[: answer.u.getcpuinfo.nr_cpus]
            )  # struct xen_sysctl_cpuinfo is one u64

    async def get_scheduler_id(self) -> int:
        """The host's scheduler, XEN_SCHEDULER_*."""
        answer = await self._sysctl("sched_id")
        number: int = answer.u.sched_id.sched_id
        return number

    async def readconsole(self, clear: bool = False) -> str:
        """The hypervisor's console ring from its oldest byte on; `clear` empties it."""
        text = bytearray()
        index = 0
        while True:
            with self._hyp.arena.alloc(_CONSOLE_CHUNK) as buf:
                answer = await self._sysctl(
                    "readconsole", "readconsole",
                    clear=clear, incremental=bool(text), index=index, buffer=buf.addr, count=_CONSOLE_CHUNK,
                )  # fmt: skip
                count = answer.u.readconsole.count
                text += buf.view[:count]
            if count < _CONSOLE_CHUNK:
                return text.decode(errors="replace")
            index = answer.u.readconsole.index

    async def send_debug_keys(self, keys: str) -> None:
        """What a key pressed on the host's console does; its output goes to the console ring."""
        data = keys.encode("ascii")
        with self._hyp.arena.alloc(max(len(data), 1)) as buf:
            buf.view[: len(data)] = data
            await self._sysctl("debug_keys", "debug_keys", keys=buf.addr, nr_keys=len(data))

    async def version(self) -> XenInfo:
        """What XENVER_* say of this hypervisor."""
        number = await self._xen_version("version")
        build = await self._xen_version_struct("compile_info", "struct xen_compile_info")
        platform = await self._xen_version_struct("platform_parameters", "struct xen_platform_parameters")
        return XenInfo(
            major=number >> 16,
            minor=number & 0xFFFF,
            extra=await self._xen_version_text("extraversion", abi.lib.XEN_EXTRAVERSION_LEN),
            capabilities=await self._xen_version_text("capabilities", abi.lib.XEN_CAPABILITIES_INFO_LEN),
            changeset=await self._xen_version_text("changeset", abi.lib.XEN_CHANGESET_INFO_LEN),
            command_line=await self._xen_version_text("commandline", 1024),
            virt_start=platform.virt_start,
            pagesize=await self._xen_version("pagesize"),
            compiler=c_string(abi.to_bytes(build)[0:64]),
            compile_by=c_string(abi.to_bytes(build)[64:80]),
            compile_domain=c_string(abi.to_bytes(build)[80:112]),
            compile_date=c_string(abi.to_bytes(build)[112:144]),
        )

    # --- how a request travels

    async def _domctl(self, command: str, domid: int, member: str | None = None, **fields: Any) -> Any:
        """One domctl. `fields` are set in the union's `member`.

        Returns: a copy of the whole struct xen_domctl as the hypervisor left it.
        """
        number = getattr(abi.lib, f"XEN_DOMCTL_{command}")
        return await self._control(
            "struct xen_domctl", abi.nr.domctl, number, command, member, fields, domain=domid
        )

    async def _sysctl(self, command: str, member: str | None = None, **fields: Any) -> Any:
        """The same for a sysctl."""
        number = getattr(abi.lib, f"XEN_SYSCTL_{command}")
        return await self._control("struct xen_sysctl", abi.nr.sysctl, number, command, member, fields)

    async def _control(
        self,
        ctype: str,
        nr: int,
        number: int,
        command: str,
        member: str | None,
        fields: dict[str, Any],
        **head: int,
    ) -> Any:
        sysctl = nr == abi.nr.sysctl
        version = abi.lib.XEN_SYSCTL_INTERFACE_VERSION if sysctl else abi.lib.XEN_DOMCTL_INTERFACE_VERSION
        context = {"domid": head["domain"]} if head else {}
        with self._hyp.arena.new(ctype, cmd=number, interface_version=version, **head) as buf:
            if member:
                target = getattr(buf.struct.u, member)
                for name, value in fields.items():
                    setattr(target, name, value)
            await self._hyp.hypercall(nr, buf.addr, command=command, **context)
            return abi.struct(ctype, bytearray(buf.view))

    async def _memory_op(self, command: str, address: int, domid: int, **context: object) -> int:
        number = getattr(abi.lib, f"XENMEM_{command}")
        return await self._hyp.hypercall(
            abi.nr.memory_op, number, address, command=command, domid=domid, **context
        )

    async def _xen_version(self, command: str, address: int = 0) -> int:
        number = getattr(abi.lib, f"XENVER_{command}")
        return await self._hyp.hypercall(abi.nr.xen_version, number, address, command=command)

    async def _xen_version_text(self, command: str, nbytes: int) -> str:
        with self._hyp.arena.alloc(nbytes) as buf:
            await self._xen_version(command, buf.addr)
            return c_string(bytes(buf.view))

    async def _xen_version_struct(self, command: str, ctype: str) -> Any:
        with self._hyp.arena.new(ctype) as buf:
            await self._xen_version(command, buf.addr)
            return abi.struct(ctype, bytearray(buf.view))


def _leaves_of(view: memoryview, count: int) -> Leaves:
    records = _CPUID_LEAF.iter_unpack(view[: count * _CPUID_LEAF.size])
    return {(leaf, subleaf): (a, b, c, d) for leaf, subleaf, a, b, c, d in records}


def ram_map(nbytes: int) -> list[tuple[int, int, int]]:
    """The e820 map of a PV guest: RAM from 0 on."""
    return [(0, nbytes, E820_RAM)]
