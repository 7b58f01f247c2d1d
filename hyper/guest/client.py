"""The hypercall client: one connection to hyper, over the control socket or an inherited one.

    async with hyper.guest.connect(HostPaths.from_environment().control) as hyp:
        await hyp.hypercall(abi.nr.domctl, buffer.addr)

One request is in flight at a time; tasks take turns. A task that is cancelled while hyper works on its
request waits for the answer first, so an arena buffer is never freed under a running hypercall. A task
watches for the hang-up alone: a lost hypervisor is noticed even while everybody waits for events.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from hyper.guest import abi
from hyper.guest.arena import DEFAULT_BYTES, Arena
from hyper.guest.bank import Window
from hyper.guest.grant_table import GrantTable
from hyper.guest.grants import GrantCopy, Mapping
from hyper.guest.hcall import HypercallRing
from hyper.guest.memory import Memory
from hyper.guest.ports import Port
from hyper.public import wire
from hyper.public.errors import GrantError, HypervisorGone, XenErrno, xen_error
from hyper.public.packets import as_packet_socket, close_fds, receive_packet, send_packet
from hyper.public.types import PAGE_SHIFT, DomId, EvtchnPort, GrantHandle, Mfn, ProcessDomain, Virq

_U64 = (1 << 64) - 1
_HUNG_UP = "hyper has hung up"


@asynccontextmanager
async def connect(path: Path | str, arena_bytes: int = DEFAULT_BYTES) -> AsyncIterator[Hypervisor]:
    """A connection to the hyper that listens on `path`. Its ports, mappings and rings end with it.

    Raises: HypervisorGone when nobody listens there, or hyper refuses us.
    """
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        await sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise HypervisorGone(f"{path}: {error.strerror or error}; is the host up?") from error
    async with attach(as_packet_socket(sock), arena_bytes) as hyp:
        yield hyp


@asynccontextmanager
async def attach(sock: socket.socket, arena_bytes: int = DEFAULT_BYTES) -> AsyncIterator[Hypervisor]:
    """The same over a connected SEQPACKET socket, for example an inherited one. It is closed at the end. A
    process domain other than Dom0 has an arena of at most 16 MiB.

    Raises: HypervisorGone.
    """
    failure: BaseException | None = None
    sock.setblocking(False)
    with sock:
        hyp = Hypervisor(sock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hyp._watch)
            try:
                await hyp._start(arena_bytes)
                yield hyp
            except BaseException as error:  # raised again outside the nursery, so not as a group
                failure = error
            hyp._watching.cancel()
        hyp._close()
    if failure is not None:
        raise failure


class Hypervisor:
    """What a process of a process domain asks of its hypervisor. Made by connect() and attach()."""

    domid: DomId
    arena: Arena
    process_domain: ProcessDomain | None = None
    """What a process domain other than Dom0 found at its start."""
    memory: Memory
    """Such a domain's free RAM."""
    grant_table: GrantTable
    """And its own grant table."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._window = Window(0, 0)
        self._bank_bytes = 0
        self._turn = trio.Lock()
        self._ports: set[Port] = set()
        self._gone = trio.Event()
        # Shielded: whoever cleans up in a cancelled scope may still ask, and be told that hyper is gone.
        self._watching = trio.CancelScope(shield=True)
        self._reason = ""

    # --- requests

    async def hypercall(self, nr: int, *args: int, **context: object) -> int:
        """One hypercall. Negative arguments travel as their 64-bit two's complement.

        `context` is added to the text of an error. Not interrupted by cancellation once sent.
        Raises: XenError, the leaf of the errno; HypervisorGone.
        """
        request = wire.Hypercall(nr, tuple(arg & _U64 for arg in args))
        fields, _ = await self._request(request, nr_fds=0)
        return _checked(abi.HYPERCALL_NAMES.get(nr, f"hypercall {nr}"), fields, context)

    async def statistics(self) -> dict[str, int]:
        """Counters of the whole host: total_frames, free_frames, nr_domains, nr_conns, nr_ports,
        nr_grant_maps.
        """
        fields, _ = await self._request(wire.Statistics())
        return dict(fields["statistics"])

    async def wait_gone(self) -> str:
        """Returns the reason when the connection to hyper is lost."""
        await self._gone.wait()
        return self._reason

    # --- memory

    def frame(self, mfn: int) -> memoryview:
        """The 4096 bytes of a machine frame: for Dom0 any, for others one of their own bank.

        Raises: OutOfRange.
        """
        return self.frames(mfn, 1)

    def frames(self, mfn: int, count: int) -> memoryview:
        """The bytes of `count` machine frames in a row.

        Raises: OutOfRange.
        """
        return self._window.frames(mfn, count)

    @property
    def bank(self) -> tuple[int, int]:
        """For C code: the host address of mfn 0, and the bytes of the main bank. Frame mfn lies at
        address + (mfn << 12).
        """
        return self._window.address, self._bank_bytes

    @property
    def max_mfn(self) -> int:
        """C code checks mfn < max_mfn before it looks at a frame that a granter named."""
        return self._window.max_mfn

    async def map_bank(self, domid: int) -> None:
        """Makes the memory of `domid` visible here. Guests on CPUs live in the main bank, which is; a process
        domain has its own, which stays mapped. Once per domain, before its grants are used.

        Raises: XenError: NoSuchDomain.
        """
        fields, fds = await self._request(wire.Bank(domid))
        try:
            if fields["ret"] == -XenErrno.ENOENT:
                return
            _checked("bank", fields, {"domid": domid})
            start = ProcessDomain(**fields["process"])
            self._window.map(start.base_mfn, fds[0], start.nr_frames << PAGE_SHIFT, start.serial)
        finally:
            close_fds(fds)

    async def adopt(self, domid: int, bank_bytes: int) -> tuple[ProcessDomain, socket.socket]:
        """Makes a PV domain that was just created, paused and empty, a process domain with its own memory.

        Returns: what it finds at its start; the socket that is the domain, for attach() in its process.
        Raises: XenError: NoSuchDomain, BadArgument, Busy, OutOfFrames.
        """
        fields, fds = await self._request(wire.Adopt(domid, bank_bytes), nr_fds=1)
        _checked("adopt", fields, {"domid": domid, "bank_bytes": bank_bytes})
        return ProcessDomain(**fields["process"]), socket.socket(fileno=fds[0])

    async def map_grant(self, domid: int, gref: int, readonly: bool = False) -> Mapping:
        """Maps the frame that `domid` grants us as `gref`.

        Raises: GrantError, XenError, HypervisorGone.
        """
        flags = abi.lib.GNTMAP_device_map | (abi.lib.GNTMAP_readonly if readonly else 0)
        with (
            trio.CancelScope(shield=True),
            self.arena.new("struct gnttab_map_grant_ref", flags=flags, ref=gref, dom=domid) as buf,
        ):
            await self.hypercall(abi.nr.grant_table_op, abi.lib.GNTTABOP_map_grant_ref, buf.addr, 1)
            if buf.struct.status != abi.lib.GNTST_okay:
                raise GrantError("map_grant_ref", buf.struct.status, domid=domid, gref=gref)
            handle, mfn = GrantHandle(buf.struct.handle), Mfn(buf.struct.dev_bus_addr >> PAGE_SHIFT)
            if mfn >= self._bank_bytes >> PAGE_SHIFT:
                await self.map_bank(domid)  # perhaps another's than the one we know at this place
        view = self.frame(mfn)
        return Mapping(handle, mfn, view.toreadonly() if readonly else view, self._unmap_grant)

    async def _unmap_grant(self, mapping: Mapping) -> None:
        if self._gone.is_set():
            return
        fields = {"dev_bus_addr": mapping.mfn << PAGE_SHIFT, "handle": mapping.handle}
        with self.arena.new("struct gnttab_unmap_grant_ref", **fields) as buf:
            await self.hypercall(abi.nr.grant_table_op, abi.lib.GNTTABOP_unmap_grant_ref, buf.addr, 1)
            if buf.struct.status != abi.lib.GNTST_okay:
                raise GrantError("unmap_grant_ref", buf.struct.status, handle=mapping.handle)

    async def grant_copy(self, *copies: GrantCopy) -> list[int]:
        """Copies between our arena's pages and frames granted to us, or between two of these.

        Returns: the status (GNTST_*) of each.
        Raises: XenError; HypervisorGone.
        """
        with self.arena.alloc(len(copies) * abi.sizeof("struct gnttab_copy")) as buf:
            ops = abi.struct("struct gnttab_copy", buf.view)
            for index, copy in enumerate(copies):
                copy.fill(ops[index])
            await self.hypercall(abi.nr.grant_table_op, abi.lib.GNTTABOP_copy, buf.addr, len(copies))
            return [ops[index].status for index in range(len(copies))]

    # --- hot calls

    @asynccontextmanager
    async def hypercall_ring(self, window_bytes: int = 65536) -> AsyncIterator[HypercallRing]:
        """A ring for hypercalls of one thread, a C thread perhaps; hyper serves it with a thread of its own.

        `window_bytes` of the arena are its room for arguments. The thread must have left it at the end of the
        block.
        Raises: XenError: NoFreeSlot when this connection has too many; ArenaFull; HypervisorGone.
        """
        window = self.arena.alloc(window_bytes)
        try:
            fields, fds = await self._request(wire.Ring(), nr_fds=2)
            _checked("ring", fields, {})
        except BaseException:
            window.free()
            raise
        ring = HypercallRing(fds[0], fds[1], window)
        try:
            yield ring
        finally:
            ring.close()

    # --- event channels

    async def bind_interdomain(self, domid: int, remote_port: int) -> Port:
        """Binds a new port of ours to `remote_port`, which `domid` has allocated for us.

        Raises: XenError: NoSuchDomain, BadArgument when the remote port does not wait for us, NoFreeSlot.
        """
        return await self._bind(
            abi.lib.EVTCHNOP_bind_interdomain,
            "struct evtchn_bind_interdomain", "local_port",
            remote_dom=domid, remote_port=remote_port,
        )  # fmt: skip

    async def bind_virq(self, virq: int, vcpu_id: int = 0) -> Port:
        """Binds a virtual interrupt to a new port of ours.

        Raises: XenError: AlreadyExists when another port has it.
        """
        return await self._bind(
            abi.lib.EVTCHNOP_bind_virq, "struct evtchn_bind_virq", "port", virq=Virq(virq), vcpu=vcpu_id
        )

    async def alloc_unbound(self, domid: int, remote_domid: int) -> EvtchnPort:
        """Reserves a port of `domid`, not of ours, that only `remote_domid` may bind.

        Raises: XenError: NoSuchDomain, NotPrivileged, NoFreeSlot.
        """
        fields = {"dom": domid, "remote_dom": remote_domid}
        with self.arena.new("struct evtchn_alloc_unbound", **fields) as buf:
            await self._evtchn_op(abi.lib.EVTCHNOP_alloc_unbound, buf.addr, **fields)
            return EvtchnPort(buf.struct.port)

    async def alloc_port(self, remote_domid: int) -> Port:
        """A new port of ours that waits for `remote_domid` to bind it: the frontend's half of a device.

        Raises: XenError: NoSuchDomain, NoFreeSlot.
        """
        return await self._bind(
            abi.lib.EVTCHNOP_alloc_unbound,
            "struct evtchn_alloc_unbound", "port",
            dom=abi.lib.DOMID_SELF, remote_dom=remote_domid,
        )  # fmt: skip

    async def open_port(self, number: int) -> Port:
        """A port of ours that exists: the toolstack has made it, for xenstore or the console.

        Raises: XenError: BadArgument for no such port; NotPrivileged for that of another process.
        """
        with trio.CancelScope(shield=True):
            port = await self._request_port(EvtchnPort(number))
        return port

    async def _bind(self, command: int, ctype: str, result: str, **fields: int) -> Port:
        with trio.CancelScope(shield=True), self.arena.new(ctype, **fields) as buf:
            await self._evtchn_op(command, buf.addr, **fields)
            port = await self._request_port(EvtchnPort(getattr(buf.struct, result)))
        return port

    async def _request_port(self, number: EvtchnPort) -> Port:
        answer, fds = await self._request(wire.Port(number), nr_fds=2)
        _checked("port", answer, {"port": number})
        port = Port(number, fds[0], fds[1], self._evtchn_close)
        self._ports.add(port)
        return port

    async def _evtchn_close(self, port: Port) -> None:
        self._ports.discard(port)
        if self._gone.is_set():
            return
        with self.arena.new("struct evtchn_close", port=port.number) as buf:
            await self._evtchn_op(abi.lib.EVTCHNOP_close, buf.addr, port=port.number)

    async def _evtchn_op(self, command: int, address: int, **context: object) -> int:
        return await self.hypercall(abi.nr.event_channel_op, command, address, **context)

    # --- the fd store: what a restarted daemon finds again

    async def fd_put(self, name: str, fd: int) -> None:
        """hyper keeps a duplicate of `fd` under `name` (at most 128 bytes) until fd_del or its own end.

        Raises: XenError: NoFreeSlot.
        """
        fields, _ = await self._request(wire.FdPut(name), (fd,), nr_fds=0)
        _checked("fd_put", fields, {"name": name})

    async def fd_get(self, name: str) -> int | None:
        """A new descriptor (the caller closes it), or None when there is nothing under `name`."""
        fields, fds = await self._request(wire.FdGet(name), nr_fds=1)
        if fields["ret"] == -XenErrno.ENOENT:
            return None
        _checked("fd_get", fields, {"name": name})
        return fds[0]

    async def fd_del(self, name: str) -> None:
        """Raises: XenError: NoSuchNode when there is nothing under `name`."""
        fields, _ = await self._request(wire.FdDel(name), nr_fds=0)
        _checked("fd_del", fields, {"name": name})

    # --- the connection

    async def _start(self, arena_bytes: int = DEFAULT_BYTES) -> None:
        fields, fds = await self._request(wire.Hello(wire.VERSION))
        try:
            _checked("hello", fields, {})
            self.domid = DomId(fields["domid"])
            if "process" in fields:
                start = self.process_domain = ProcessDomain(**fields["process"])
                self._window = Window(start.base_mfn, start.base_mfn + start.nr_frames)
                self._window.map(start.base_mfn, fds[0], start.nr_frames << PAGE_SHIFT)
                end = start.base_mfn + start.nr_frames
                self.memory = Memory(start.first_free_mfn, end - start.first_free_mfn, self.frames)
                self.grant_table = GrantTable(self.frames(start.grant_mfn, start.nr_grant_frames))
            elif fds:
                self._bank_bytes = fields["bank_bytes"]
                self._window = Window(0, fields["max_mfn"])
                self._window.map(0, fds[0], self._bank_bytes)
        finally:
            close_fds(fds)
        await (self._take_arena if self.process_domain else self._give_arena)(arena_bytes)

    async def _give_arena(self, nbytes: int) -> None:
        self.arena = Arena(nbytes)
        fields, _ = await self._request(wire.Arena(nbytes), (self.arena.fd,), nr_fds=0)
        _checked("arena", fields, {"bytes": nbytes})

    async def _take_arena(self, nbytes: int) -> None:
        fields, fds = await self._request(wire.MakeArena(nbytes), nr_fds=1)
        _checked("make_arena", fields, {"bytes": nbytes})
        self.arena = Arena(nbytes, fds[0])

    async def _request(
        self, request: wire.Request, fds: Sequence[int] = (), nr_fds: int | None = None
    ) -> tuple[dict[str, Any], list[int]]:
        packet = wire.encode_request(request)
        async with self._turn:
            if self._gone.is_set():
                raise HypervisorGone(self._reason)
            with trio.CancelScope(shield=True):
                fields, answer_fds = await self._exchange(packet, fds)
        if fields["ret"] >= 0 and nr_fds is not None and len(answer_fds) != nr_fds:
            close_fds(answer_fds)
            raise HypervisorGone(f"{len(answer_fds)} descriptors in an answer, not {nr_fds}")
        return fields, answer_fds

    async def _exchange(self, packet: bytes, fds: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
        with suppress(ConnectionError):  # why, it may have told before it hung up
            await send_packet(self._sock, packet, fds)
        reason = _HUNG_UP
        try:
            answer, answer_fds = await receive_packet(self._sock)
            if answer:
                fields = wire.decode_reply(answer)
                if "error" not in fields:
                    return fields, answer_fds
                reason = f"hyper has refused a request: {fields['error']}"
        except (ConnectionError, wire.WireError) as error:
            reason = f"connection to hyper: {error}"
        self._hang_up(reason)
        raise HypervisorGone(self._reason)

    async def _watch(self) -> None:
        with self._watching, select.epoll(1) as hang_ups:
            hang_ups.register(self._sock, select.EPOLLRDHUP)
            await trio.lowlevel.wait_readable(hang_ups.fileno())
            async with self._turn:  # a request in flight learns more about it
                self._hang_up(_HUNG_UP)

    def _close(self) -> None:
        self._hang_up("the connection is closed")
        for port in self._ports:
            port._drop()
        self._ports.clear()
        self._window = Window(0, 0)
        if hasattr(self, "arena"):
            self.arena.close()

    def _hang_up(self, reason: str) -> None:
        if not self._gone.is_set():
            self._reason = reason
            self._gone.set()
            for port in self._ports:
                port._hang_up()


def _checked(op: str, fields: dict[str, Any], context: dict[str, object]) -> int:
    ret: int = fields["ret"]
    if ret < 0:
        raise xen_error(op, -ret, **context)
    return ret
