"""The real core in this process, without control socket: a machine, and processes of Dom0 as objects."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from hyper.binding import CoreConfig, load
from hyper.guest import abi
from hyper.machine import Machine
from hyper.public.errors import XenErrno, xen_error

ARENA_BYTES = 1 << 20
MEMORY_BYTES = 64 << 20
ERESTART = -XenErrno.ERESTART
ANY_DOMAIN = 0xFFFF
lib = abi.lib


@contextmanager
def real_machine(nr_pcpus: int = 2, scheduler: str = "credit") -> Iterator[Machine]:
    config = CoreConfig(nr_pcpus, MEMORY_BYTES, 0, "console=none", scheduler)
    with Machine(load(), config) as machine:
        yield machine


@dataclass
class Page:
    gmfn: int
    view: memoryview


class Process:
    """A connection of Dom0, or of another process domain, with an arena. Calls raise XenError when they are
    refused.
    """

    def __init__(self, machine: Machine, domid: int = 0) -> None:
        self.machine = machine
        self.connection = machine.connect(domid)
        fd = os.memfd_create("arena", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, ARENA_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        assert self.connection.set_arena(fd, ARENA_BYTES) == 0
        self._arena = mmap.mmap(fd, ARENA_BYTES)
        self._next = mmap.PAGESIZE
        os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()

    def buffer(self, nbytes: int) -> tuple[int, memoryview]:
        """A zeroed piece of the arena: its guest handle, and what is there."""
        if self._next + nbytes > ARENA_BYTES:
            self._next = mmap.PAGESIZE
        at = self._next
        self._next += -(-nbytes // 64) * 64
        view = memoryview(self._arena)[at : at + nbytes]
        view[:] = bytes(nbytes)
        return at, view

    def page(self) -> Page:
        """A zeroed page of the arena, as the local side of a grant copy."""
        self._next = -(-self._next // mmap.PAGESIZE) * mmap.PAGESIZE
        handle, view = self.buffer(mmap.PAGESIZE)
        return Page(handle >> 12, view)

    def new(self, ctype: str, count: int = 1, **fields: Any) -> tuple[int, Any]:
        """A structure in the arena with some fields set: handle and pointer."""
        handle, view = self.buffer(abi.sizeof(ctype) * count)
        pointer = abi.struct(ctype, view)
        for name, value in fields.items():
            setattr(pointer, name, value)
        return handle, pointer

    def raw(self, nr: int, *args: int) -> int:
        """A hypercall, continued until it is done; the number it returns."""
        padded = (*args, *(0,) * (6 - len(args)))
        while (ret := self.connection.hypercall(nr, padded)) == ERESTART:
            pass
        return ret

    def call(self, nr: int, *args: int) -> int:
        ret = self.raw(nr, *args)
        if ret < 0:
            raise xen_error("hypercall", -ret, nr=nr)
        return ret

    # --- event channels

    def evtchn(self, op: str, **fields: Any) -> Any:
        """EVTCHNOP_<op>; its argument afterwards."""
        handle, arg = self.new(f"struct evtchn_{op}", **fields)
        self.call(abi.nr.event_channel_op, getattr(lib, f"EVTCHNOP_{op}"), handle)
        return arg

    def port_fds(self, port: int) -> tuple[int, int]:
        ret, upcall, doorbell = self.connection.port_fds(port)
        if ret < 0:
            raise xen_error("port_fds", -ret, port=port)
        return upcall, doorbell

    # --- control

    def domctl(self, cmd: str, domid: int, member: str = "", **fields: Any) -> Any:
        """XEN_DOMCTL_<cmd>; struct xen_domctl afterwards."""
        handle, op = self.new(
            "struct xen_domctl",
            cmd=getattr(lib, f"XEN_DOMCTL_{cmd}"),
            interface_version=lib.XEN_DOMCTL_INTERFACE_VERSION,
            domain=domid,
        )
        for name, value in fields.items():
            setattr(getattr(op.u, member), name, value)
        self.call(abi.nr.domctl, handle)
        return op

    def sysctl(self, cmd: str, part: str = "", **fields: Any) -> Any:
        """XEN_SYSCTL_<cmd>; its own structure afterwards, `part` if it has another name."""
        handle, op = self.new(
            "struct xen_sysctl",
            cmd=getattr(lib, f"XEN_SYSCTL_{cmd}"),
            interface_version=lib.XEN_SYSCTL_INTERFACE_VERSION,
        )
        member = getattr(op.u, part or cmd)
        for name, value in fields.items():
            setattr(member, name, value)
        self.call(abi.nr.sysctl, handle)
        return member

    def create(self, domid: int = ANY_DOMAIN, max_vcpus: int = 1, mem_kib: int = 4096, **fields: Any) -> int:
        """A PV domain with its vCPUs, paused, without memory."""
        defaults = {
            "max_vcpus": max_vcpus,
            "max_evtchn_port": 1023,
            "max_grant_frames": -1,
            "max_maptrack_frames": -1,
            "grant_opts": 1,
        }
        op = self.domctl("createdomain", domid, "createdomain", **(defaults | fields))
        self.domctl("max_vcpus", op.domain, "max_vcpus", max=max_vcpus)
        self.domctl("max_mem", op.domain, "max_mem", max_memkb=mem_kib)
        return op.domain

    def destroy(self, domid: int) -> None:
        self.domctl("destroydomain", domid)

    def create_process_domain(self) -> int:
        """One of 1 MiB, running, without a connection."""
        domid = self.create()
        ret, start = self.machine.adopt(domid, 1 << 20)
        assert ret == 0 and start
        self.domctl("unpausedomain", domid)
        return domid

    def populate(self, domid: int, count: int) -> list[int]:
        """Single frames for a domain: their gfns."""
        extents, view = self.buffer(8 * count)
        gfns = view.cast("Q")
        for index in range(count):
            gfns[index] = index
        handle, _ = self.new(
            "struct xen_memory_reservation", extent_start=extents, nr_extents=count, domid=domid
        )
        done = self.call(abi.nr.memory_op, lib.XENMEM_populate_physmap, handle)
        assert done == count
        return list(gfns)

    def frame(self, mfn: int) -> memoryview:
        """A frame of machine memory."""
        bank = mmap.mmap(self.machine.bank_fd, mmap.PAGESIZE, offset=mfn * mmap.PAGESIZE)
        return memoryview(bank)

    def grant_frame(self, domid: int, index: int = 0) -> memoryview:
        """A frame of a domain's grant table, through XENMEM_acquire_resource."""
        frames, view = self.buffer(8)
        handle, _ = self.new(
            "struct xen_mem_acquire_resource",
            domid=domid,
            type=lib.XENMEM_resource_grant_table,
            nr_frames=1,
            frame=index,
            frame_list=frames,
        )
        self.call(abi.nr.memory_op, lib.XENMEM_acquire_resource, handle)
        return self.frame(view.cast("Q")[0])


def readable(fd: int, timeout: float = 0) -> bool:
    """Waits for an eventfd."""
    return bool(select.select([fd], [], [], timeout)[0])


def drain(fd: int) -> int:
    """Its count, reset to 0; 0 when it isn't readable."""
    return os.eventfd_read(fd) if readable(fd) else 0


def nr_threads() -> int:
    return len(os.listdir("/proc/self/task"))
