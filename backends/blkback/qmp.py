"""QMP, QEMU's control protocol: just enough for qemu-storage-daemon."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

_MAX_LINE = 1 << 20


class QmpError(Exception):
    """The daemon refused a command, or has hung up."""


class Qmp:
    """A connection. Made by connect()."""

    def __init__(self, stream: trio.SocketStream, pid: int) -> None:
        self.pid = pid
        """Of the daemon."""
        self._stream = stream
        self._data = b""
        self._events: list[str] = []

    async def command(self, name: str, /, **arguments: Any) -> Any:
        """Its answer. Raises: QmpError."""
        request: dict[str, Any] = {"execute": name} | ({"arguments": arguments} if arguments else {})
        try:
            await self._stream.send_all(json.dumps(request).encode() + b"\n")
        except trio.BrokenResourceError as error:
            raise QmpError("it has hung up") from error
        while True:
            message = await self._receive()
            if "event" in message:
                self._events.append(message["event"])
            elif "error" in message:
                raise QmpError(str(message["error"].get("desc", message["error"])))
            elif "return" in message:
                return message["return"]

    async def wait_event(self, name: str) -> None:
        """Returns when the event has come, since the connection began. Raises: QmpError."""
        while name not in self._events:
            message = await self._receive()
            if "event" in message:
                self._events.append(message["event"])
        self._events.remove(name)

    async def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._data:
            try:
                part = await self._stream.receive_some(65536)
            except trio.BrokenResourceError:
                part = b""
            if not part or len(self._data) > _MAX_LINE:
                raise QmpError("it has hung up")
            self._data += part
        line, _, self._data = self._data.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise QmpError(f"an answer that makes no sense: {error}") from error
        if not isinstance(message, dict):
            raise QmpError("an answer that makes no sense")
        return message


@asynccontextmanager
async def connect(path: str) -> AsyncIterator[Qmp]:
    """Raises: OSError when nobody listens there; QmpError."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with sock:
        await sock.connect(path)
        pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        qmp = Qmp(trio.SocketStream(sock), pid)
        await qmp._receive()  # the greeting
        await qmp.command("qmp_capabilities")
        yield qmp
