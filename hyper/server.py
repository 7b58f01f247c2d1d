"""The control socket: hypercalls of process domains (hyper/public/wire.py has the frames).

One task per connection; who is connected is who it is: a connection through the socket in Dom0's folder is
Dom0, and the socket that `adopt` hands out is the adopted domain. Of that one hyper takes no descriptors, and
answers a bounded number of requests a second: hot calls have their rings. A frame that is no frame, or breaks
the rules, is answered with its reason and ends that connection; so does an exception of ours. Nothing else
notices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
from pathlib import Path

import structlog
import trio

from hyper.machine import ERESTART, Connection, Machine
from hyper.public import wire
from hyper.public.errors import XenErrno, XenError
from hyper.public.packets import as_packet_socket, close_fds, receive_packet, send_packet

DOM0 = 0
MAX_CONNECTIONS = 512
MAX_STORED_FDS = 1024
MAX_REQUESTS, PACE_SECONDS = 100, 0.1
"""So many requests in so many seconds are answered at once to a process domain other than Dom0."""
HELD_SECONDS = 0.005
"""How often its preempted or paused call is tried again."""
_SO_PASSRIGHTS = 83  # Linux 6.16

_ACCEPT_LATER = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)

log = structlog.get_logger()


def listen(path: Path) -> trio.socket.SocketType:
    """A listening socket at `path`, mode 0600. The caller holds the host's lock: what lies there is stale.

    Raises: OSError.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # nobody can connect before listen()
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return trio.socket.from_stdlib_socket(listener)


class FdStore:
    """File descriptors kept for daemons that may be restarted, by name. They are the store's own."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def put(self, name: str, fd: int) -> int:
        """Keeps a duplicate of `fd`, replacing what was there. 0 or -ENOSPC."""
        if name not in self._fds and len(self._fds) >= MAX_STORED_FDS:
            return -XenErrno.ENOSPC
        kept = os.dup(fd)
        self.delete(name)
        self._fds[name] = kept
        return 0

    def get(self, name: str) -> int | None:
        """A duplicate, the caller's to close."""
        return os.dup(self._fds[name]) if name in self._fds else None

    def delete(self, name: str) -> int:
        """0 or -ENOENT."""
        if name not in self._fds:
            return -XenErrno.ENOENT
        os.close(self._fds.pop(name))
        return 0

    def close(self) -> None:
        close_fds(self._fds.values())
        self._fds.clear()


class Server:
    """Serves one machine. `serve` is Dom0's door; `serve_connection` takes a socket of any process domain."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._store = FdStore()
        self._nursery: trio.Nursery | None = None

    async def serve(self, listener: trio.socket.SocketType) -> None:
        """Accepts Dom0's processes until cancelled. Waits with the next one while MAX_CONNECTIONS are
        served.
        """
        free_places = trio.Semaphore(MAX_CONNECTIONS)

        async def serve_one(sock: socket.socket) -> None:
            try:
                await self.serve_connection(sock, DOM0)
            finally:
                free_places.release()

        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                while True:
                    await free_places.acquire()
                    nursery.start_soon(serve_one, await _accept(listener))
        finally:
            self._store.close()

    async def serve_connection(self, sock: socket.socket, domid: int) -> None:
        """One process of domain `domid`, until it hangs up or is refused. Closes `sock`."""
        try:
            connection = self._machine.connect(domid)
        except XenError as error:
            log.warning("connection refused", domid=domid, reason=str(error))
            with sock:
                await _say_why(sock, str(error))
            return
        await self._serve_session(sock, connection)

    async def _serve_session(self, sock: socket.socket, connection: Connection) -> None:
        domid = connection.domid
        with sock:
            try:
                with connection:
                    try:
                        await _Session(self, connection, sock).run()
                    finally:
                        await _end(connection)
            except (wire.WireError, XenError) as error:
                log.warning("connection refused", domid=domid, reason=str(error))
                await _say_why(sock, str(error))
            except OSError as error:
                log.warning("connection lost", domid=domid, reason=str(error))
            except Exception:  # ours to mend; the others go on
                log.exception("connection ended by an error of hyper", domid=domid)
                await _say_why(sock, "an error of hyper; see its log")

    @property
    def machine(self) -> Machine:
        return self._machine

    @property
    def store(self) -> FdStore:
        return self._store

    def adopt(self, domid: int, bank_bytes: int) -> tuple[bytes, list[int]]:
        """The reply to wire.Adopt. The domain's connection is there before anybody knows of its socket."""
        if self._nursery is None:
            raise RuntimeError("adopt: nobody accepts connections")
        ret, start = self._machine.adopt(domid, bank_bytes)
        if ret < 0 or start is None:
            return wire.encode_reply(ret), []
        try:
            process = _Process(self._machine, domid)
        except (OSError, XenError) as error:
            log.error("cannot connect an adopted domain", domid=domid, reason=str(error))
            return wire.encode_reply(-XenErrno.EMFILE), []
        self._nursery.start_soon(self._serve_process, process.sock, process.connection, process.hangup_fd)
        return wire.encode_reply(0, process=dataclasses.asdict(start)), [process.theirs.detach()]

    async def _serve_process(self, sock: socket.socket, connection: Connection, hangup_fd: int) -> None:
        """Until it hangs up, or its domain is destroyed. Must not fail: nothing stands above."""
        assert self._nursery is not None
        watching = trio.CancelScope()
        self._nursery.start_soon(_hang_up, hangup_fd, sock, watching)
        try:
            await self._serve_session(sock, connection)
        finally:
            watching.cancel()


