"""XenStore client: for Dom0's processes over xenstored's unix socket, for a guest over its ring page.

    async with xenstore.connect(paths.xenstored) as xs:
        await xs.write("/local/domain/0/x", "1")
        await xs.transact(increment)                  # async def increment(tx): ... tx.read, tx.write
        async with xs.watch("@releaseDomain") as watch:
            async for path in watch:                  # once at first, then whenever it fires
                ...

over_ring(page, port) is the same for a guest. Any number of tasks may use one client; a task of its own reads
the answers. Nothing is survived silently: when xenstored goes away, every call and every watch raises
XenstoreGone, then and ever after; connect again. (A guest's ring outlives a restart of xenstored unnoticed.)
Refused requests raise the XenError of their errno: NoSuchNode, AccessDenied, TryAgain (a transaction that
lost), ...

Values and paths are text; bytes that are not UTF-8 come as surrogates and go back as they were.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Protocol, Self, TypeVar

import trio

from hyper.guest.ports import Port, SharedWait
from hyper.guest.rings import GuestXenstoreRing, RingError
from hyper.public.errors import HypervisorGone, NoSuchNode, TooBig, TryAgain, XenErrno, XenError, xen_error
from hyper.public.xs_wire import (
    HEADER,
    PAYLOAD_MAX,
    Decoder,
    ProtocolError,
    XsType,
    decode_strings,
    encode_strings,
)

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")

MAX_PENDING_EVENTS = 4096
"""Different paths a watch may have waiting; a reader further behind loses the connection."""
_ABORT_SECONDS = 1.0


class XenstoreGone(Exception):
    """The connection to xenstored is lost, or it could not be made. The text says why."""


@asynccontextmanager
async def connect(path: Path | str) -> AsyncIterator[XenstoreClient]:
    """A connection to the xenstored that listens on `path`. Its watches and transactions end with it.

    Raises: XenstoreGone when nobody listens there.
    """
    with await _connected(os.fspath(path)) as sock:
        async with _client(sock) as client:
            yield client


@asynccontextmanager
async def over_ring(page: memoryview, port: Port) -> AsyncIterator[XenstoreClient]:
    """The same for a guest: `page` is its xenstore page, `port` its end of that ring's event channel."""
    async with _client(_RingTransport(page, port)) as client:
        yield client


@asynccontextmanager
async def _client(transport: Transport) -> AsyncIterator[XenstoreClient]:
    failure: BaseException | None = None
    client = XenstoreClient(transport)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client._receive)
            try:
                yield client
            except BaseException as error:  # raised again below: not as an exception group
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        client._hang_up("the connection is closed")
    if failure is not None:
        raise failure


class Transport(Protocol):
    """What carries the bytes: a trio socket, or a ring."""

    def send(self, data: bytes, /) -> Awaitable[int]:
        """Bytes taken, at least one; waits until there is room. Raises: OSError."""

    def recv(self, max_bytes: int, /) -> Awaitable[bytes]:
        """At least one byte; b"" when the other side has hung up. Raises: OSError."""


class _RingTransport:
    """The guest's end of its ring page. xenstored may come back after a restart: the ring waits for it."""

    def __init__(self, page: memoryview, port: Port) -> None:
        self._ring = GuestXenstoreRing(page)
        self._port = port
        self._events = SharedWait(port)

    async def send(self, data: bytes, /) -> int:
        while not (sent := self._checked(self._ring.write, data)):
            await self._wait()
        self._port.notify()
        return sent

    async def recv(self, max_bytes: int, /) -> bytes:
        while not (data := self._checked(self._ring.read, max_bytes)):
            await self._wait()
        self._port.notify()  # there is room again
        return data

    async def _wait(self) -> None:
        try:
            await self._events.wait()
        except (HypervisorGone, trio.ClosedResourceError) as error:
            raise ConnectionError(str(error)) from error

    def _checked(self, step: Callable[[A], R], argument: A) -> R:
        """Raises: ConnectionError when xenstored no longer serves the ring, or the ring makes no sense."""
        if problem := self._ring.problem:
            raise ConnectionError(f"xenstored has given our ring up: {problem}")
        try:
            return step(argument)
        except RingError as error:
            raise ConnectionError(str(error)) from error


