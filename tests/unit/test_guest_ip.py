"""The IP kit of Python guests, against frames written out by hand."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from domu.guests import ip

MAC, OTHER = bytes.fromhex("00163e000001"), bytes.fromhex("00163e000002")
ARP_REQUEST = bytes.fromhex(
    "ffffffffffff00163e0000020806"
    "0001080006040001"
    "00163e0000020a000002" "0000000000000a000001"
)  # fmt: skip
PING = bytes.fromhex(
    "00163e00000100163e0000020800"
    "45000020000100004001" "66da" "0a0000020a000001"
    "0800" "9bce" "00010002" "deadbeef"
)  # fmt: skip


def test_arp_and_ping() -> None:
    host = ip.Host(MAC, "10.0.0.1")
    (reply,) = host.answers(ARP_REQUEST)
    assert reply[:14] == OTHER + MAC + b"\x08\x06"
    assert reply[14:42] == bytes.fromhex("000108000604000200163e0000010a00000100163e0000020a000002")
    (reply,) = host.answers(fixed(PING))
    assert reply[:14] == OTHER + MAC + b"\x08\x00"
    source, target, protocol, payload = ip.parse_ip(reply[14:])
    assert (str(source), str(target), protocol) == ("10.0.0.1", "10.0.0.2", 1)
    assert payload[:2] == b"\0\0" and payload[4:] == bytes.fromhex("00010002deadbeef")
    assert not ip.checksum(payload)
    assert host.nr_pings == 1
    for other in (ip.Host(MAC, "10.0.0.3"), ip.Host(OTHER, "10.0.0.1")):
        assert other.answers(fixed(PING)) == []
    assert ip.Host(MAC, "10.0.0.9").answers(ARP_REQUEST) == []


def fixed(frame: bytes) -> bytes:
    """The frame with its two checksums filled in."""
    header, payload = frame[14:24] + b"\0\0" + frame[26:34], frame[34:36] + b"\0\0" + frame[38:]
    header = header[:10] + ip.checksum(header).to_bytes(2, "big") + header[12:]
    payload = payload[:2] + ip.checksum(payload).to_bytes(2, "big") + payload[4:]
    return frame[:14] + header + payload


def changed(change: tuple[int, bytes]) -> bytes:
    at, data = change
    return fixed(PING)[:at] + data + fixed(PING)[at + len(data) :]


@given(st.binary(max_size=200) | st.tuples(st.integers(0, 45), st.binary(max_size=8)).map(changed))
def test_any_frame_is_answered_or_not(frame: bytes) -> None:
    """Any bytes give a list of frames, never an exception."""
    host = ip.Host(MAC, "10.0.0.1")
    assert all(len(answer) >= 60 for answer in host.answers(frame))
    assert ip.parse_dhcp(frame, 1) is None


@dataclass
class Frame:
    data: bytes


class Wire:
    """A card whose other end is `partner`: what it answers to a frame."""

    def __init__(self, partner: object) -> None:
        self.mac = MAC
        self.partner = partner
        self._send, self._receive = trio.open_memory_channel[Frame](100)

    async def send(self, packet: bytes) -> None:
        for frame in self.partner.answers(packet):  # type: ignore[attr-defined]
            await self._send.send(Frame(frame))

    async def receive(self) -> Frame:
        return await self._receive.receive()


async def test_ping(autojump_clock: trio.testing.MockClock) -> None:
    host, wire = ip.Host(MAC, "10.0.0.1"), Wire(ip.Host(OTHER, "10.0.0.2"))
    with trio.fail_after(5):
        await ip.ping(wire, host, "10.0.0.2")
    with pytest.raises(trio.TooSlowError), trio.fail_after(5):
        await ip.ping(wire, host, "10.0.0.3")


class DhcpServer:
    """Loses the first of each."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def answers(self, frame: bytes) -> list[bytes]:
        body = frame[14 + 20 + 8 :]
        xid = struct.unpack_from(">I", body, 4)[0]
        kind = frame[14 + 20 + 8 + 240 + 2]
        self.seen.append(kind)
        if self.seen.count(kind) == 1:
            return []
        offered = bytes([10, 0, 2, 15])
        answer = struct.pack(">BBBBIHH4s4s8x16s192x", 2, 1, 6, 0, xid, 0, 0, bytes(4), offered, MAC)
        answer += bytes.fromhex("63825363") + bytes([53, 1, 2 if kind == 1 else 5])
        answer += bytes([54, 4, 10, 0, 2, 2, 0, 1, 4, 255, 255, 0, 0, 3, 4, 10, 0, 2, 2, 255])
        udp = struct.pack(">HHHH", 67, 68, 8 + len(answer), 0) + answer
        server, target = IPv4Address("10.0.2.2"), IPv4Address("10.0.2.15")
        return [ip.ethernet(MAC, OTHER, 0x0800, ip.ip_packet(server, target, 17, udp))]


async def test_dhcp(autojump_clock: trio.testing.MockClock) -> None:
    server = DhcpServer()
    with trio.fail_after(10):
        lease = await ip.dhcp(Wire(server))
    gateway = IPv4Address("10.0.2.2")
    assert lease == ip.Lease(IPv4Address("10.0.2.15"), IPv4Address("255.255.0.0"), gateway, gateway)
    assert server.seen == [1, 1, 3, 3]
