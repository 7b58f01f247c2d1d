"""As much of IPv4 as an example needs: answers ARP and ping, asks for a lease, pings.

    host = ip.Host(nic.mac, "10.0.0.5")
    async for packet in nic:
        for frame in host.answers(packet.data):
            await nic.send(frame)

Frames that are none, or not for us, get no answer.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

import trio

BROADCAST = b"\xff" * 6
_ARP, _IPV4 = 0x0806, 0x0800
_ICMP, _UDP = 1, 17
_ETHERNET = struct.Struct(">6s6sH")
_ARP_PACKET = struct.Struct(">HHBBH6s4s6s4s")
_IP_HEADER = struct.Struct(">BBHHHBBH4s4s")
_DHCP_MAGIC = b"\x63\x82\x53\x63"
_RETRY_SECONDS = 1.0


class Packet(Protocol):
    @property
    def data(self) -> bytes: ...


class Nic(Protocol):
    """What sends and receives Ethernet frames: domu.frontends.netfront.Nic."""

    mac: bytes

    async def send(self, packet: bytes, /) -> None: ...

    async def receive(self) -> Packet: ...


class Host:
    """An address, and what its owner answers. Pure."""

    def __init__(self, mac: bytes, address: str | IPv4Address) -> None:
        self.mac = mac
        self.address = IPv4Address(address)
        self.nr_pings = 0
        """Echo requests answered."""

    def answers(self, frame: bytes) -> list[bytes]:
        """What to send because of `frame`: nothing, or one frame."""
        try:
            to, sender, kind = _ETHERNET.unpack_from(frame)
            if to in (self.mac, BROADCAST) and kind == _ARP:
                return self._arp(frame[14:], sender)
            if to == self.mac and kind == _IPV4:
                return self._echo(frame[14:], sender)
        except (struct.error, ValueError):
            pass
        return []

    def _arp(self, data: bytes, sender: bytes) -> list[bytes]:
        _, _, _, _, operation, their_mac, their_ip, _, wanted = _ARP_PACKET.unpack_from(data)
        if operation != 1 or wanted != self.address.packed:
            return []
        return [arp(2, self.mac, self.address, their_mac, IPv4Address(their_ip), to=sender)]

    def _echo(self, data: bytes, sender: bytes) -> list[bytes]:
        source, target, protocol, payload = parse_ip(data)
        if target != self.address or protocol != _ICMP or payload[:2] != b"\x08\x00" or checksum(payload):
            return []
        self.nr_pings += 1
        reply = ip_packet(self.address, source, _ICMP, icmp(0, payload[4:]))
        return [ethernet(sender, self.mac, _IPV4, reply)]


async def serve(nic: Nic, host: Host) -> None:
    """Answers ARP and ping until the card is gone.

    Raises: DeviceGone.
    """
    while True:
        for frame in host.answers((await nic.receive()).data):
            await nic.send(frame)


async def ping(nic: Nic, host: Host, target: str | IPv4Address, data: bytes = b"umxen") -> float:
    """Seconds until `target`, on the same network, has answered. Tries for ever; answers others meanwhile.

    Raises: DeviceGone.
    """
    target, began, mac = IPv4Address(target), trio.current_time(), None
    ident = random.getrandbits(32).to_bytes(4, "big")
    while True:
        if mac is None:
            await nic.send(arp(1, host.mac, host.address, bytes(6), target, to=BROADCAST))
        else:
            request = ip_packet(host.address, target, _ICMP, icmp(8, ident + data))
            await nic.send(ethernet(mac, host.mac, _IPV4, request))
        with trio.move_on_after(_RETRY_SECONDS):
            while True:
                frame = (await nic.receive()).data
                for answer in host.answers(frame):
                    await nic.send(answer)
                if mac is None and (mac := _is_at(frame, target)):
                    break
                if _is_echo(frame, target, ident + data):
                    return trio.current_time() - began


@dataclass(frozen=True)
class Lease:
    """What a DHCP server has given."""

    address: IPv4Address
    netmask: IPv4Address
    router: IPv4Address | None
    server: IPv4Address


async def dhcp(nic: Nic) -> Lease:
    """Asks for an address until it gets one.

    Raises: DeviceGone.
    """
    xid = random.getrandbits(32)
    offer = None
    while True:
        options = {53: b"\x01"}
        if offer:
            options = {53: b"\x03", 50: offer.address.packed, 54: offer.server.packed}
        await nic.send(dhcp_request(nic.mac, xid, options))
        with trio.move_on_after(_RETRY_SECONDS):
            while True:
                found = parse_dhcp((await nic.receive()).data, xid)
                if found and found[0] == 5 and offer:
                    return found[1]
                if found and found[0] == 2 and not offer:
                    offer = found[1]
                    break


# --- frames


def checksum(data: bytes) -> int:
    """RFC 1071. 0 over data that holds its own right checksum."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(to: bytes, sender: bytes, kind: int, payload: bytes) -> bytes:
    """A frame of at least 60 bytes."""
    return (_ETHERNET.pack(to, sender, kind) + payload).ljust(60, b"\0")


