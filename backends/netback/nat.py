"""Netback's end of the user-mode uplink: starts the process of usernet.py, talks to it, watches it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import trio

from backends.netback.config import Forward, UserNetwork

_MAX_MESSAGE = 65536
_STOP_SECONDS = 3.0
_BUFFER_BYTES = 4 << 20


class NatError(Exception):
    """The uplink's process refuses; the text says what."""


class UserNetProcess:
    """A running one. `frames` is the switch's socket to it, until somebody takes it by take_frames()."""

    def __init__(self, frames: socket.socket, control: socket.socket) -> None:
        self._frames = frames
        self._control = control
        self._turn = trio.Lock()
        self.nat: str | None = None
        self.why = ""

    def take_frames(self) -> int:
        """The descriptor, the caller's now."""
        return self._frames.detach()

    async def start(self, network: UserNetwork) -> None:
        """Raises: NatError."""
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
            try:
                self._control.send(msgpack.packb(request))
                await trio.lowlevel.wait_readable(self._control)
                data = self._control.recv(_MAX_MESSAGE)
            except OSError as error:
                raise NatError(f"the user-mode uplink's process is gone: {error}") from error
        if not data:
            raise NatError("the user-mode uplink's process is gone")
        answer: dict[str, Any] = msgpack.unpackb(data)
        if answer["ret"]:
            raise NatError(answer["error"])
        return answer


@asynccontextmanager
async def user_net() -> AsyncIterator[tuple[UserNetProcess, trio.Process]]:
    """Starts the process; it is gone when the block ends. Raises: OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    with ours, control:
        with theirs, their_control:
            fds = theirs.fileno(), their_control.fileno()
            process = await trio.lowlevel.open_process(
                [
                    sys.executable,
                    "-m",
                    "backends.netback.usernet",
                    "--frames",
                    str(fds[0]),
                    "--control",
                    str(fds[1]),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
            )
        try:
            yield UserNetProcess(ours, control), process
        finally:
            control.close()
            with trio.CancelScope(shield=True):
                with trio.move_on_after(_STOP_SECONDS):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
