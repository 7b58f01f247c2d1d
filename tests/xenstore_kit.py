"""Clients and surroundings for tests of xenstored: one kind of caller over a function call, a socket, a
guest's ring.

`Caller.ask` sends one request and returns its reply: bytes, or the name of an error as str. Watch events that
come meanwhile are kept for `Caller.events`.
"""

from __future__ import annotations

import mmap
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
import trio.testing

from dom0.xenstored.connection import Connection
from dom0.xenstored.daemon import Daemon
from dom0.xenstored.journal import Journal
from dom0.xenstored.restart import RingState
from dom0.xenstored.rings import GuestRing
from dom0.xenstored.xenstore import Xenstore
from hyper.public.xs_wire import RING_BYTES, Decoder, Message, XsType

Reply = bytes | str
PATIENCE = 10.0
"""Seconds for what happens at once, on a busy machine."""
MASK = RING_BYTES - 1
U32 = 1 << 32


class Caller(ABC):
    """One client. Not for two tasks at a time."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._events: list[bytes] = []
        self._req_id = 0

    @abstractmethod
    async def send(self, data: bytes) -> None: ...

    @abstractmethod
    async def receive(self) -> bytes:
        """Bytes, at least one; b"" at the end."""

    async def ask(self, kind: XsType | int, *strings: bytes, raw: bytes = b"", tx: int = 0) -> Reply:
        """Each of `strings` gets a NUL; `raw` comes behind them."""
        payload = b"".join(text + b"\0" for text in strings) + raw
        self._req_id += 1
        await self.send(Message(kind, self._req_id, tx, payload).encode())
        while True:
            message = await self._next()
            if message.type != XsType.WATCH_EVENT:
                break
            self._events.append(message.payload)
        assert (message.req_id, message.tx_id) == (self._req_id, tx)
        if message.type == XsType.ERROR:
            return message.payload.removesuffix(b"\0").decode()
        assert message.type == kind
        return message.payload

    async def _next(self) -> Message:
        with trio.fail_after(PATIENCE):
            while (message := self._decoder.next_message()) is None:
                chunk = await self.receive()
                if not chunk:
                    raise EOFError
                self._decoder.feed(chunk)
        return message

    async def events(self) -> list[bytes]:
        """What has been fired since the last call: replies come in order behind events, so one round trip
        shows all that came before it.
        """
        await self.ask(XsType.GET_DOMAIN_PATH, b"0")
        events, self._events = self._events, []
        return events

    async def next_event(self) -> bytes:
        """Waits for one."""
        if self._events:
            return self._events.pop(0)
        message = await self._next()
        assert message.type == XsType.WATCH_EVENT
        return message.payload

    async def start(self) -> int:
        reply = await self.ask(XsType.TRANSACTION_START, b"")
        assert isinstance(reply, bytes), reply
        return int(reply[:-1])


class DirectCaller(Caller):
    """Calls the pure Xenstore."""

    def __init__(self, xs: Xenstore, conn: Connection) -> None:
        super().__init__()
        self._xs = xs
        self.conn = conn
        self._requests = Decoder()

    async def send(self, data: bytes) -> None:
        self._requests.feed(data)
        for message in self._requests:
            self._xs.request(self.conn, message)
            while self._xs.introductions:
                self._xs.finish_introduction(self._xs.introductions.pop(0))
        self._xs.with_output.clear()
        self._xs.released.clear()

    async def receive(self) -> bytes:
        output = self.conn.output()
        self.conn.sent(len(output))
        return output


class SocketCaller(Caller):
    """Dom0, on the unix socket. Use `connect`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__()
        self.stream = stream

    @classmethod
    async def connect(cls, path: Path) -> SocketCaller:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))  # blocks while the backlog is full, where trio would take EAGAIN for success
        return cls(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self) -> bytes:
        return bytes(await self.stream.receive_some())


class RingCaller(Caller):
    """A guest's driver: its half of the ring page, with the layout written out a second time.

    `kick` notifies the daemon; `poll` is called while it waits, and lets the other side work.
    """

    REQ, RSP = 0, RING_BYTES
    REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, ERROR = 2048, 2052, 2056, 2060, 2072

    def __init__(
        self, page: memoryview | mmap.mmap, kick: Callable[[], None], poll: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__()
        self.page = page
        self.kick = kick
        self._poll = poll

    def index(self, at: int) -> int:
        return int(struct.unpack_from("<I", self.page, at)[0])

    def set_index(self, at: int, value: int) -> None:
        struct.pack_into("<I", self.page, at, value % U32)

    def send_some(self, data: bytes) -> int:
        """Puts into the ring what fits; no kick."""
        cons, prod = self.index(self.REQ_CONS), self.index(self.REQ_PROD)
        part = data[: RING_BYTES - (prod - cons) % U32]
        for offset, byte in enumerate(part):
            self.page[self.REQ + ((prod + offset) & MASK)] = byte
        self.set_index(self.REQ_PROD, prod + len(part))
        return len(part)

    def receive_some(self) -> bytes:
        """Takes out of the ring what is there; no kick."""
        cons, prod = self.index(self.RSP_CONS), self.index(self.RSP_PROD)
        data = bytes(self.page[self.RSP + ((cons + at) & MASK)] for at in range((prod - cons) % U32))
        self.set_index(self.RSP_CONS, prod)
        return data

    async def send(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE):
            while data:
                sent = self.send_some(data)
                data = data[sent:]
                if sent:
                    self.kick()
                else:
                    await self._poll()

    async def receive(self) -> bytes:
        while not (data := self.receive_some()):
            await self._poll()
        self.kick()
        return data


class MemoryPage:
    """A guest's page. `closed` counts how often it was unmapped."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(4096))
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class MemoryPort:
    """An event channel whose other end is the test: `pending` is set to wake the daemon."""

    def __init__(self) -> None:
        self.nr_notified = 0
        self.closed = 0
        self._pending = trio.Event()

    def kick(self) -> None:
        self._pending.set()

    async def wait(self) -> None:
        await self._pending.wait()
        self._pending = trio.Event()

    def notify(self) -> None:
        self.nr_notified += 1

    async def close(self) -> None:
        self.closed += 1


class Guest:
    """A domain on the daemon's ring, all in memory."""

    def __init__(
        self, daemon: Daemon, domid: int, nursery: trio.Nursery, known: RingState | None = None,
        page: MemoryPage | None = None,
    ) -> None:  # fmt: skip
        if domid not in daemon.xs.domains:
            daemon.xs.introduce(domid, 1, 1)
        self.page = page or MemoryPage()
        self.port = MemoryPort()
        self.ring = GuestRing(daemon, daemon.xs.domains[domid].conn, self.page, self.port)
        if known:
            self.ring.resume(known)
        else:
            self.ring.start()
        daemon.rings[domid] = self.ring
        daemon.settle()
        nursery.start_soon(self.ring.run)
        self.caller = RingCaller(self.page.view, self.port.kick, trio.testing.wait_all_tasks_blocked)


def memory_daemon(journalled: bool = False) -> Daemon:
    journal = Journal() if journalled else None
    return Daemon(Xenstore(journal), journal)
