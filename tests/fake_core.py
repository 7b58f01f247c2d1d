"""A core without guests, for tests of the server and the guest kit: binding.Core in Python.

Real: the bank, arenas, event channels between Dom0's own ports (a thread serves the doorbells, as in the
core), grant maps of any frame as `gref`. Two hypercalls are the tests': RESTARTS (answers ERESTART until it
has been called `arg` times) and FAILS (raises).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import threading
from dataclasses import dataclass, field
from typing import Any

from hyper.binding import ConnHandle, CoreConfig, HvHandle
from hyper.guest import abi
from hyper.public.errors import XenErrno as E
from hyper.public.types import ProcessDomain

RESTARTS, FAILS = 62, 63
PRIVATE_GREF = 900


@dataclass(eq=False)
class FakePort:
    number: int
    owner: FakeConn | None
    upcall: int
    doorbell: int
    peer: FakePort | None = None


@dataclass(eq=False)
class FakeHv:
    config: CoreConfig
    bank: int
    ports: dict[int, FakePort] = field(default_factory=dict)
    conns: set[FakeConn] = field(default_factory=set)
    maps: dict[int, FakeConn] = field(default_factory=dict)
    console: bytearray = field(default_factory=bytearray)
    epoll: select.epoll = field(default_factory=select.epoll)
    stop: int = field(default_factory=lambda: os.eventfd(0, os.EFD_CLOEXEC))
    thread: threading.Thread | None = None

    def serve_doorbells(self) -> None:
        self.epoll.register(self.stop, select.EPOLLIN)
        while True:
            for fd, _ in self.epoll.poll():
                if fd == self.stop:
                    return
                os.eventfd_read(fd)
                for port in list(self.ports.values()):
                    if port.doorbell == fd and port.peer is not None:
                        os.eventfd_write(port.peer.upcall, 1)


@dataclass(eq=False)
class FakeConn:
    hv: FakeHv
    domid: int
    arena: mmap.mmap | None = None
    restarts: int = 0


class FakeCore:
    def __init__(self) -> None:
        self.machines: list[FakeHv] = []
        self.fail_create = 0

    def create(self, config: CoreConfig) -> tuple[int, HvHandle | None]:
        if self.fail_create:
            return self.fail_create, None
        bank = os.memfd_create("fake-bank", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(bank, config.memory_bytes)
        fcntl.fcntl(bank, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        hv = FakeHv(config, bank)
        self.machines.append(hv)
        return 0, HvHandle(hv)

    def start(self, hv: Any) -> int:
        hv.thread = threading.Thread(target=hv.serve_doorbells)
        hv.thread.start()
        return 0

    def destroy(self, hv: Any) -> None:
        assert not hv.conns, "a machine outlived by its connections"
        os.eventfd_write(hv.stop, 1)
        if hv.thread is not None:
            hv.thread.join()
        hv.epoll.close()
        os.close(hv.stop)
        os.close(hv.bank)
        self.machines.remove(hv)

    def engine_statistics(self, hv: Any, start: int) -> tuple[int, dict[str, int]]:
        return -3, {}

    def statistics(self, hv: Any) -> dict[str, int]:
        return {
            "total_frames": hv.config.memory_bytes >> 12,
            "free_frames": 0,
            "nr_domains": 1,
            "nr_conns": len(hv.conns),
            "nr_ports": len(hv.ports),
            "nr_grant_maps": len(hv.maps),
            "nr_rings": 0,
            "nr_banks": 0,
        }

    def bank_fd(self, hv: Any) -> int:
        return int(hv.bank)

    def bank_bytes(self, hv: Any) -> int:
        return int(hv.config.memory_bytes)

    def console_write(self, hv: Any, text: bytes) -> None:
        hv.console += text

    def conn_create(self, hv: Any, domid: int) -> tuple[int, ConnHandle | None]:
        if domid > 1:
            return -E.ESRCH, None
        conn = FakeConn(hv, domid)
        hv.conns.add(conn)
        return 0, ConnHandle(conn)

    def conn_end(self, conn: Any) -> int:
        return 0

    def conn_destroy(self, conn: Any) -> None:
        for port in [port for port in conn.hv.ports.values() if port.owner is conn]:
            self._close(conn, port.number)
        conn.hv.maps = {handle: owner for handle, owner in conn.hv.maps.items() if owner is not conn}
        conn.hv.conns.remove(conn)

    def conn_set_arena(self, conn: Any, fd: int, nbytes: int) -> int:
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            return -E.EINVAL
        wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        if conn.arena is not None:
            return -E.EBUSY
        if seals & wanted != wanted or not 0 < nbytes <= os.fstat(fd).st_size:
            return -E.EINVAL
        conn.arena = mmap.mmap(fd, nbytes)
        return 0

    def conn_hypercall(self, conn: Any, nr: int, args: tuple[int, ...]) -> int:
        if nr == abi.nr.xen_version:
            return 4 << 16 | 17
        if nr == FAILS:
            raise RuntimeError("as asked")
        if nr == RESTARTS:
            conn.restarts += 1
            if conn.restarts < args[0]:
                return -E.ERESTART
            conn.restarts = 0
            return args[0]
        if nr == abi.nr.event_channel_op:
            return self._evtchn_op(conn, *args)
        if nr == abi.nr.grant_table_op:
            return self._grant_op(conn, *args)
        return -E.ENOSYS

    def conn_port_fds(self, conn: Any, port: int) -> tuple[int, int, int]:
        found = conn.hv.ports.get(port)
        if found is None or found.owner is not conn:
            return -E.EPERM if found else -E.EINVAL, -1, -1
        return 0, found.upcall, found.doorbell

    def max_mfn(self, hv: Any) -> int:
        return int(hv.config.memory_bytes) >> 12

    def adopt(self, hv: Any, domid: int, bank_bytes: int) -> tuple[int, ProcessDomain | None]:
        return -E.ESRCH, None  # process domains are the real core's

    def process_bank(self, hv: Any, domid: int) -> tuple[int, ProcessDomain | None, int]:
        return -E.ENOENT if domid < 2 else -E.ESRCH, None, -1

    def conn_make_arena(self, conn: Any, nbytes: int) -> tuple[int, int]:
        return -E.EOPNOTSUPP, -1

    def conn_hangup_fd(self, conn: Any) -> int:
        return -1

    def conn_open_ring(self, conn: Any) -> tuple[int, int, int]:
        return -E.EOPNOTSUPP, -1, -1  # what serves one is the core's own C

    def _struct(self, conn: Any, ctype: str, at: int) -> Any:
        if conn.arena is None or not 0 < at <= len(conn.arena) - abi.sizeof(ctype):
            return None
        return abi.struct(ctype, memoryview(conn.arena)[at:])

    def _evtchn_op(self, conn: Any, command: int, at: int) -> int:
        ctypes = {
            abi.lib.EVTCHNOP_alloc_unbound: "struct evtchn_alloc_unbound",
            abi.lib.EVTCHNOP_bind_interdomain: "struct evtchn_bind_interdomain",
            abi.lib.EVTCHNOP_bind_virq: "struct evtchn_bind_virq",
            abi.lib.EVTCHNOP_close: "struct evtchn_close",
            abi.lib.EVTCHNOP_send: "struct evtchn_send",
        }
        if command not in ctypes:
            return -E.ENOSYS
        if (op := self._struct(conn, ctypes[command], at)) is None:
            return -E.EFAULT
        if command == abi.lib.EVTCHNOP_close:
            return self._close(conn, op.port)
        if command == abi.lib.EVTCHNOP_send:
            os.eventfd_write(conn.hv.ports[op.port].peer.upcall, 1)
            return 0
        if command == abi.lib.EVTCHNOP_bind_interdomain:
            peer = conn.hv.ports.get(op.remote_port)
            if peer is None or peer.peer is not None:
                return -E.EINVAL
            port = self._open(conn)
            port.peer, peer.peer = peer, port
            op.local_port = port.number
            os.eventfd_write(port.upcall, 1)  # what was sent before the bind may have been lost
            return 0
        op.port = self._open(conn).number
        return 0

    def _open(self, conn: Any) -> FakePort:
        number = next(n for n in range(1, 4096) if n not in conn.hv.ports)
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        port = FakePort(number, conn, os.eventfd(0, flags), os.eventfd(0, flags))
        conn.hv.ports[number] = port
        conn.hv.epoll.register(port.doorbell, select.EPOLLIN)
        return port

    def _close(self, conn: Any, number: int) -> int:
        if number not in conn.hv.ports or conn.hv.ports[number].owner is not conn:
            return -E.EINVAL
        port = conn.hv.ports.pop(number)
        if port.peer is not None:
            port.peer.peer = None
        conn.hv.epoll.unregister(port.doorbell)
        os.close(port.upcall)
        os.close(port.doorbell)
        return 0

    def _grant_op(self, conn: Any, command: int, at: int, count: int) -> int:
        if command == abi.lib.GNTTABOP_map_grant_ref:
            if (op := self._struct(conn, "struct gnttab_map_grant_ref", at)) is None:
                return -E.EFAULT
            if op.ref == PRIVATE_GREF:
                op.status = abi.lib.GNTST_bad_gntref
                return 0
            handle = next(n for n in range(len(conn.hv.maps) + 1) if n not in conn.hv.maps)
            conn.hv.maps[handle] = conn
            op.handle, op.dev_bus_addr, op.status = handle, op.ref << 12, abi.lib.GNTST_okay
            return 0
        if (op := self._struct(conn, "struct gnttab_unmap_grant_ref", at)) is None:
            return -E.EFAULT
        known = conn.hv.maps.pop(op.handle, None)
        op.status = abi.lib.GNTST_okay if known else abi.lib.GNTST_bad_handle
        return 0
