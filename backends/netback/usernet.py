"""The user-mode uplink's own process: `python -m backends.netback.usernet --frames FD --control FD`.

It has a socket to the switch, where each message is a frame, and one to netback, where each is a msgpack map;
no guest's memory, no hypervisor. A C thread pumps frames to libslirp and back (slirp.c); this side answers
DHCP, forwards DNS and adds and removes forwards. It ends when either socket hangs up.

    {"op": "start", "net": .., "host": .., "dns": .., "dhcp_start": .., "domain": .., "no_host": ..,
     "mtu": ..} -> {"ret": 0, "nat": version or nil, "why": text}
    {"op": "forward" | "unforward", "udp": bool, "host": .., "host_port": .., "guest": .., "guest_port": ..}
        -> {"ret": 0} or {"ret": -errno, "error": text}
    {"op": "leases"} -> {"ret": 0, "leases": {mac: address}}

Every request has an "id", and its answer the same. "start" again with the same addresses, by a netback that
follows a killed one, changes nothing; so does a forward that is there.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import socket
import sys
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import msgpack
import trio

from backends.netback._netback import ffi, lib
from backends.netback.config import UserNetwork
from backends.netback.responder import DnsQuery, Responder
from hyper.public.daemon import configure_logging, harden, raise_fd_limit

LIBRARY = os.environ.get("UMXEN_LIBSLIRP", "libslirp.so.0")
NO_NAT = "DHCP and DNS, no NAT: {why} (Debian's package libslirp0 brings it)"
_MAX_MESSAGE = 65536
_DNS_SECONDS = 2.0
_MAX_DNS = 64
_PR_SET_NO_NEW_PRIVS = 38
_BUFFER_BYTES = 4 << 20


class UserNet:
    """The process's state once it has been told its addresses."""

    def __init__(self, network: UserNetwork, frames: socket.socket) -> None:
        self.network = network
        self._frames = frames
        self._ours, self._pump = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        config = ffi.new("struct nat_config *")
        config.network, config.netmask = _raw(network.net.network_address), _raw(network.net.netmask)
        config.host, config.dns = _raw(network.host), _raw(network.dns)
        config.dhcp_start, config.mtu = _raw(network.dhcp_start), network.mtu
        config.no_host = network.no_host
        out = ffi.new("nat_t **")
        if lib.nat_create(config, frames.fileno(), self._pump.fileno(), out):
            raise MemoryError("nat")
        self._nat = out[0]
        why = lib.nat_load(self._nat, LIBRARY.encode())
        self.why = NO_NAT.format(why=ffi.string(why).decode()) if why else ""
        version = lib.nat_version(self._nat)
        self.version = ffi.string(version).decode() if version else None
        self.responder = Responder(network, time.monotonic, gateway=self.version is None)
        self._dns = trio.CapacityLimiter(_MAX_DNS)
        self._forwards: dict[tuple[bool, str, int], tuple[str, int]] = {}

    async def run(self) -> None:
        """Until the switch hangs up."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._respond, nursery)
            try:
                await trio.to_thread.run_sync(lib.nat_run, self._nat, abandon_on_cancel=False)
            finally:
                nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """The pump ends soon."""
        lib.nat_stop(self._nat)

    async def _respond(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._ours)
            try:
                frame = self._ours.recv(_MAX_MESSAGE)
            except BlockingIOError:
                continue
            answer = self.responder.handle(frame)
            if not isinstance(answer, DnsQuery):
                for reply in answer:
                    await self._send(reply)
            elif self._dns.available_tokens:
                nursery.start_soon(self._forward_dns, answer)

    async def _send(self, frame: bytes) -> None:
        while True:
            try:
                self._ours.send(frame)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._ours)

    async def _forward_dns(self, query: DnsQuery) -> None:
        async with self._dns:
            answer = await ask_servers(query.payload, name_servers())
        await self._send(self.responder.dns_answer(query, answer))

    def forward(self, udp: bool, host: str, host_port: int, guest: str, guest_port: int) -> int:
        """0 or -errno."""
        target = IPv4Address(guest) if guest else self.network.dhcp_start
        if self._forwards.get((udp, host, host_port)) == (guest, guest_port):
            return 0
        result: int = lib.nat_forward(
            self._nat, udp, _raw(IPv4Address(host)), host_port, _raw(target), guest_port
        )
        if not result:
            self._forwards[udp, host, host_port] = guest, guest_port
        return result

    def unforward(self, udp: bool, host: str, host_port: int) -> int:
        """0 or -errno."""
        self._forwards.pop((udp, host, host_port), None)
        result: int = lib.nat_unforward(self._nat, udp, _raw(IPv4Address(host)), host_port)
        return result


def _raw(address: IPv4Address) -> int:
    """As the C side has it: the bytes in network order."""
    return int.from_bytes(address.packed, sys.byteorder)


def name_servers(path: Path = Path("/etc/resolv.conf")) -> list[str]:
    """The host's, as they are now."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    return [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]