async def _connected(path: str) -> trio.socket.SocketType:
    """Raises: XenstoreGone."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                sock.connect(path)
                return trio.socket.from_stdlib_socket(sock)
            except BlockingIOError:  # so many wait to be accepted; trio's connect would take it for success
                await trio.sleep(0.001)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise XenstoreGone(f"{path}: {error.strerror or error}") from error
        raise


class _Operations:
    """What can be asked of the store directly and in a transaction."""

    async def _request(self, kind: XsType, payload: bytes, path: str = "") -> bytes:
        """Raises: XenError, XenstoreGone."""
        raise NotImplementedError

    async def read(self, path: str) -> str:
        """Raises: NoSuchNode, AccessDenied."""
        return _text(await self._request(XsType.READ, _strings(path), path))

    async def read_if_exists(self, path: str) -> str | None:
        """The value, or None where there is no node."""
        try:
            return await self.read(path)
        except NoSuchNode:
            return None

    async def exists(self, path: str) -> bool:
        return await self.read_if_exists(path) is not None

    async def write(self, path: str, value: str | bytes) -> None:
        """Makes the node, with the missing ones above it, or changes its value.

        Raises: AccessDenied; NoFreeSlot for a guest's quota; TooBig for more than 4096 bytes of path and
        value.
        """
        data = value if isinstance(value, bytes) else value.encode(errors="surrogateescape")
        await self._request(XsType.WRITE, _strings(path) + data, path)

    async def mkdir(self, path: str) -> None:
        """Makes the node, with the missing ones above it. One that exists is left alone."""
        await self._request(XsType.MKDIR, _strings(path), path)

    async def rm(self, path: str) -> None:
        """Removes the node and all below it. One that does not exist, below one that does, is no error.

        Raises: NoSuchNode when its parent is missing too; AccessDenied.
        """
        await self._request(XsType.RM, _strings(path), path)

    async def directory(self, path: str) -> list[str]:
        """Names of the children. A list too long for one message is fetched in parts.

        Raises: NoSuchNode, AccessDenied.
        """
        try:
            return decode_strings(await self._request(XsType.DIRECTORY, _strings(path), path))
        except TooBig:
            return await self._directory_in_parts(path)

    async def _directory_in_parts(self, path: str) -> list[str]:
        names, generation = b"", b""
        while True:
            part = await self._request(XsType.DIRECTORY_PART, _strings(path, str(len(names))), path)
            now, _, more = part.partition(b"\0")
            if names and now != generation:  # it has changed in between
                names = b""
                continue
            generation = now
            if more.endswith(b"\0\0") or more == b"\0":
                return decode_strings(names + more[:-1])
            names += more

    async def get_perms(self, path: str) -> list[str]:
        """Entries like "n0", "r5"; the first names the owner.

        Raises: NoSuchNode, AccessDenied.
        """
        return decode_strings(await self._request(XsType.GET_PERMS, _strings(path), path))

    async def set_perms(self, path: str, perms: Sequence[str]) -> None:
        """Raises: NoSuchNode, AccessDenied; BadArgument for what is no entry."""
        await self._request(XsType.SET_PERMS, _strings(path, *perms), path)


class XenstoreClient(_Operations):
    """A connection. Made by connect() and over_ring()."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._turn = trio.Lock()
        self._req_ids = count(1)
        self._tokens = count(1)
        self._answers: dict[int, _Answer] = {}
        self._watches: dict[str, Watch] = {}
        self._gone = trio.Event()
        self._reason = ""

    # --- watches and transactions

    @asynccontextmanager
    async def watch(self, *paths: str, merged: bool = False) -> AsyncIterator[Watch]:
        """Tells of changes at and below `paths`, or of @introduceDomain and @releaseDomain. Each fires at
        once. `merged`: changes that wait to be read are told as one, by one of their paths; for folders that
        a guest may write faster than anybody reads.

        Raises: BadArgument for what is no path.
        """
        watch = Watch(self, paths, merged)
        tokens: dict[str, str] = {}
        try:
            for path in paths:
                token = str(next(self._tokens))
                self._watches[token] = watch
                tokens[token] = path
                await self._request(XsType.WATCH, _strings(path, token), path)
            yield watch
        finally:
            for token, path in tokens.items():
                del self._watches[token]
                if not self._gone.is_set():
                    await self._unwatch(path, token)
            watch._close()

    async def _unwatch(self, path: str, token: str) -> None:
        with trio.move_on_after(_ABORT_SECONDS, shield=True), suppress(NoSuchNode, XenstoreGone):
            await self._request(XsType.UNWATCH, _strings(path, token), path)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Committed at the end of the block, forgotten when that raises.

        Raises: TryAgain at the end of the block when another client has interfered; nothing has happened
        then.
        """
        reply = await self._request(XsType.TRANSACTION_START, b"\0")
        tx = Transaction(self, int(reply.rstrip(b"\0")))
        try:
            yield tx
        except BaseException:
            if not self._gone.is_set():
                with trio.move_on_after(_ABORT_SECONDS, shield=True), suppress(XenError, XenstoreGone):
                    await tx._request(XsType.TRANSACTION_END, b"F\0")
            raise
        await tx._request(XsType.TRANSACTION_END, b"T\0")

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Does `work` in a transaction, again and again until no other client interferes.

        Returns: what `work` returned the last time.
        """
        while True:
            try:
                async with self.transaction() as tx:
                    result = await work(tx)
            except TryAgain:
                continue
            return result

    # --- domains

    async def introduce(self, domid: int, gfn: int, port: int) -> None:
        """xenstored begins to serve the domain's ring. Fires @introduceDomain.

        Raises: NoSuchNode for no such domain; BadArgument for a port or ring that can't be connected.
        """
        await self._request(XsType.INTRODUCE, _strings(str(domid), str(gfn), str(port)))

    async def release(self, domid: int) -> None:
        """xenstored lets go of the domain; the nodes it owns are removed. Fires @releaseDomain.

        Raises: NoSuchNode when it is not introduced.
        """
        await self._request(XsType.RELEASE, _strings(str(domid)))

    async def resume(self, domid: int) -> None:
        """The domain goes on after a shutdown for suspend: its next shutdown is reported again."""
        await self._request(XsType.RESUME, _strings(str(domid)))

    async def set_target(self, domid: int, target: int) -> None:
        """Gives `domid`, a stub domain, the rights of `target`."""
        await self._request(XsType.SET_TARGET, _strings(str(domid), str(target)))

    async def is_domain_introduced(self, domid: int) -> bool:
        return await self._request(XsType.IS_DOMAIN_INTRODUCED, _strings(str(domid))) == b"T\0"

    async def get_domain_path(self, domid: int) -> str:
        return _text((await self._request(XsType.GET_DOMAIN_PATH, _strings(str(domid)))).rstrip(b"\0"))

    # --- the connection

    async def wait_gone(self) -> str:
        """Returns the reason when the connection is lost."""
        await self._gone.wait()
        return self._reason

    async def _request(self, kind: XsType, payload: bytes, path: str = "", tx_id: int = 0) -> bytes:
        if len(payload) > PAYLOAD_MAX:
            raise TooBig(f"xenstore {kind.name.lower()}", path=path, bytes=len(payload), limit=PAYLOAD_MAX)
        req_id = next(self._req_ids) & 0xFFFFFFFF
        answer = self._answers[req_id] = _Answer()
        try:
            await self._send(HEADER.pack(kind, req_id, tx_id, len(payload)) + payload)
            await answer.arrived.wait()
        finally:
            del self._answers[req_id]
        if answer.payload is None:
            raise XenstoreGone(self._reason)
        if answer.kind == XsType.ERROR:
            raise _refusal(kind, path, answer.payload)
        return answer.payload

    async def _send(self, message: bytes) -> None:
        """Whole or not at all: half a message would put everybody's out of step."""
        async with self._turn:
            if self._gone.is_set():
                raise XenstoreGone(self._reason)
            try:
                await self._send_all(message)
            except OSError as error:
                self._hang_up(str(error))
                raise XenstoreGone(self._reason) from error

    async def _send_all(self, message: bytes) -> None:
        sent = 0
        try:
            while sent < len(message):
                sent += await self._transport.send(message[sent:])
        finally:
            if 0 < sent < len(message):
                self._hang_up("a request was cut short by cancellation")

    async def _receive(self) -> None:
        reason = "xenstored has hung up"
        decoder = Decoder()
        try:
            while chunk := await self._transport.recv(65536):
                decoder.feed(chunk)
                for message in decoder:
                    if message.type == XsType.WATCH_EVENT:
                        self._dispatch(message.payload)
                    elif answer := self._answers.get(message.req_id):
                        answer.kind, answer.payload = message.type, message.payload
                        answer.arrived.set()
        except (OSError, ProtocolError, _WatchOverflow) as error:
            reason = f"connection to xenstored: {error}"
        finally:
            self._hang_up(reason)

    def _dispatch(self, payload: bytes) -> None:
        path, token, *_ = (*decode_strings(payload), "", "")
        if watch := self._watches.get(token):
            watch._fire(path)

    def _hang_up(self, reason: str) -> None:
        if not self._gone.is_set():
            self._reason = reason
            self._gone.set()
            for answer in self._answers.values():
                answer.arrived.set()
            for watch in self._watches.values():
                watch._close()