def arp(
    operation: int, mac: bytes, address: IPv4Address, their_mac: bytes, theirs: IPv4Address, to: bytes
) -> bytes:
    """1: who has `theirs`; 2: `address` is at `mac`."""
    body = _ARP_PACKET.pack(1, _IPV4, 6, 4, operation, mac, address.packed, their_mac, theirs.packed)
    return ethernet(to, mac, _ARP, body)


def icmp(kind: int, rest: bytes) -> bytes:
    """`rest` begins behind the checksum."""
    return struct.pack(">BBH", kind, 0, checksum(struct.pack(">BBH", kind, 0, 0) + rest)) + rest


def ip_packet(source: IPv4Address, target: IPv4Address, protocol: int, payload: bytes) -> bytes:
    def header(check: int) -> bytes:
        length = _IP_HEADER.size + len(payload)
        return _IP_HEADER.pack(0x45, 0, length, 0, 0, 64, protocol, check, source.packed, target.packed)

    return header(checksum(header(0))) + payload


def parse_ip(data: bytes) -> tuple[IPv4Address, IPv4Address, int, bytes]:
    """Source, target, protocol, payload.

    Raises: ValueError for a fragment or no IPv4; struct.error.
    """
    version, _, length, _, fragment, _, protocol, _, source, target = _IP_HEADER.unpack_from(data)
    header = (version & 15) * 4
    if version >> 4 != 4 or not 20 <= header <= length <= len(data) or fragment & 0x3FFF:
        raise ValueError("no whole IPv4 packet")
    if checksum(data[:header]):
        raise ValueError("checksum of the IPv4 header")
    return IPv4Address(source), IPv4Address(target), protocol, data[header:length]


def dhcp_request(mac: bytes, xid: int, options: dict[int, bytes]) -> bytes:
    """A whole frame, from nobody to everybody."""
    body = struct.pack(">BBBBIHH16x16s192x", 1, 1, 6, 0, xid, 0, 0x8000, mac.ljust(16, b"\0")) + _DHCP_MAGIC
    for code, value in options.items():
        body += bytes([code, len(value)]) + value
    body += bytes([55, 2, 1, 3, 255])
    udp = struct.pack(">HHHH", 68, 67, 8 + len(body), 0) + body
    nobody, everybody = IPv4Address(0), IPv4Address("255.255.255.255")
    return ethernet(BROADCAST, mac, _IPV4, ip_packet(nobody, everybody, _UDP, udp))


def parse_dhcp(frame: bytes, xid: int) -> tuple[int, Lease] | None:
    """Type and contents of an answer to `xid`; None for anything else."""
    try:
        if _ETHERNET.unpack_from(frame)[2] != _IPV4:
            return None
        source, _, protocol, payload = parse_ip(frame[14:])
        body = payload[8:]
        operation, their_xid = struct.unpack_from(">B3xI", body)
        if protocol != _UDP or payload[:4] != b"\0\x43\0\x44" or (operation, their_xid) != (2, xid):
            return None
        if body[236:240] != _DHCP_MAGIC:
            return None
        options = _dhcp_options(body[240:])
        router = IPv4Address(options[3][:4]) if 3 in options else None
        server = IPv4Address(options[54]) if 54 in options else source
        mask = IPv4Address(options.get(1, b"\xff\xff\xff\0"))
        return options[53][0], Lease(IPv4Address(body[16:20]), mask, router, server)
    except (struct.error, ValueError, KeyError, IndexError):
        return None


def _dhcp_options(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at < len(data) and data[at] != 255:
        if data[at]:
            found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
            at += 1 + data[at + 1]
        at += 1
    return found


def _is_at(frame: bytes, target: IPv4Address) -> bytes | None:
    """The MAC address of `target`, if the frame says so."""
    if len(frame) < 42 or frame[12:14] != b"\x08\x06":
        return None
    _, _, _, _, operation, mac, address, _, _ = _ARP_PACKET.unpack_from(frame, 14)
    return bytes(mac) if operation == 2 and address == target.packed else None


def _is_echo(frame: bytes, target: IPv4Address, rest: bytes) -> bool:
    try:
        source, _, protocol, payload = parse_ip(frame[14:])
    except (struct.error, ValueError):
        return False
    return (source, protocol, payload) == (target, _ICMP, icmp(0, rest))