async def _end(connection: Connection) -> None:
    """Gives back what it holds, and lets others through meanwhile."""
    with trio.CancelScope(shield=True):
        while connection.end() == ERESTART:
            await trio.lowlevel.checkpoint()


class _Process:
    """The parts of a new process domain's connection; all of them or none.

    Raises: OSError, XenError.
    """

    def __init__(self, machine: Machine, domid: int) -> None:
        with contextlib.ExitStack() as undo:
            self.connection = undo.enter_context(machine.connect(domid))
            self.sock, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(self.sock)
            undo.enter_context(self.theirs)
            self.hangup_fd = os.dup(self.connection.hangup_fd)
            undo.pop_all()
        self.sock.setblocking(False)
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


async def _hang_up(hangup_fd: int, sock: socket.socket, watching: trio.CancelScope) -> None:
    """Shuts `sock` down once `hangup_fd`, which is ours to close, is readable. Must not fail."""
    try:
        with watching, contextlib.suppress(OSError):  # it may have been closed just now
            await trio.lowlevel.wait_readable(hangup_fd)
            sock.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(hangup_fd)


async def _accept(listener: trio.socket.SocketType) -> socket.socket:
    while True:
        try:
            sock, _ = await listener.accept()
            return as_packet_socket(sock)
        except OSError as error:
            if error.errno not in _ACCEPT_LATER:
                raise
            log.error("cannot accept a connection", error=str(error))
            await trio.sleep(0.1)


async def _say_why(sock: socket.socket, reason: str) -> None:
    with contextlib.suppress(OSError), trio.move_on_after(1):
        await send_packet(sock, wire.encode_error(reason))


