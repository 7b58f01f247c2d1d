"""What the user-mode uplink answers itself: ARP, ping, DHCP. DNS queries are taken apart for a forwarder.

Pure: frames in, frames out, no clock but the one given. Any bytes give a list of frames, nothing else.
Leases are by MAC, from `dhcp_start` upwards; a client that asks for an address that is free gets it, so that
what a killed predecessor gave out stays.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from backends.netback.config import UserNetwork

LEASE_SECONDS = 86400
_BROADCAST_MAC = b"\xff" * 6
_ARP, _IP4 = 0x0806, 0x0800
_ICMP, _UDP = 1, 17
_DHCP_SERVER, _DHCP_CLIENT, _DNS = 67, 68, 53
_COOKIE = b"\x63\x82\x53\x63"
_DISCOVER, _OFFER, _REQUEST, _DECLINE, _ACK, _NAK, _RELEASE, _INFORM = 1, 2, 3, 4, 5, 6, 7, 8
_SERVFAIL = 2


@dataclass(frozen=True)
class DnsQuery:
    """A query for the name server; answer it with Responder.dns_answer()."""

    mac: bytes
    address: IPv4Address
    port: int
    payload: bytes


@dataclass
class _Lease:
    mac: bytes
    until: float


class Responder:
    """The server side of one user network. `gateway` also when NAT does not answer for its addresses."""

    def __init__(self, network: UserNetwork, now: Callable[[], float], *, gateway: bool) -> None:
        self.network = network
        self.mac = b"\x52\x55" + network.host.packed
        self._now = now
        self._gateway = gateway
        self._leases: dict[IPv4Address, _Lease] = {}

    def leases(self) -> dict[str, str]:
        """MAC to address, of leases that hold."""
        now = self._now()
        return {
            ":".join(f"{byte:02x}" for byte in lease.mac): str(address)
            for address, lease in self._leases.items()
            if lease.until > now
        }

    def handle(self, frame: bytes) -> list[bytes] | DnsQuery:
        """The frames to send back, often none, or a query to forward."""
        try:
            (kind,) = struct.unpack_from("!H", frame, 12)
            if kind == _ARP and self._gateway:
                return self._arp(frame)
            if kind == _IP4:
                return self._ip(frame)
        except (struct.error, IndexError):
            pass  # shorter than it says
        return []

    # --- ARP and ping

    def _arp(self, frame: bytes) -> list[bytes]:
        kinds, operation, sender_mac, sender, _, target = struct.unpack_from("!6sH6s4s6s4s", frame, 14)
        if kinds != b"\x00\x01\x08\x00\x06\x04" or operation != 1 or not self._is_ours(target):
            return []
        reply = struct.pack("!6sH6s4s6s4s", kinds, 2, self.mac, target, sender_mac, sender)
        return [_ethernet(sender_mac, self.mac, _ARP, reply)]

    def _is_ours(self, address: bytes) -> bool:
        return address in (self.network.host.packed, self.network.dns.packed)

    def _ip(self, frame: bytes) -> list[bytes] | DnsQuery:
        header = (frame[14] & 15) * 4
        (total,) = struct.unpack_from("!H", frame, 16)
        (fragment,) = struct.unpack_from("!H", frame, 20)
        protocol, source, target = frame[23], frame[26:30], frame[30:34]
        payload = frame[14 + header : 14 + total]
        if frame[14] >> 4 != 4 or header < 20 or total < header or fragment & 0x3FFF or len(target) < 4:
            return []
        if protocol == _UDP:
            return self._udp(frame[6:12], source, target, payload)
        if protocol == _ICMP and self._gateway and self._is_ours(target) and payload[:2] == b"\x08\x00":
            echo = b"\x00\x00\x00\x00" + payload[4:]
            echo = echo[:2] + struct.pack("!H", _checksum(echo)) + echo[4:]
            return [_ethernet(frame[6:12], self.mac, _IP4, _ip_packet(_ICMP, target, source, echo))]
        return []

    def _udp(self, mac: bytes, source: bytes, target: bytes, segment: bytes) -> list[bytes] | DnsQuery:
        source_port, target_port, length, _ = struct.unpack_from("!HHHH", segment)
        payload = segment[8:length]
        if target_port == _DHCP_SERVER and source_port == _DHCP_CLIENT:
            return self._dhcp(payload)
        if target_port == _DNS and target == self.network.dns.packed and len(payload) >= 12:
            return DnsQuery(mac, IPv4Address(source), source_port, payload)
        return []

    # --- DNS

    def dns_answer(self, query: DnsQuery, answer: bytes | None) -> bytes:
        """The frame that brings `answer`; None: no server answered, which the guest is told."""
        if answer is None:
            flags = (query.payload[2] & 0x01) | 0x80
            answer = query.payload[:2] + bytes([flags, 0x80 | _SERVFAIL]) + query.payload[4:]
        segment = _udp_segment(self.network.dns.packed, query.address.packed, _DNS, query.port, answer)
        packet = _ip_packet(_UDP, self.network.dns.packed, query.address.packed, segment)
        return _ethernet(query.mac, self.mac, _IP4, packet)

    # --- DHCP

    def _dhcp(self, message: bytes) -> list[bytes]:
        op, hardware, address_bytes = message[0], message[1], message[2]
        xid, flags, client = message[4:8], message[10:12], message[12:16]
        mac = message[28:34]
        if (op, hardware, address_bytes) != (1, 1, 6) or message[236:240] != _COOKIE:
            return []
        options = _dhcp_options(message[240:])
        kind = options.get(53, b"\0")[0]
        server = options.get(54)
        if server is not None and server != self.network.host.packed:
            return []
        answer, offered = self._dhcp_decide(kind, mac, client, options)
        if not answer:
            return []
        return [self._dhcp_reply(answer, offered, xid, flags, client, mac)]

    def _dhcp_decide(
        self, kind: int, mac: bytes, client: bytes, options: dict[int, bytes]
    ) -> tuple[int, IPv4Address | None]:
        """What to answer (0: nothing) and with which address."""
        wanted = options.get(50, client)
        asked = IPv4Address(wanted) if len(wanted) == 4 and any(wanted) else None
        if kind == _RELEASE:
            self._forget(mac)
        if kind == _INFORM:
            return _ACK, None
        if kind == _DISCOVER:
            offered = self._lease(mac, asked, 60.0)
            return (_OFFER, offered) if offered else (0, None)
        if kind == _REQUEST:
            given = self._lease(mac, asked, LEASE_SECONDS)
            return (_ACK, given) if given and given == (asked or given) else (_NAK, None)
        return 0, None

    def _forget(self, mac: bytes) -> None:
        self._leases = {address: lease for address, lease in self._leases.items() if lease.mac != mac}

    def _lease(self, mac: bytes, asked: IPv4Address | None, seconds: float) -> IPv4Address | None:
        """The client's address: what it asks for if that is free, else what it had, else a new one."""
        now = self._now()
        mine = [address for address, lease in self._leases.items() if lease.mac == mac]
        chosen = asked if asked and self._is_free(asked, mac, now) else None
        chosen = chosen or (mine[0] if mine else self._next_free(mac, now))
        if chosen is None:
            return None
        until = max(now + seconds, self._leases[chosen].until if mine == [chosen] else 0.0)
        self._forget(mac)
        self._leases[chosen] = _Lease(mac, until)
        return chosen

    def _is_free(self, address: IPv4Address, mac: bytes, now: float) -> bool:
        net = self.network.net
        if not self.network.dhcp_start <= address < net.broadcast_address or self._is_ours(address.packed):
            return False
        lease = self._leases.get(address)
        return lease is None or lease.mac == mac or lease.until <= now

    def _next_free(self, mac: bytes, now: float) -> IPv4Address | None:
        address = self.network.dhcp_start
        while address < self.network.net.broadcast_address:
            if self._is_free(address, mac, now):
                return address
            address += 1
        return None

    def _dhcp_reply(
        self, kind: int, given: IPv4Address | None, xid: bytes, flags: bytes, client: bytes, mac: bytes
    ) -> bytes:
        net, host = self.network, self.network.host.packed
        options = [(53, bytes([kind])), (54, host)]
        if kind != _NAK:
            options += [(1, net.net.netmask.packed), (3, host), (6, net.dns.packed)]
            options += [(26, struct.pack("!H", net.mtu))] if net.mtu != 1500 else []
            options += [(15, net.domain.encode()[:255])] if net.domain else []
            options += [(51, struct.pack("!I", LEASE_SECONDS))] if given else []
        yours = given.packed if given else bytes(4)
        keep = client if kind == _ACK and not given else bytes(4)
        head = struct.pack("!4B4sH2s4s4s4s4s", 2, 1, 6, 0, xid, 0, flags, keep, yours, host, bytes(4))
        body = head + mac + bytes(10 + 64 + 128) + _COOKIE
        body += b"".join(bytes([code, len(value)]) + value for code, value in options) + b"\xff"
        target = keep if any(keep) else b"\xff" * 4
        segment = _udp_segment(host, target, _DHCP_SERVER, _DHCP_CLIENT, body.ljust(300, b"\0"))
        everyone = kind == _NAK or bool(flags[0] & 0x80)
        return _ethernet(
            _BROADCAST_MAC if everyone else mac, self.mac, _IP4, _ip_packet(_UDP, host, target, segment)
        )


def _dhcp_options(data: bytes) -> dict[int, bytes]:
    """The options, as far as they are whole."""
    options: dict[int, bytes] = {}
    at = 0
    while at + 1 < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        value = data[at + 2 : at + 2 + data[at + 1]]
        if value and len(value) == data[at + 1]:
            options[data[at]] = value
        at += 2 + data[at + 1]
    return options


def _checksum(data: bytes) -> int:
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ethernet(to: bytes, source: bytes, kind: int, payload: bytes) -> bytes:
    return (to + source + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def _ip_packet(protocol: int, source: bytes, to: bytes, payload: bytes) -> bytes:
    def header(checksum: int) -> bytes:
        total = 20 + len(payload)
        return struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 0, 0, 64, protocol, checksum, source, to)

    return header(_checksum(header(0))) + payload


def _udp_segment(source: bytes, to: bytes, source_port: int, to_port: int, payload: bytes) -> bytes:
    length = 8 + len(payload)
    pseudo = source + to + struct.pack("!BBH", 0, _UDP, length)
    head = struct.pack("!HHH", source_port, to_port, length)
    checksum = _checksum(pseudo + head + b"\0\0" + payload) or 0xFFFF
    return head + struct.pack("!H", checksum) + payload
