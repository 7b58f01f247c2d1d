"""R/netback.sock: what `umxen network` and `umxen capture` ask for.

SEQPACKET, one msgpack map a packet, at most MAX_MESSAGE bytes; a connection's requests are answered in turn.

    {"op": "list"} -> {"networks": [{"name", "ports", "vifs", "uplinks", "forwards"}]}
    {"op": "show", "name": N}
        -> {"config", "uplinks": [{text, name, status}], "ports": [...], "leases", "learned"}
    {"op": "create", "network": {...}} -> {"uplinks": [...]}     {"op": "delete", "name": N} -> {}
    {"op": "forward" | "unforward", "name": N, "forward": TEXT} -> {"forwards": [...]}
    {"op": "capture", "name": N, "port": NAME or nil, "snaplen": BYTES} and a pipe's or socket's fd -> {}
    {"op": "capture_state"} -> {"written", "lost", "error"}      until the connection or the capture ends
    {"op": "statistics"} -> the switch's counters

Every answer has "ret": 0, or -1 and "error", a text for the user. A capture ends with its connection.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import structlog
import trio

from backends.netback.binding import Capture, Switch
from backends.netback.config import ConfigError, network_from, parse_forward
from backends.netback.nat import NatError
from backends.netback.networks import Networks, RunningNetwork, describe_port
from hyper.public.listening import clients, listening
from hyper.public.paths import HostPaths

log = structlog.get_logger("netback")

MAX_MESSAGE = 128 << 10
_MAX_LEARNED = 256
Request = dict[str, Any]


class Control:
    """Answers requests about `networks`."""

    def __init__(self, networks: Networks, switch: Switch) -> None:
        self._networks = networks
        self._switch = switch

    async def listen(
        self, paths: HostPaths, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """For ever. Started when clients can connect. Raises: OSError."""
        with listening(paths.netback, socket.SOCK_SEQPACKET) as listener:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for client in clients(listener):
                    nursery.start_soon(self._serve, client)

    async def _serve(self, client: socket.socket) -> None:
        """One connection; what goes wrong in it ends it alone."""
        client.setblocking(False)
        session = _Session(self._networks, self._switch)
        try:
            with client:
                while (packet := await _receive(client)) is not None:
                    data, fds = packet
                    try:
                        answer = await session.answer(data, fds)
                    finally:
                        for fd in fds:
                            os.close(fd)
                    await _send(client, answer)
        except (OSError, ValueError) as error:
            log.warning("control connection ended", reason=str(error))
        except Exception:
            log.exception("control connection ended")
        finally:
            session.close()


class _Session:
    def __init__(self, networks: Networks, switch: Switch) -> None:
        self._networks = networks
        self._switch = switch
        self._capture: Capture | None = None

    def close(self) -> None:
        if self._capture is not None:
            self._capture.close()
            self._capture = None

    async def answer(self, data: bytes, fds: list[int]) -> bytes:
        """`fds`: those taken over are removed."""
        try:
            request = msgpack.unpackb(data)
            if not isinstance(request, dict) or type(request.get("op")) is not str:
                raise ConfigError("a request is a map with `op`")
            handler = self._HANDLERS.get(request["op"])
            if handler is None:
                raise ConfigError(f"netback knows no request {request['op']!r}")
            result = await handler(self, request, fds)
        except (ConfigError, NatError, OSError, ValueError, msgpack.UnpackException) as error:
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return bytes(msgpack.packb({"ret": -1, "error": text[:4000]}))
        answer: bytes = msgpack.packb({"ret": 0, **result})
        if len(answer) > MAX_MESSAGE:
            return bytes(msgpack.packb({"ret": -1, "error": "the answer is too long"}))
        return answer

    def _network(self, request: Request) -> RunningNetwork:
        return self._networks.get(_text(request, "name"))

    async def _list(self, request: Request, fds: list[int]) -> Request:
        return {
            "networks": [
                {
                    "name": running.config.name,
                    "ports": len(running.attachments),
                    "vifs": sorted(running.vifs())[:100],
                    "uplinks": [f"{uplink.uplink.text}: {uplink.status}" for uplink in running.uplinks],
                    "forwards": list(running.config.forwards),
                }
                for running in self._networks.all()
            ]
        }

    async def _show(self, request: Request, fds: list[int]) -> Request:
        running = self._network(request)
        leases: dict[str, str] = {}
        if running.user and running.user.user:
            leases = await running.user.user.leases()
        names = {id(item.port): item.name for item in running.attachments.values()}
        return {
            "config": running.config.to_json(),
            "uplinks": _uplinks(running),
            "ports": [describe_port(item) for item in running.attachments.values()],
            "leases": leases,
            "learned": [
                {
                    "mac": item.mac.hex(":"),
                    "vlan": item.vlan,
                    "age": item.age_s,
                    "port": names.get(id(item.port), "?"),
                }
                for item in running.network.learned()[:_MAX_LEARNED]
            ],
        }

    async def _create(self, request: Request, fds: list[int]) -> Request:
        running = await self._networks.create(network_from(request.get("network")))
        return {"uplinks": _uplinks(running)}

    async def _delete(self, request: Request, fds: list[int]) -> Request:
        await self._networks.delete(_text(request, "name"))
        return {}

    async def _forward(self, request: Request, fds: list[int]) -> Request:
        name = _text(request, "name")
        await self._networks.add_forward(name, parse_forward(_text(request, "forward")))
        return {"forwards": list(self._networks.get(name).config.forwards)}

    async def _unforward(self, request: Request, fds: list[int]) -> Request:
        name = _text(request, "name")
        await self._networks.remove_forward(name, _text(request, "forward"))
        return {"forwards": list(self._networks.get(name).config.forwards)}

    async def _start_capture(self, request: Request, fds: list[int]) -> Request:
        running = self._network(request)
        if len(fds) != 1:
            raise ConfigError("a capture wants one descriptor")
        if self._capture is not None:
            raise ConfigError("this connection has a capture already")
        port = None
        if (name := request.get("port")) is not None:
            if name not in running.attachments:
                known = ", ".join(sorted(running.attachments)) or "none"
                raise ConfigError(f"network {running.config.name} has no port {name!r}; there are: {known}")
            port = running.attachments[name].port
        snaplen = request.get("snaplen", 0)
        if type(snaplen) is not int or not 0 <= snaplen < 1 << 32:
            raise ConfigError("snaplen: want a number of bytes")
        try:
            self._capture = running.network.capture(fds[0], port, snaplen)
        except OSError as error:
            if error.errno == 22:
                raise ConfigError("a capture goes into a pipe or a socket, not into a file") from error
            raise
        fds.clear()
        return {}

    async def _capture_state(self, request: Request, fds: list[int]) -> Request:
        if self._capture is None:
            raise ConfigError("this connection has no capture")
        written, lost, error = self._capture.state()
        return {"written": written, "lost": lost, "error": error}

    async def _statistics(self, request: Request, fds: list[int]) -> Request:
        return dict(self._switch.statistics())

    _HANDLERS: dict[str, Callable[[_Session, Request, list[int]], Awaitable[Request]]] = {
        "list": _list, "show": _show, "create": _create, "delete": _delete, "forward": _forward,
        "unforward": _unforward, "capture": _start_capture, "capture_state": _capture_state,
        "statistics": _statistics,
    }  # fmt: skip


def _uplinks(running: RunningNetwork) -> list[dict[str, str]]:
    return [
        {"text": uplink.uplink.text, "name": uplink.name, "status": uplink.status}
        for uplink in running.uplinks
    ]


def _text(request: Request, key: str) -> str:
    value = request.get(key)
    if type(value) is not str:
        raise ConfigError(f"{key}: want a text")
    return value


async def _receive(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            data, fds, flags, _ = socket.recv_fds(sock, MAX_MESSAGE, 4, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            continue
        if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            for fd in fds:
                os.close(fd)
            return None
        return data, list(fds)


async def _send(sock: socket.socket, data: bytes) -> None:
    while True:
        try:
            sock.send(data)
            return
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
