"""Uplinks of every kind, against each other and against their real peers: frames go through, both ways."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from backends.netback import uplinks
from backends.netback.config import ConfigError, NetworkConfig, parse_uplink
from backends.netback.nat import NatError
from backends.netback.networks import Networks, RunningNetwork
from hyper.public.errors import NoSuchNode
from tests.vswitch_kit import BROADCAST, Bench, Plug, bench, frame, mac

A, B = mac(1), mac(2)


class Store:
    """hyper's fd store, in a dict."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}

    async def fd_put(self, name: str, fd: int) -> None:
        self.fds[name] = os.dup(fd)

    async def fd_get(self, name: str) -> int | None:
        return os.dup(self.fds[name]) if name in self.fds else None

    async def fd_del(self, name: str) -> None:
        if name not in self.fds:
            raise NoSuchNode("fd_del", name=name)
        os.close(self.fds.pop(name))


class Table:
    """A running switch with named networks, each with a plug."""

    def __init__(self, bench: Bench, nursery: trio.Nursery, folder: Path) -> None:
        self.bench = bench
        self.nursery = nursery
        self.store = Store()
        self.networks = Networks(bench.switch, folder / "networks.json", self.store, nursery)

    async def network(self, name: str, *texts: str) -> tuple[RunningNetwork, Plug]:
        running = await self.networks.create(NetworkConfig(name, uplinks=texts).check())
        return running, self.bench.plug(running.network)

    async def passes(self, sender: Plug, receiver: Plug, sent: bytes, patience: float = 5.0) -> None:
        """The frame arrives, sent again until it does: peers may still be finding each other."""
        with trio.fail_after(patience):
            while True:
                sender.send(sent)
                await trio.sleep(0.02)
                if sent in receiver.received():
                    return


@asynccontextmanager
async def table(folder: Path) -> AsyncIterator[Table]:
    with bench() as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.switch.follow_news)
            made.switch.start()
            made_table = Table(made, nursery, folder)
            yield made_table
            for plug in made.plugs:
                plug.port.close()
                plug.sock.close()
            made.plugs.clear()
            for running in made_table.networks.all():
                await made_table.networks.delete(running.config.name)
            assert made_table.store.fds == {}
            nursery.cancel_scope.cancel()
        made.switch.stop()


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        number: int = sock.getsockname()[1]
        return number


def pairs(folder: Path) -> dict[str, tuple[str, str]]:
    tcp = free_port(socket.SOCK_STREAM)
    udp, udp2, group = (free_port(socket.SOCK_DGRAM) for _ in range(3))
    return {
        "tcp": (f"listen:127.0.0.1:{tcp}", f"connect:127.0.0.1:{tcp}"),
        "unix": (f"unix-listen:{folder}/s", f"unix-connect:{folder}/s"),
        "udp": (f"udp:127.0.0.1:{udp},to=127.0.0.1:{udp2}", f"udp:127.0.0.1:{udp2},to=127.0.0.1:{udp}"),
        "mcast": (f"mcast:230.0.0.1:{group}", f"mcast:230.0.0.1:{group}"),
        "unix-dgram": (f"unix-dgram:{folder}/a,to={folder}/b", f"unix-dgram:{folder}/b,to={folder}/a"),
    }


@pytest.mark.parametrize("kind", ["tcp", "unix", "udp", "mcast", "unix-dgram"])
async def test_two_networks_on_one_wire(kind: str, tmp_path: Path) -> None:
    one, other = pairs(tmp_path)[kind]
    async with table(tmp_path) as made:
        _, left = await made.network("left", one)
        _, right = await made.network("right", other)
        await made.passes(left, right, frame(BROADCAST, A))
        await made.passes(right, left, frame(A, B, b"y" * 1400))
        left.received(), right.received()
        left.send(frame(B, A))
        await trio.sleep(0.1)
        assert right.received() == [frame(B, A)]
        assert left.received() == []  # nothing comes back


