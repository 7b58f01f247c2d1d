"""Owners of what the core gives out: the machine, and one Connection per process of a process domain.

Both are context managers. A connection keeps its machine; the machine closes what connections are left.
"""

from __future__ import annotations

from typing import Self

from hyper.binding import ConnHandle, Core, CoreConfig, HvHandle
from hyper.public.errors import XenErrno, xen_error
from hyper.public.types import ProcessDomain

ERESTART = -XenErrno.ERESTART


class Machine:
    """A running machine: created and started by `with`, stopped and freed at its end."""

    def __init__(self, core: Core, config: CoreConfig) -> None:
        self.core = core
        self.config = config
        self._hv: HvHandle | None = None
        self._connections: set[Connection] = set()

    def __enter__(self) -> Self:
        """Raises: XenError: OutOfFrames when the host refuses the memory, BadArgument."""
        ret, self._hv = self.core.create(self.config)
        if ret < 0 or self._hv is None:
            raise xen_error("hv_create", -ret, **vars(self.config))
        if (ret := self.core.start(self._hv)) < 0:
            self.__exit__()
            raise xen_error("hv_start", -ret, cpus=self.config.nr_pcpus)
        return self

    def __exit__(self, *_: object) -> None:
        for connection in list(self._connections):
            connection.close()
        hv, self._hv = self._hv, None
        if hv is not None:
            self.core.destroy(hv)

    @property
    def hv(self) -> HvHandle:
        if self._hv is None:
            raise RuntimeError("the machine does not run")
        return self._hv

    @property
    def bank_fd(self) -> int:
        """The memfd of machine memory; the machine's own."""
        return self.core.bank_fd(self.hv)

    @property
    def bank_bytes(self) -> int:
        return self.core.bank_bytes(self.hv)

    @property
    def max_mfn(self) -> int:
        """Every frame of any bank at any time is below."""
        return self.core.max_mfn(self.hv)

    def adopt(self, domid: int, bank_bytes: int) -> tuple[int, ProcessDomain | None]:
        """Makes an empty, paused PV domain a process domain. 0 or -XEN_E*, and what it will find."""
        return self.core.adopt(self.hv, domid, bank_bytes)

    def process_bank(self, domid: int) -> tuple[int, ProcessDomain | None, int]:
        """(0, what `domid` found at its start, its bank's memfd, the caller's to close); -ENOENT for a domain
        in the main bank.
        """
        return self.core.process_bank(self.hv, domid)

    def statistics(self) -> dict[str, int]:
        """struct hv_statistics."""
        return self.core.statistics(self.hv)

    def engine_statistics(self, start: int) -> tuple[int, dict[str, int]]:
        """The first guest from domid `start` on, and its struct hv_engine_statistics; or -ESRCH."""
        return self.core.engine_statistics(self.hv, start)

    def console_write(self, text: str) -> None:
        """Appends a line to the hypervisor console (`xm dmesg`)."""
        self.core.console_write(self.hv, text.encode(errors="replace") + b"\n")

    def connect(self, domid: int) -> Connection:
        """A new process of process domain `domid`.

        Raises: NoSuchDomain, OutOfFrames.
        """
        ret, handle = self.core.conn_create(self.hv, domid)
        if ret < 0 or handle is None:
            raise xen_error("hv_conn_create", -ret, domid=domid)
        connection = Connection(self, handle, domid)
        self._connections.add(connection)
        return connection


class Connection:
    """A process of a process domain as the core knows it. Calls answer the core's 0 or -XEN_E*: they travel
    on.
    """

    def __init__(self, machine: Machine, handle: ConnHandle, domid: int) -> None:
        self.machine = machine
        self.domid = domid
        self._handle: ConnHandle | None = handle

    @property
    def _conn(self) -> ConnHandle:
        if self._handle is None:
            raise RuntimeError("the connection is closed")
        return self._handle

    def set_arena(self, fd: int, nbytes: int) -> int:
        """Once; -EBUSY afterwards. `fd` stays the caller's."""
        return self.machine.core.conn_set_arena(self._conn, fd, nbytes)

    def make_arena(self, nbytes: int) -> tuple[int, int]:
        """(result, memfd) of an arena that hyper makes; the fd is the caller's to close."""
        return self.machine.core.conn_make_arena(self._conn, nbytes)

    @property
    def hangup_fd(self) -> int:
        """Readable once the domain is being destroyed; -1 for Dom0. The core's."""
        return self.machine.core.conn_hangup_fd(self._conn)

    def hypercall(self, nr: int, args: tuple[int, ...]) -> int:
        """One bounded piece; ERESTART: call again with the same arguments. At most 100 us."""
        return self.machine.core.conn_hypercall(self._conn, nr, args)

    def port_fds(self, port: int) -> tuple[int, int, int]:
        """(result, upcall, doorbell); both fds stay the core's."""
        return self.machine.core.conn_port_fds(self._conn, port)

    def open_ring(self) -> tuple[int, int, int]:
        """(result, memfd, doorbell) of a new hypercall ring; both fds are the caller's to close."""
        return self.machine.core.conn_open_ring(self._conn)

    def end(self) -> int:
        """A piece of close(): ERESTART until the quick rest is left. Only close() may follow."""
        return self.machine.core.conn_end(self._conn)

    def close(self) -> None:
        """Ends its rings, closes its ports, unmaps its grants, drops its arena. May be called twice."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self.machine._connections.discard(self)
            self.machine.core.conn_destroy(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