class _Session:
    """The frames of one connection."""

    def __init__(self, server: Server, connection: Connection, sock: socket.socket) -> None:
        self._server = server
        self._machine = server.machine
        self._store = server.store
        self._connection = connection
        self._sock = sock
        self._greeted = False
        self._is_dom0 = connection.domid == DOM0
        self._counted_from, self._counted = 0.0, 0

    async def run(self) -> None:
        """Until the peer hangs up.

        Raises: WireError for a frame that is refused; OSError.
        """
        while await self._serve_next():
            pass

    async def _serve_next(self) -> bool:
        if not self._is_dom0:
            await self._keep_pace()
        packet, fds = await receive_packet(self._sock)
        if not packet:
            return False
        try:
            request = wire.decode_request(packet, len(fds))
            if self._greeted == isinstance(request, wire.Hello):
                raise wire.WireError("hello comes first, and once")
            reply, reply_fds = await self._answer(request, fds)
        finally:
            close_fds(fds)
        try:
            await send_packet(self._sock, reply, reply_fds)
        finally:
            close_fds(reply_fds)
        return True

    async def _answer(self, request: wire.Request, fds: list[int]) -> tuple[bytes, list[int]]:
        """The reply and the descriptors beside it, which are closed once sent. `fds` stay the caller's."""
        match request:
            case wire.Hypercall(nr, args):
                return wire.encode_reply(await self._hypercall(nr, args)), []
            case wire.Hello(version):
                return self._hello(version)
            case wire.Arena() | wire.Adopt() | wire.Bank() if not self._is_dom0:
                return wire.encode_reply(-XenErrno.EPERM), []
            case wire.Statistics() | wire.EngineStatistics() if not self._is_dom0:
                return wire.encode_reply(-XenErrno.EPERM), []
            case wire.FdPut() | wire.FdGet() | wire.FdDel() if not self._is_dom0:
                return wire.encode_reply(-XenErrno.EPERM), []
            case wire.Arena(nbytes):
                return wire.encode_reply(self._connection.set_arena(fds[0], nbytes)), []
            case wire.MakeArena(nbytes):
                ret, memfd = self._connection.make_arena(nbytes)
                return wire.encode_reply(ret), [memfd] if ret >= 0 else []
            case wire.Adopt(domid, nbytes):
                return self._server.adopt(domid, nbytes)
            case wire.Bank(domid):
                ret, start, bank = self._machine.process_bank(domid)
                if start is None:
                    return wire.encode_reply(ret), []
                return wire.encode_reply(0, process=dataclasses.asdict(start)), [bank]
            case wire.Port(port):
                ret, upcall, doorbell = self._connection.port_fds(port)
                return wire.encode_reply(ret), [os.dup(upcall), os.dup(doorbell)] if ret >= 0 else []
            case wire.Ring():
                ret, memfd, bell = self._connection.open_ring()
                return wire.encode_reply(ret), [memfd, bell] if ret >= 0 else []
            case wire.Statistics():
                return wire.encode_reply(0, statistics=self._machine.statistics()), []
            case wire.EngineStatistics(start):
                domid, found = self._machine.engine_statistics(start)
                if domid < 0:
                    return wire.encode_reply(domid), []
                return wire.encode_reply(0, domid=domid, statistics=found), []
            case wire.FdPut(name):
                return wire.encode_reply(self._store.put(name, fds[0])), []
            case wire.FdGet(name):
                if (fd := self._store.get(name)) is None:
                    return wire.encode_reply(-XenErrno.ENOENT), []
                return wire.encode_reply(0), [fd]
            case wire.FdDel(name):
                return wire.encode_reply(self._store.delete(name)), []

    def _hello(self, version: int) -> tuple[bytes, list[int]]:
        if version != wire.VERSION:
            raise wire.WireError(f"hello: version {version}, this hyper speaks {wire.VERSION}")
        self._greeted = True
        domid = self._connection.domid
        if self._is_dom0:
            size = {"bank_bytes": self._machine.bank_bytes, "max_mfn": self._machine.max_mfn}
            return wire.encode_reply(0, domid=domid, **size), [os.dup(self._machine.bank_fd)]
        ret, start, bank = self._machine.process_bank(domid)
        if start is None:
            return wire.encode_reply(ret), []
        return wire.encode_reply(0, domid=domid, process=dataclasses.asdict(start)), [bank]

    async def _hypercall(self, nr: int, args: tuple[int, ...]) -> int:
        while (ret := self._connection.hypercall(nr, args)) == ERESTART:
            if self._is_dom0:
                await trio.lowlevel.checkpoint()
            else:
                await trio.sleep(HELD_SECONDS)
        return ret

    async def _keep_pace(self) -> None:
        now = trio.current_time()
        if now - self._counted_from >= PACE_SECONDS:
            self._counted_from, self._counted = now, 0
        self._counted += 1
        if self._counted > MAX_REQUESTS:
            await trio.sleep(self._counted_from + PACE_SECONDS - now)
