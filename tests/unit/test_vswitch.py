"""The switch: who gets which frame, in which shape, and what is counted when nobody does."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from backends.netback import binding
from backends.netback.config import ALL_VLANS, TRUNK_ALL, Membership, VlanMode
from tests.vswitch_kit import BROADCAST, Bench, bench, frame, mac

A, B, C = mac(1), mac(2), mac(3)


@pytest.fixture
def table() -> Iterator[Bench]:
    with bench() as made:
        yield made


def access(tag: int, **more: bool) -> Membership:
    return Membership(VlanMode.ACCESS, tag, **more)


def trunk(*vlans: int) -> Membership:
    return Membership(VlanMode.TRUNK, trunks=frozenset(vlans))


def test_floods_then_learns(table: Bench) -> None:
    net = table.network()
    a, b, c = (table.plug(net) for _ in range(3))
    assert table.exchange(a, frame(B, A)) == {b: [frame(B, A)], c: [frame(B, A)]}
    assert table.exchange(b, frame(A, B)) == {a: [frame(A, B)]}
    assert table.exchange(a, frame(B, A)) == {b: [frame(B, A)]}
    assert {(item.mac, item.port) for item in net.learned()} == {(A, a.port), (B, b.port)}


def test_an_address_moves(table: Bench) -> None:
    net = table.network()
    a, b, c = (table.plug(net) for _ in range(3))
    table.exchange(a, frame(BROADCAST, A))
    table.exchange(b, frame(BROADCAST, A))
    assert table.exchange(c, frame(A, C)) == {b: [frame(A, C)]}


def test_networks_never_meet(table: Bench) -> None:
    one, other = table.network(), table.network()
    a, b, c = table.plug(one), table.plug(one), table.plug(other)
    assert table.exchange(a, frame(BROADCAST, A)) == {b: [frame(BROADCAST, A)]}
    assert c.received() == []


def test_nothing_goes_back_where_it_came_from(table: Bench) -> None:
    net = table.network()
    a, b = table.plug(net), table.plug(net)
    table.exchange(a, frame(BROADCAST, A))
    assert table.exchange(a, frame(A, C)) == {}
    assert b.received() == []


def test_bridge_group_addresses_stop_here(table: Bench) -> None:
    net = table.network()
    a, _ = table.plug(net), table.plug(net)
    assert table.exchange(a, frame(bytes.fromhex("0180c2000000"), A)) == {}


def test_access_ports_and_trunk(table: Bench) -> None:
    net = table.network()
    seven, eight, also_seven = (
        table.plug(net, access(7)),
        table.plug(net, access(8)),
        table.plug(net, access(7)),
    )
    up = table.plug(net, TRUNK_ALL)
    assert table.exchange(seven, frame(BROADCAST, A)) == {
        also_seven: [frame(BROADCAST, A)],
        up: [frame(BROADCAST, A, vlan=7)],
    }
    assert table.exchange(up, frame(BROADCAST, B, vlan=8)) == {eight: [frame(BROADCAST, B)]}
    assert table.exchange(up, frame(BROADCAST, B)) == {}


def test_trunk_of_some_vlans(table: Bench) -> None:
    net = table.network()
    up, some = table.plug(net, TRUNK_ALL), table.plug(net, trunk(5, 6))
    assert table.exchange(up, frame(BROADCAST, A, vlan=5)) == {some: [frame(BROADCAST, A, vlan=5)]}
    assert table.exchange(up, frame(BROADCAST, A, vlan=7)) == {}
    assert table.exchange(some, frame(BROADCAST, A, vlan=7)) == {}
    assert table.exchange(some, frame(BROADCAST, A)) == {}
    assert some.port.counters()["rx_dropped_vlan"] == 2


def test_native_vlan(table: Bench) -> None:
    net = table.network()
    native = table.plug(net, Membership(VlanMode.NATIVE, 5, frozenset({6})))
    up = table.plug(net, TRUNK_ALL)
    assert table.exchange(native, frame(BROADCAST, A)) == {up: [frame(BROADCAST, A, vlan=5)]}
    assert table.exchange(native, frame(BROADCAST, A, vlan=6)) == {up: [frame(BROADCAST, A, vlan=6)]}
    assert table.exchange(up, frame(BROADCAST, B, vlan=5)) == {native: [frame(BROADCAST, B)]}
    assert table.exchange(up, frame(BROADCAST, B, vlan=6)) == {native: [frame(BROADCAST, B, vlan=6)]}


def test_a_plain_port_sends_no_tags(table: Bench) -> None:
    net = table.network()
    plain, up = table.plug(net), table.plug(net, TRUNK_ALL)
    assert table.exchange(plain, frame(BROADCAST, A, vlan=7)) == {}
    assert table.exchange(plain, frame(BROADCAST, A, vlan=0)) == {up: [frame(BROADCAST, A)]}


def test_learning_is_per_vlan(table: Bench) -> None:
    net = table.network()
    up, other = table.plug(net, TRUNK_ALL), table.plug(net, TRUNK_ALL)
    third = table.plug(net, TRUNK_ALL)
    table.exchange(up, frame(BROADCAST, A, vlan=5))
    assert set(table.exchange(other, frame(A, B, vlan=6))) == {up, third}
    assert set(table.exchange(other, frame(A, B, vlan=5))) == {up}


def test_isolated_ports_reach_only_others(table: Bench) -> None:
    net = table.network()
    a, b = table.plug(net, access(0, isolated=True)), table.plug(net, access(0, isolated=True))
    up = table.plug(net)
    assert set(table.exchange(a, frame(BROADCAST, A))) == {up}
    table.exchange(b, frame(BROADCAST, B))
    assert table.exchange(a, frame(B, A)) == {}
    assert set(table.exchange(up, frame(B, C))) == {b}


def test_anti_spoof(table: Bench) -> None:
    net = table.network()
    a = table.plug(net, access(0, anti_spoof=True), mac=A)
    table.plug(net)
    assert len(table.exchange(a, frame(BROADCAST, A))) == 1
    assert table.exchange(a, frame(BROADCAST, B)) == {}
    arp = bytes.fromhex("0001080006040001")
    assert len(table.exchange(a, frame(BROADCAST, A, arp + A + bytes(30), kind=0x0806))) == 1
    assert table.exchange(a, frame(BROADCAST, A, arp + B + bytes(30), kind=0x0806)) == {}
    assert a.port.counters()["rx_dropped_spoof"] == 2


@pytest.mark.parametrize(
    "bad", [b"x" * 13, frame(B, b"\x03" + A[1:]), frame(B, bytes(6))], ids=["short", "multicast", "zero"]
)
def test_malformed(table: Bench, bad: bytes) -> None:
    net = table.network()
    a, _ = table.plug(net), table.plug(net)
    assert table.exchange(a, bad) == {}
    assert a.port.counters()["rx_dropped_malformed"] == 1


def test_storm_limit_spares_known_addresses(table: Bench) -> None:
    net = table.network(storm_pps=10)
    a, b = table.plug(net), table.plug(net)
    table.exchange(b, frame(BROADCAST, B))
    for _ in range(30):
        a.send(frame(BROADCAST, A))
    table.settle()
    assert len(b.received()) == 10
    assert a.port.counters()["rx_dropped_storm"] == 20
    assert table.exchange(a, frame(B, A)) == {b: [frame(B, A)]}


def test_one_port_cannot_fill_the_table(table: Bench) -> None:
    net = table.network()
    flooder, b = table.plug(net), table.plug(net)
    table.exchange(b, frame(BROADCAST, B))
    for number in range(1000, 4000):
        flooder.send(frame(B, mac(number)))
        if number % 64 == 0:
            table.settle()
            b.received()
    table.settle()
    b.received()
    learned = net.learned()
    assert sum(item.port is flooder.port for item in learned) <= 1024
    assert table.exchange(flooder, frame(B, A)) == {b: [frame(B, A)]}


def test_mtu(table: Bench) -> None:
    net = table.network()
    a, b = table.plug(net), table.plug(net, mtu=1500)
    assert table.exchange(a, frame(BROADCAST, A, b"x" * 1500)) != {}
    assert table.exchange(a, frame(BROADCAST, A, b"x" * 1600)) == {}
    assert b.port.counters()["tx_dropped_mtu"] == 1


@pytest.mark.parametrize("size", [60, 4000, 4031, 4032, 4033, 9000, 65535 - 18])
def test_sizes(table: Bench, size: int) -> None:
    net = table.network()
    a, b, up = table.plug(net, access(9)), table.plug(net, access(9)), table.plug(net, TRUNK_ALL)
    payload = os.urandom(size - 14)
    assert table.exchange(a, frame(BROADCAST, A, payload)) == {
        b: [frame(BROADCAST, A, payload)],
        up: [frame(BROADCAST, A, payload, vlan=9)],
    }


def test_streams_carry_lengths(table: Bench) -> None:
    net = table.network()
    a, stream = table.plug(net, access(3)), table.plug(net, TRUNK_ALL, kind=binding.STREAM)
    a.send(frame(BROADCAST, A))
    a.send(frame(BROADCAST, A, b"y" * 5000))
    table.settle()
    data = b"".join(stream.received())
    first, second = frame(BROADCAST, A, vlan=3), frame(BROADCAST, A, b"y" * 5000, vlan=3)
    assert data == struct.pack("!I", len(first)) + first + struct.pack("!I", len(second)) + second
    message = struct.pack("!I", len(first)) + first
    for at in range(0, len(message), 7):  # cut anywhere
        stream.send(message[at : at + 7])
        table.settle(1)
    assert a.received() == [frame(BROADCAST, A)]


@pytest.mark.parametrize("length", [0, 13, 65536, 0xFFFFFFFF])
def test_a_stream_out_of_step_ends(table: Bench, length: int) -> None:
    net = table.network()
    stream = table.plug(net, kind=binding.STREAM)
    stream.send(struct.pack("!I", length) + b"x" * 100)
    table.settle()
    assert stream.port.error() == errno.EBADMSG


def test_hang_up_ends_a_port(table: Bench) -> None:
    net = table.network()
    for plug in (table.plug(net, kind=binding.STREAM), table.plug(net)):
        plug.sock.close()
        table.settle()
        assert plug.port.error() == errno.EPIPE


def test_a_slow_reader_loses_and_is_counted(table: Bench) -> None:
    net = table.network()
    a, b = table.plug(net), table.plug(net, kind=binding.STREAM)
    for _ in range(3000):
        a.send(frame(BROADCAST, A, b"z" * 1400))
        table.settle(1)
    counters = b.port.counters()
    assert counters["tx_dropped_full"] > 0
    got = b""
    for _ in range(100):
        got += b"".join(b.received())
        table.settle(1)
    assert len(got) == (3000 - counters["tx_dropped_full"]) * (4 + 1414)


def test_rate_holds_a_stream_back(table: Bench) -> None:
    net = table.network()
    slow = table.plug(net, Membership(rate=(5000, 200_000)), kind=binding.STREAM)
    out = table.plug(net)
    one = frame(BROADCAST, A, b"r" * 986)
    for _ in range(50):
        slow.send(struct.pack("!I", len(one)) + one)
    table.settle()
    assert len(out.received()) == 5
    table.switch.step(300)
    table.settle()
    assert len(out.received()) == 5


def parse_pcap(data: bytes) -> list[bytes]:
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
    frames, at = [], 24
    while at < len(data):
        _, nanoseconds, kept, length = struct.unpack_from("<IIII", data, at)
        assert nanoseconds < 10**9 and kept <= length
        frames.append(data[at + 16 : at + 16 + kept])
        at += 16 + kept
    return frames


def test_captures(table: Bench) -> None:
    net = table.network()
    a, b, up = table.plug(net, access(4)), table.plug(net, access(4)), table.plug(net, TRUNK_ALL)
    pipes = [os.pipe() for _ in range(3)]
    captures = [net.capture(pipe[1], port) for pipe, port in zip(pipes, (None, b.port, up.port))]
    table.exchange(a, frame(BROADCAST, A))
    table.exchange(b, frame(A, B))
    for capture in captures:
        capture.close()
    seen = [parse_pcap(os.read(read_end, 65536)) for read_end, _ in pipes]
    for read_end, _ in pipes:
        os.close(read_end)
    assert seen[0] == [frame(BROADCAST, A, vlan=4), frame(A, B, vlan=4)]
    assert seen[1] == [frame(BROADCAST, A), frame(A, B)]
    assert seen[2] == [frame(BROADCAST, A, vlan=4)]


def test_a_capture_loses_rather_than_waits(table: Bench) -> None:
    net = table.network()
    a, b = table.plug(net), table.plug(net)
    read_end, write_end = os.pipe()
    capture = net.capture(write_end)
    for _ in range(2000):
        a.send(frame(BROADCAST, A, b"c" * 1400))
        table.settle(1)
        b.received()
    written, lost, error = capture.state()
    assert written + lost == 2000 and lost > 0 and error == 0
    os.close(read_end)
    table.settle()
    assert capture.state()[2] == errno.EPIPE
    capture.close()


def test_a_capture_ends_with_its_port(table: Bench) -> None:
    net = table.network()
    a = table.plug(net)
    read_end, write_end = os.pipe()
    capture = net.capture(write_end, a.port)
    a.port.close()
    table.plugs.remove(a)
    a.sock.close()
    assert capture.state()[2] == errno.ENODEV
    capture.close()
    os.close(read_end)


def test_a_capture_into_a_file_is_refused(table: Bench, tmp_path: object) -> None:
    net = table.network()
    with open(f"{tmp_path}/x", "wb") as file, pytest.raises(OSError, match="capture"):
        net.capture(file.fileno())


def test_a_network_with_ports_stays(table: Bench) -> None:
    net = table.network()
    plug = table.plug(net)
    with pytest.raises(OSError, match="busy"):
        net.close()
    plug.port.close()
    table.plugs.remove(plug)
    plug.sock.close()
    net.close()


def test_multicast_uplinks_do_not_hear_themselves(table: Bench) -> None:
    net = table.network()
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    sender.bind(("127.0.0.1", 0))
    sender.connect(receiver.getsockname())  # as if the group were only us
    port = net.add_fd(binding.MULTICAST, receiver.detach(), sender.detach())
    a = table.plug(net)
    a.send(frame(BROADCAST, A))
    table.settle()
    assert port.counters()["tx_packets"] == 1
    assert port.counters()["rx_packets"] == 0
    port.close()


def test_the_thread_and_its_callers(table: Bench) -> None:
    """A busy loop lets others in: counters are read while frames pass."""
    net = table.network()
    a, b = table.plug(net), table.plug(net)
    table.switch.start()
    sent = 0
    for _ in range(2000):
        try:
            a.send(frame(BROADCAST, A))
            sent += 1
        except BlockingIOError:
            pass
        a.port.counters()
        b.received()
    table.switch.stop()
    table.settle(40)
    assert a.port.counters()["rx_packets"] == sent


def test_all_vlans_are_a_trunk() -> None:
    assert TRUNK_ALL.trunks == ALL_VLANS
    assert TRUNK_ALL.describe() == "trunk all"