async def ask_servers(payload: bytes, servers: Sequence[str], port: int = 53) -> bytes | None:
    """The first server's answer that comes in time; None when there is none."""
    for server in servers:
        with trio.move_on_after(_DNS_SECONDS):
            try:
                family = socket.AF_INET6 if ":" in server else socket.AF_INET
                with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
                    await sock.connect((server, port))
                    await sock.send(payload)
                    while True:
                        answer = await sock.recv(4096)
                        if answer[:2] == payload[:2]:
                            return answer
            except OSError:
                continue
    return None


def network_of(fields: dict[str, Any]) -> UserNetwork:
    """The addresses in a "start" message."""
    return UserNetwork(
        IPv4Network(fields["net"]),
        IPv4Address(fields["host"]),
        IPv4Address(fields["dns"]),
        IPv4Address(fields["dhcp_start"]),
        fields["domain"],
        fields["no_host"],
        fields["mtu"],
    )


async def serve(frames: socket.socket, control: socket.socket) -> None:
    """Until one of the two hangs up."""
    control.setblocking(False)
    first = await _receive(control)
    if first is None:
        return
    net = UserNet(network_of(first), frames)
    control.send(msgpack.packb({"id": first["id"], "ret": 0, "nat": net.version, "why": net.why}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_to_the_end, net, nursery.cancel_scope)
        try:
            while (request := await _receive(control)) is not None:
                control.send(msgpack.packb(await _answer(net, request)))
        finally:
            net.stop()
        nursery.cancel_scope.cancel()


async def _run_to_the_end(net: UserNet, scope: trio.CancelScope) -> None:
    await net.run()
    scope.cancel()


async def _answer(net: UserNet, request: dict[str, Any]) -> dict[str, Any]:
    op, number = request.pop("op"), request.pop("id")
    if op == "leases":
        return {"id": number, "ret": 0, "leases": net.responder.leases()}
    if op == "start":
        if network_of(request) != net.network:
            return {"id": number, "ret": -errno.EBUSY, "error": "it serves another network"}
        return {"id": number, "ret": 0, "nat": net.version, "why": net.why}
    if op == "forward":
        result = await trio.to_thread.run_sync(lambda: net.forward(**request))
    else:
        result = await trio.to_thread.run_sync(lambda: net.unforward(**request))
    return {"id": number, "ret": result, "error": os.strerror(-result)}


async def _receive(sock: socket.socket) -> dict[str, Any] | None:
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            data = sock.recv(_MAX_MESSAGE)
        except BlockingIOError:
            continue
        except OSError:
            return None
        return msgpack.unpackb(data) if data else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m backends.netback.usernet", description=__doc__)
    parser.add_argument("--frames", type=int, required=True, metavar="FD")
    parser.add_argument("--control", type=int, required=True, metavar="FD")
    arguments = parser.parse_args(argv)
    configure_logging()
    harden()
    raise_fd_limit()
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    frames, control = socket.socket(fileno=arguments.frames), socket.socket(fileno=arguments.control)
    for sock in (frames, control):
        os.set_inheritable(sock.fileno(), False)
    frames.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    trio.run(serve, frames, control)
    return 0


if __name__ == "__main__":
    sys.exit(main())
