"""A switch with ports on socket pairs, turned by hand: frames go in and come out as bytes."""

from __future__ import annotations

import mmap
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from backends.netback import binding
from backends.netback.binding import Network, Port, Switch, ffi
from backends.netback.config import Membership

POOL = 4 << 20
PLAIN = Membership()


class Plug:
    """A port of the switch and the socket at its other end."""

    def __init__(self, network: Network, membership: Membership = PLAIN, **options: Any) -> None:
        kind = options.pop("kind", binding.DATAGRAM)
        sock_type = socket.SOCK_STREAM if kind == binding.STREAM else socket.SOCK_SEQPACKET
        mine, theirs = socket.socketpair(socket.AF_UNIX, sock_type)
        mine.setblocking(False)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.sock = mine
        self.port: Port = network.add_fd(kind, theirs.detach(), caps=options.pop("caps", 0))
        self.port.apply(membership, **options)

    def send(self, frame: bytes) -> None:
        self.sock.send(frame)

    def received(self) -> list[bytes]:
        """All that has come out."""
        frames = []
        while True:
            try:
                frames.append(self.sock.recv(70000))
            except BlockingIOError:
                return frames
            if not frames[-1]:
                return frames[:-1]


class Bench:
    """A switch; networks and plugs made by it are closed with it."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, POOL)
        with ffi.from_buffer(self.memory) as raw:
            address = int(ffi.cast("uintptr_t", raw))
        self.switch = Switch(address, POOL)
        self.plugs: list[Plug] = []

    def network(self, **limits: int) -> Network:
        return Network(self.switch, **limits)

    def plug(self, network: Network, membership: Membership = PLAIN, **options: Any) -> Plug:
        plug = Plug(network, membership, **options)
        self.plugs.append(plug)
        return plug

    def settle(self, turns: int = 3) -> None:
        """Lets the switch work until it should be done."""
        for _ in range(turns):
            while self.switch.step(0):
                pass

    def exchange(self, plug: Plug, frame: bytes) -> dict[Plug, list[bytes]]:
        """Sends a frame; what came out where, ports without anything left out."""
        plug.send(frame)
        self.settle()
        return {each: found for each in self.plugs if (found := each.received())}


@contextmanager
def bench() -> Iterator[Bench]:
    """All pages must be free again at the end."""
    made = Bench()
    yield made
    for plug in made.plugs:
        plug.port.close()
        plug.sock.close()
    counts = made.switch.statistics()
    assert counts["nr_pages"] == counts["nr_free_pages"]
    made.switch.close()


def mac(number: int) -> bytes:
    return b"\x02\0\0\0" + struct.pack("!H", number)


def frame(
    to: bytes, source: bytes, payload: bytes = b"x" * 50, vlan: int | None = None, kind: int = 0x88B5
) -> bytes:
    tag = b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)
    return to + source + tag + struct.pack("!H", kind) + payload


BROADCAST = b"\xff" * 6
