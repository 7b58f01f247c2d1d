"""Checksums completed and TCP cut by the switch, for ports that cannot; virtio_net_hdr on the way."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from backends.netback import binding
from tests.vswitch_kit import BROADCAST, Bench, bench, mac

VNET = struct.Struct("<BBHHHH")
NEEDS_CHECKSUM, VALID, TCP4, TCP6 = 1, 2, 1, 4
ALL = binding.VNET | binding.CSUM4 | binding.CSUM6 | binding.TSO4 | binding.TSO6


@pytest.fixture
def table() -> Iterator[Bench]:
    with bench() as made:
        yield made


def folded(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(frame: bytes, version: int, protocol: int, length: int) -> bytes:
    addresses = frame[26:34] if version == 4 else frame[22:54]
    return addresses + struct.pack("!II", length, protocol)


def packet(version: int, protocol: int, payload: bytes, *, flags: int = 0x18, options: bytes = b"") -> bytes:
    """A frame whose transport checksum is only begun: the pseudo header's."""
    if protocol == 6:
        offset = (5 + len(options) // 4) << 4
        head = struct.pack("!HHIIBBHHH", 1000, 80, 0xFFFFFF00, 7, offset, flags, 500, 0, 0) + options
    else:
        head = struct.pack("!HHHH", 1000, 53, 8 + len(payload), 0)
    length = len(head) + len(payload)
    if version == 4:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0x1234, 0x4000, 64, protocol, 0)
        ip += bytes([10, 0, 0, 1, 10, 0, 0, 2])
        ip = ip[:10] + struct.pack("!H", folded(ip) ^ 0xFFFF) + ip[12:]
    else:
        ip = struct.pack("!IHBB", 0x60000000, length, protocol, 64) + bytes(range(32))
    made = BROADCAST + mac(1) + struct.pack("!H", 0x0800 if version == 4 else 0x86DD) + ip + head + payload
    at = 14 + len(ip) + (16 if protocol == 6 else 6)
    return made[:at] + struct.pack("!H", folded(pseudo(made, version, protocol, length))) + made[at + 2 :]


def checked(frame: bytes) -> tuple[int, bytes, bytes]:
    """Version, transport header and payload of a frame whose checksums must be right."""
    version = frame[14] >> 4
    start = 34 if version == 4 else 54
    protocol = frame[23] if version == 4 else frame[20]
    if version == 4:
        assert folded(frame[14:34]) == 0xFFFF
        end = 14 + struct.unpack_from("!H", frame, 16)[0]
    else:
        end = 54 + struct.unpack_from("!H", frame, 18)[0]
    assert end == len(frame)
    assert folded(pseudo(frame, version, protocol, end - start) + frame[start:end]) == 0xFFFF
    header = (frame[start + 12] >> 4) * 4 if protocol == 6 else 8
    return version, frame[start : start + header], frame[start + header : end]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("size", [0, 1, 2, 1399, 4000, 5001])
def test_partial_checksums_are_completed(table: Bench, version: int, protocol: int, size: int) -> None:
    net = table.network()
    source, plain, able = table.plug(net, caps=ALL), table.plug(net), table.plug(net, caps=ALL)
    sent = packet(version, protocol, os.urandom(size))
    source.send(VNET.pack(NEEDS_CHECKSUM, 0, 0, 0, 0, 0) + sent)
    table.settle()
    (received,) = plain.received()
    assert checked(received)[2] == sent[len(sent) - size :] and plain.port.counters()["checksums"] == 1
    (offloaded,) = able.received()
    flags, gso, _, _, start, offset = VNET.unpack_from(offloaded)
    assert gso == 0
    if flags & NEEDS_CHECKSUM:  # untouched, as the plain port came second or first
        assert (start, offset) == (34 if version == 4 else 54, 16 if protocol == 6 else 6)
    assert offloaded[10:34] == sent[:24]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("size", "mss"), [(20000, 1448), (60000, 1448), (3000, 1000), (1001, 1000), (5000, 88)]
)
def test_large_packets_are_cut(table: Bench, version: int, size: int, mss: int) -> None:
    net = table.network()
    source, plain = table.plug(net, caps=ALL), table.plug(net)
    data = os.urandom(size)
    kind = TCP4 if version == 4 else TCP6
    sent = packet(version, 6, data, flags=0x99, options=b"\x01" * 12)  # CWR, PSH, ACK, FIN
    source.send(VNET.pack(NEEDS_CHECKSUM, kind, 66, mss, 0, 0) + sent)
    table.settle()
    segments = plain.received()
    assert len(segments) == -(-size // mss) == plain.port.counters()["segments"]
    joined, sequence = b"", 0xFFFFFF00
    for number, segment in enumerate(segments):
        found, header, payload = checked(segment)
        assert found == version and len(payload) <= mss
        assert struct.unpack_from("!I", header, 4)[0] == sequence
        last = number == len(segments) - 1
        assert header[13] == 0x10 | (0x80 if number == 0 else 0) | (0x09 if last else 0)
        if version == 4:
            assert struct.unpack_from("!H", segment, 18)[0] == 0x1234 + number
        sequence = (sequence + len(payload)) & 0xFFFFFFFF
        joined += payload
    assert joined == data


def test_large_packets_pass_to_who_takes_them(table: Bench) -> None:
    net = table.network()
    source, able, big = (table.plug(net, caps=caps) for caps in (ALL, ALL, binding.BIG))
    data = os.urandom(30000)
    sent = packet(4, 6, data)
    source.send(VNET.pack(NEEDS_CHECKSUM, TCP4, 54, 1460, 0, 0) + sent)
    table.settle()
    (whole,) = able.received()
    assert VNET.unpack_from(whole)[1:4] == (TCP4, 54, 1460) or whole[10:] != sent
    (complete,) = big.received()
    assert checked(complete)[2] == data


TCP_PACKET, UDP_PACKET = packet(4, 6, b"x" * 3000), packet(4, 17, b"x" * 3000)


@pytest.mark.parametrize(
    ("kind", "mss", "bad"),
    [
        pytest.param(TCP4, 0, TCP_PACKET, id="no size"),
        pytest.param(TCP4, 87, TCP_PACKET, id="tiny size"),
        pytest.param(TCP6, 1000, TCP_PACKET, id="wrong version"),
        pytest.param(TCP4, 1000, UDP_PACKET, id="not tcp"),
        pytest.param(3, 1000, UDP_PACKET, id="ufo"),
        pytest.param(TCP4, 1000, TCP_PACKET[:60], id="cut short"),
    ],
)
def test_gso_that_makes_no_sense_is_dropped(table: Bench, kind: int, mss: int, bad: bytes) -> None:
    net = table.network()
    source, plain = table.plug(net, caps=ALL), table.plug(net)
    source.send(VNET.pack(NEEDS_CHECKSUM, kind, 54, mss, 0, 0) + bad)
    table.settle()
    assert plain.received() == []
    assert source.port.counters()["rx_dropped_malformed"] == 1


def test_what_is_no_tcp_or_udp_passes_as_it_is(table: Bench) -> None:
    net = table.network()
    source, plain = table.plug(net, caps=ALL), table.plug(net)
    odd = packet(4, 6, b"x" * 100)[:50]
    source.send(VNET.pack(NEEDS_CHECKSUM, 0, 0, 0, 0, 0) + odd)
    table.settle()
    assert plain.received() == [odd]