class Transaction(_Operations):
    """Operations that happen all at once or not at all. Made by XenstoreClient.transaction() and transact().
    """

    def __init__(self, client: XenstoreClient, tx_id: int) -> None:
        self._client = client
        self._tx_id = tx_id

    async def _request(self, kind: XsType, payload: bytes, path: str = "") -> bytes:
        return await self._client._request(kind, payload, path, self._tx_id)


class Watch:
    """Iterate over it: each item is a path that has changed. Paths that wait are kept once."""

    def __init__(self, client: XenstoreClient, paths: Sequence[str], merged: bool = False) -> None:
        self.paths = paths
        self._merged = merged
        self._client = client
        self._send, self._receive = trio.open_memory_channel[str](MAX_PENDING_EVENTS)
        self._waiting: set[str] = set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """Raises: XenstoreGone; StopAsyncIteration after the end of the watch."""
        try:
            path = await self._receive.receive()
        except trio.EndOfChannel:
            if self._client._gone.is_set():
                raise XenstoreGone(self._client._reason) from None
            raise StopAsyncIteration from None
        self._waiting.discard(path)
        return path

    def _fire(self, path: str) -> None:
        if path not in self._waiting and not (self._merged and self._waiting):
            try:
                self._send.send_nowait(path)
            except trio.WouldBlock:
                raise _WatchOverflow(f"the watch on {', '.join(self.paths)} is not read") from None
            self._waiting.add(path)

    def _close(self) -> None:
        self._send.close()


class _WatchOverflow(Exception):
    """Somebody watches, but does not read."""


class _Answer:
    """Room for the reply to one request."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.kind = 0
        self.payload: bytes | None = None


def _strings(*texts: str) -> bytes:
    return encode_strings(*(text.encode(errors="surrogateescape") for text in texts))


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _refusal(kind: XsType, path: str, payload: bytes) -> XenError:
    name = _text(payload.rstrip(b"\0"))
    errno = XenErrno[name] if name in XenErrno.__members__ else XenErrno.EIO
    return xen_error(f"xenstore {kind.name.lower()}", errno, **({"path": path} if path else {}))