async def test_a_peer_that_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplinks, "RETRY_SECONDS", 0.05)
    one, other = pairs(tmp_path)["tcp"]
    async with table(tmp_path) as made:
        _, right = await made.network("right", other)
        for _ in range(2):
            running, left = await made.network("left", one)
            await made.passes(left, right, frame(BROADCAST, A))
            left.port.close()
            left.sock.close()
            made.bench.plugs.remove(left)
            await made.networks.delete(running.config.name)


async def test_a_listener_makes_a_port_for_each_peer(tmp_path: Path) -> None:
    port = free_port(socket.SOCK_STREAM)
    async with table(tmp_path) as made:
        running, _ = await made.network("hub", f"listen:127.0.0.1:{port}")
        peers = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        with trio.fail_after(5):
            while len(running.attachments) < 3:
                await trio.sleep(0.01)
        one = frame(BROADCAST, A)
        await peers[0].send_all(len(one).to_bytes(4, "big") + one)
        for peer in peers[1:]:
            assert await peer.receive_some(4 + len(one)) == len(one).to_bytes(4, "big") + one
        for peer in peers:
            await peer.aclose()
        with trio.fail_after(5):
            while running.attachments:
                await trio.sleep(0.01)


@pytest.mark.skipif(shutil.which("vde_switch") is None, reason="vde_switch is not installed (package vde2)")
async def test_a_real_vde_switch(tmp_path: Path) -> None:
    process = await trio.lowlevel.open_process(
        ["vde_switch", "-s", str(tmp_path / "vde"), "-x"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        with trio.fail_after(5):
            while not (tmp_path / "vde" / "ctl").exists():
                await trio.sleep(0.01)
        async with table(tmp_path) as made:
            _, left = await made.network("left", f"vde:{tmp_path}/vde")
            _, right = await made.network("right", f"vde:{tmp_path}/vde")
            await made.passes(left, right, frame(BROADCAST, A))
            await made.passes(right, left, frame(A, B, b"z" * 1400))
    finally:
        process.terminate()
        await process.wait()
    assert (
        [path for path in os.listdir(tmp_path / "vde") if "umxen" in path] == []
        if (tmp_path / "vde").is_dir()
        else True
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("vde:/nowhere", "no vde_switch serves /nowhere"),
        ("unix-listen:/nowhere/x", "No such file"),
        ("listen:192.0.2.1:5", "Cannot assign"),
        ("tap:a-name-that-is-too-long", "at most 15 bytes"),
    ],
)
async def test_an_uplink_that_cannot_be_had_makes_no_network(text: str, why: str, tmp_path: Path) -> None:
    async with table(tmp_path) as made:
        with pytest.raises(ConfigError, match=why):
            await made.networks.create(NetworkConfig("x", uplinks=(text,)))
        assert made.networks.all() == []


async def test_tap_works_or_says_why_not(tmp_path: Path) -> None:
    async with table(tmp_path) as made:
        try:
            running, _ = await made.network("x", "tap:umxentest0")
        except ConfigError as error:
            assert "TAP" in str(error)
            assert "CAP_NET_ADMIN" in str(error) or "/dev/net/tun" in str(error)
        else:
            assert "umxentest0" in os.listdir("/sys/class/net")
            assert running.uplinks[0].status == "interface umxentest0"


async def test_an_address_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with table(tmp_path) as made:
            with pytest.raises(ConfigError, match=os.strerror(errno.EADDRINUSE)):
                await made.networks.create(
                    NetworkConfig("x", uplinks=(f"listen:127.0.0.1:{taken.getsockname()[1]}",))
                )


# --- user mode


def dhcp_discover(source: bytes) -> bytes:
    body = b"\x01\x01\x06\x00xid!" + bytes(20) + source + bytes(202) + b"\x63\x82\x53\x63\x35\x01\x01\xff"
    udp = (
        (68).to_bytes(2, "big")
        + (67).to_bytes(2, "big")
        + (8 + len(body)).to_bytes(2, "big")
        + b"\0\0"
        + body
    )
    ip = b"\x45\0" + (20 + len(udp)).to_bytes(2, "big") + b"\0\0\0\0\x40\x11\0\0" + bytes(4) + b"\xff" * 4
    return BROADCAST + source + b"\x08\x00" + ip + udp


def checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", total ^ 0xFFFF)


def tcp_to(address: bytes) -> bytes:
    """The packet of a segment in the middle of a connection."""
    tcp = struct.pack("!HHIIBBHHH", 1000, 80, 1, 1, 0x50, 0x10, 100, 0, 0)
    addresses = bytes([10, 0, 2, 15]) + address
    tcp = tcp[:16] + checksum(addresses + struct.pack("!HH", 6, len(tcp)) + tcp) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + addresses
    return ip[:10] + checksum(ip) + ip[12:] + tcp


async def answer(plug: Plug, sent: bytes) -> bytes:
    plug.send(sent)
    with trio.fail_after(5):
        while True:
            for found in plug.received():
                if found[:6] == sent[6:12]:
                    return found
            await trio.sleep(0.01)


@pytest.mark.parametrize("library", ["", "/nowhere/libslirp.so.0"], ids=["nat", "without libslirp"])
async def test_user_mode(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if library:
        monkeypatch.setenv("UMXEN_LIBSLIRP", library)
    async with table(tmp_path) as made:
        running, plug = await made.network("x", "user")
        uplink = running.user
        assert uplink is not None and uplink.user is not None
        offer = await answer(plug, dhcp_discover(A))
        assert offer[58:62] == bytes([10, 0, 2, 15])
        arp = (
            b"\x00\x01\x08\x00\x06\x04\x00\x01" + A + bytes([10, 0, 2, 15]) + bytes(6) + bytes([10, 0, 2, 2])
        )
        assert (await answer(plug, BROADCAST + A + b"\x08\x06" + arp))[28:32] == bytes([10, 0, 2, 2])
        segment = tcp_to(bytes([10, 0, 2, 99]))
        plug.send(frame(B, A, segment, kind=0x0800))  # flooded, for another guest: no reset from libslirp
        await trio.sleep(0.1)
        assert plug.received() == []
        if uplink.user.nat is not None:
            reset = await answer(plug, frame(bytes.fromhex("52550a000202"), A, segment, kind=0x0800))
            assert reset[23] == 6 and reset[47] & 4
        assert await uplink.user.leases() == {A.hex(":"): "10.0.2.15"}
        if library or uplink.user.nat is None:
            assert "libslirp0" in uplink.status
            with pytest.raises(NatError, match="libslirp0"):
                await made.networks.add_forward("x", forward_of("1234-80"))
        else:
            assert "NAT by libslirp" in uplink.status
            await check_forwards(made)


def forward_of(text: str) -> object:
    from backends.netback.config import parse_forward

    return parse_forward(text)


async def check_forwards(made: Table) -> None:
    port = free_port(socket.SOCK_STREAM)
    await made.networks.add_forward("x", forward_of(f"{port}-80"))
    stream = await trio.open_tcp_stream("127.0.0.1", port)  # somebody listens
    await stream.aclose()
    with pytest.raises(ConfigError, match="forwarded already"):
        await made.networks.add_forward("x", forward_of(f"{port}-81"))
    await made.networks.remove_forward("x", str(port))
    with pytest.raises(OSError, match=r"all attempts|refused"):
        await trio.open_tcp_stream("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(NatError, match="in use"):
        await made.networks.add_forward("x", forward_of(f"{taken.getsockname()[1]}-80"))


async def test_the_user_mode_process_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplinks, "RETRY_SECONDS", 0.05)
    async with table(tmp_path) as made:
        running, plug = await made.network("x", "user")
        assert running.user is not None
        first = running.user.user
        assert first is not None
        first._control.shutdown(socket.SHUT_RDWR)
        with trio.fail_after(20):
            while running.user.user in (None, first):
                await trio.sleep(0.02)
        assert (await answer(plug, dhcp_discover(B)))[58:62] == bytes([10, 0, 2, 15])


def test_every_kind_runs() -> None:
    kinds = {
        "user",
        "listen",
        "connect",
        "udp",
        "mcast",
        "vde",
        "unix-listen",
        "unix-connect",
        "unix-dgram",
        "tap",
    }
    assert set(uplinks._RUN) == kinds
    assert parse_uplink("tap").kind == "tap"
