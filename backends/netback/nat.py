"""Netback's end of the user-mode uplink: starts the process of usernet.py, talks to it, watches it.

Our ends of its two sockets lie in hyper's fd store. So it outlives a netback that was killed, with every
connection through it, and the next netback goes on with it; it ends when they are taken out of the store.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Protocol

import msgpack
import trio

from backends.netback.config import Forward, UserNetwork
from hyper.public.errors import HypervisorGone, NoSuchNode

_MAX_MESSAGE = 65536
_STOP_SECONDS = 3.0
_ANSWER_SECONDS = 10.0
_BUFFER_BYTES = 4 << 20


class FdStore(Protocol):
    """What keeps descriptors for a successor: hyper.guest's Hypervisor, or nothing."""

    async def fd_put(self, name: str, fd: int) -> None: ...
    async def fd_get(self, name: str) -> int | None: ...
    async def fd_del(self, name: str) -> None: ...


class NatError(Exception):
    """The uplink's process refuses; the text says what."""


class UserNetProcess:
    """A running one. `frames` is the switch's socket to it, until somebody takes it by take_frames()."""

    def __init__(self, frames: socket.socket, control: socket.socket) -> None:
        self._frames = frames
        self._control = control
        self._turn = trio.Lock()
        self._next_id = secrets.randbits(32)  # answers to a predecessor's questions are not ours
        self.nat: str | None = None
        self.why = ""

    def take_frames(self) -> int:
        """The descriptor, the caller's now."""
        return self._frames.detach()

    async def start(self, network: UserNetwork) -> None:
        """Raises: NatError; also when the process serves another network already."""
        answer = await self._ask(
            op="start", net=str(network.net), host=str(network.host), dns=str(network.dns),
            dhcp_start=str(network.dhcp_start), domain=network.domain, no_host=network.no_host,
            mtu=network.mtu,
        )  # fmt: skip
        self.nat, self.why = answer["nat"], answer["why"]

    async def forward(self, forward: Forward) -> None:
        """Raises: NatError."""
        if self.nat is None:
            raise NatError(f"{forward}: {self.why}")
        try:
            await self._ask(
                op="forward", udp=forward.protocol == "udp", host=forward.host, host_port=forward.host_port,
                guest=forward.guest, guest_port=forward.guest_port,
            )  # fmt: skip
        except NatError as error:
            raise NatError(f"{forward.protocol} port {forward.host}:{forward.host_port}: {error}") from error

    async def unforward(self, forward: Forward) -> None:
        """Raises: NatError."""
        await self._ask(
            op="unforward", udp=forward.protocol == "udp", host=forward.host, host_port=forward.host_port
        )

    async def leases(self) -> dict[str, str]:
        """MAC to address. Raises: NatError."""
        found: dict[str, str] = (await self._ask(op="leases"))["leases"]
        return found

    async def _ask(self, **request: Any) -> dict[str, Any]:
        async with self._turn:
            self._next_id += 1
            try:
                self._control.send(msgpack.packb({"id": self._next_id, **request}))
                answer = await self._answer(self._next_id)
            except OSError as error:
                raise NatError(f"the user-mode uplink's process is gone: {error}") from error
        if answer is None:
            raise NatError("the user-mode uplink's process is gone")
        if answer["ret"]:
            raise NatError(answer["error"])
        return answer

    async def _answer(self, number: int) -> dict[str, Any] | None:
        with trio.move_on_after(_ANSWER_SECONDS):
            while True:
                await trio.lowlevel.wait_readable(self._control)
                data = self._control.recv(_MAX_MESSAGE)
                answer: dict[str, Any] | None = msgpack.unpackb(data) if data else None
                if answer is None or answer["id"] == number:
                    return answer
        return None


@asynccontextmanager
async def user_net(store: FdStore, name: str, network: UserNetwork) -> AsyncIterator[UserNetProcess]:
    """The process of the network called `name`: the one a killed predecessor has left, or a new one.

    It is gone when the block ends. Raises: OSError, NatError.
    """
    try:
        async with AsyncExitStack() as stack:
            process = await _left_behind(stack, store, name, network)
            if process is None:
                process = await stack.enter_async_context(_started(store, name))
                await process.start(network)
            yield process
    finally:
        with trio.CancelScope(shield=True):
            await _forget(store, name)


async def _left_behind(
    stack: AsyncExitStack, store: FdStore, name: str, network: UserNetwork
) -> UserNetProcess | None:
    fds = [await store.fd_get(each) for each in _names(name)]
    socks = [stack.enter_context(socket.socket(fileno=fd)) for fd in fds if fd is not None]
    if len(socks) < len(fds):
        return None
    process = UserNetProcess(*socks)
    try:
        await process.start(network)
    except NatError:
        await _forget(store, name)
        return None
    return process


def _names(name: str) -> tuple[str, str]:
    """In hyper's fd store."""
    return f"netback.user.{name}.frames", f"netback.user.{name}.control"


async def _forget(store: FdStore, name: str) -> None:
    for each in _names(name):
        with suppress(NoSuchNode, HypervisorGone):
            await store.fd_del(each)


@asynccontextmanager
async def _started(store: FdStore, name: str) -> AsyncIterator[UserNetProcess]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    with ours, control:
        with theirs, their_control:
            fds = theirs.fileno(), their_control.fileno()
            module = "backends.netback.usernet"
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", module, "--frames", str(fds[0]), "--control", str(fds[1])],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
            )
        try:
            for each, sock in zip(_names(name), (ours, control)):
                await store.fd_put(each, sock.fileno())
            yield UserNetProcess(ours, control)
        finally:
            with trio.CancelScope(shield=True):
                await _forget(store, name)
                control.close()
                with trio.move_on_after(_STOP_SECONDS):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
