"""The user-mode uplink's own answers: ARP, ping, DHCP, DNS."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import trio
from hypothesis import given
from hypothesis import strategies as st

from backends.netback.config import user_network
from backends.netback.responder import DnsQuery, Responder
from backends.netback.usernet import ask_servers, name_servers

MAC = bytes.fromhex("00163e000001")
OTHER = bytes.fromhex("00163e000002")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def responder(clock: Clock | None = None, gateway: bool = True, **options: str) -> Responder:
    return Responder(user_network(options), clock or Clock(), gateway=gateway)


def checksum_ok(data: bytes) -> bool:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


def udp_frame(mac: bytes, source: str, to: str, ports: tuple[int, int], payload: bytes) -> bytes:
    segment = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    addresses = IPv4Address(source).packed + IPv4Address(to).packed
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, 17, 0) + addresses
    return b"\xff" * 6 + mac + b"\x08\x00" + ip + segment


def dhcp(
    mac: bytes, kind: int, *options: tuple[int, bytes], flags: int = 0, client: str = "0.0.0.0"
) -> bytes:
    body = struct.pack("!4B4sHH4s12x", 1, 1, 6, 0, b"xid!", 0, flags, IPv4Address(client).packed)
    body += mac + bytes(10 + 64 + 128) + b"\x63\x82\x53\x63" + bytes([53, 1, kind])
    body += b"".join(bytes([code, len(value)]) + value for code, value in options) + b"\xff"
    return udp_frame(mac, client, "255.255.255.255", (68, 67), body)


def dhcp_answer(frame: bytes) -> tuple[int, str, dict[int, bytes]]:
    """Kind, address given, options."""
    assert checksum_ok(frame[14:34])
    body = frame[42:]
    assert body[4:8] == b"xid!"
    options, at = {}, 240
    while body[at] != 255:
        options[body[at]] = body[at + 2 : at + 2 + body[at + 1]]
        at += 2 + body[at + 1]
    return options[53][0], str(IPv4Address(body[16:20])), options


def ask(server: Responder, frame: bytes) -> tuple[int, str, dict[int, bytes]]:
    answer = server.handle(frame)
    assert isinstance(answer, list) and len(answer) == 1
    return dhcp_answer(answer[0])


def test_dhcp_as_users_of_qemu_know_it() -> None:
    server = responder()
    kind, address, options = ask(server, dhcp(MAC, 1))
    assert (kind, address) == (2, "10.0.2.15")
    kind, address, options = ask(server, dhcp(MAC, 3, (50, IPv4Address("10.0.2.15").packed)))
    assert (kind, address) == (5, "10.0.2.15")
    assert options[3] == options[54] == bytes([10, 0, 2, 2])
    assert options[6] == bytes([10, 0, 2, 3])
    assert options[1] == bytes([255, 255, 255, 0])
    assert ask(server, dhcp(OTHER, 1))[1] == "10.0.2.16"
    assert server.leases() == {"00:16:3e:00:00:01": "10.0.2.15", "00:16:3e:00:00:02": "10.0.2.16"}


def test_a_client_keeps_and_gets_what_is_free() -> None:
    server = responder()
    assert ask(server, dhcp(MAC, 3, (50, IPv4Address("10.0.2.77").packed)))[:2] == (5, "10.0.2.77")
    assert ask(server, dhcp(MAC, 1))[1] == "10.0.2.77"
    assert ask(server, dhcp(OTHER, 3, (50, IPv4Address("10.0.2.77").packed)))[0] == 6
    assert ask(server, dhcp(OTHER, 3, (50, IPv4Address("10.0.2.2").packed)))[0] == 6
    assert ask(server, dhcp(OTHER, 3, (50, IPv4Address("192.168.1.1").packed)))[0] == 6
    assert server.handle(dhcp(MAC, 7)) == []
    assert ask(server, dhcp(OTHER, 3, (50, IPv4Address("10.0.2.77").packed)))[:2] == (5, "10.0.2.77")


def test_leases_run_out() -> None:
    clock = Clock()
    server = responder(clock, net="10.9.0.0/28", **{"dhcp-start": "10.9.0.13"})
    assert ask(server, dhcp(MAC, 3))[1] == "10.9.0.13"
    assert ask(server, dhcp(OTHER, 3))[1] == "10.9.0.14"
    assert server.handle(dhcp(b"\x02" * 6, 1)) == []
    clock.now += 100000
    assert ask(server, dhcp(b"\x02" * 6, 1))[1] == "10.9.0.13"


def test_another_servers_clients_are_left_alone() -> None:
    assert responder().handle(dhcp(MAC, 3, (54, bytes([10, 0, 2, 9])))) == []


def test_inform() -> None:
    kind, address, options = ask(responder(), dhcp(MAC, 8, client="10.0.2.50"))
    assert (kind, address) == (5, "0.0.0.0") and 51 not in options


def test_arp_and_ping() -> None:
    server = responder()
    request = (
        b"\x00\x01\x08\x00\x06\x04\x00\x01" + MAC + bytes([10, 0, 2, 15]) + bytes(6) + bytes([10, 0, 2, 2])
    )
    answer = server.handle(b"\xff" * 6 + MAC + b"\x08\x06" + request)
    assert isinstance(answer, list)
    assert answer[0][22:32] == b"\x52\x55\x0a\x00\x02\x02" + bytes([10, 0, 2, 2])
    assert server.handle(b"\xff" * 6 + MAC + b"\x08\x06" + request[:-1] + b"\x09") == []
    echo = b"\x08\x00\x00\x00idsqdata"
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 32, 0, 0, 64, 1, 0, bytes([10, 0, 2, 15]), bytes([10, 0, 2, 2])
    )
    pong = server.handle(server.mac + MAC + b"\x08\x00" + ip + echo)
    assert isinstance(pong, list)
    assert pong[0][:6] == MAC and checksum_ok(pong[0][34:46]) and pong[0][38:46] == b"idsqdata"
    silent = responder(gateway=False)
    assert silent.handle(b"\xff" * 6 + MAC + b"\x08\x06" + request) == []


def test_dns_is_taken_apart() -> None:
    server = responder()
    query = server.handle(
        udp_frame(MAC, "10.0.2.15", "10.0.2.3", (5353, 53), b"ID\x01\x00" + bytes(8) + b"q")
    )
    assert query == DnsQuery(MAC, IPv4Address("10.0.2.15"), 5353, b"ID\x01\x00" + bytes(8) + b"q")
    failed = server.dns_answer(query, None)
    assert failed[42:46] == b"ID\x81\x82" and checksum_ok(failed[14:34])
    assert server.handle(udp_frame(MAC, "10.0.2.15", "10.0.2.9", (5353, 53), bytes(20))) == []


async def test_dns_servers_are_asked_in_turn() -> None:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as server:
        await server.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                data, peer = await server.recvfrom(512)
                await server.sendto(b"XX", peer)  # not an answer to this
                await server.sendto(data + b"!", peer)

            nursery.start_soon(answer)
            port = server.getsockname()[1]
            assert await ask_servers(b"IDquery", ["127.0.0.1"], port) == b"IDquery!"
    assert await ask_servers(b"IDquery", []) is None


def test_name_servers(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(f"{tmp_path}/resolv.conf")
    path.write_text("# x\nnameserver 9.9.9.9\nsearch a b\nnameserver ::1\nnameserver\n")
    assert name_servers(path) == ["9.9.9.9", "::1"]
    assert name_servers(path.with_name("none")) == []


@given(st.binary(max_size=400), st.sampled_from([b"", b"\x08\x00", b"\x08\x06"]))
def test_any_bytes_give_frames_or_nothing(data: bytes, kind: bytes) -> None:
    """Any frame gives a list of frames or a query, nothing else."""
    frame = data[:12].ljust(12, b"x") + kind + data[12:] if kind else data
    answer = responder().handle(frame)
    assert isinstance(answer, DnsQuery) or all(len(item) >= 60 for item in answer)


@given(st.binary(max_size=200), st.integers(0, 9))
def test_any_dhcp_options(data: bytes, kind: int) -> None:
    """Any option bytes after a DHCP message's fixed part give answers or nothing."""
    frame = dhcp(MAC, kind)
    frame = frame[: 42 + 243] + data
    frame = (
        frame[:16]
        + struct.pack("!H", len(frame) - 14)
        + frame[18:38]
        + struct.pack("!H", len(frame) - 34)
        + frame[40:]
    )
    answer = responder().handle(frame)
    assert isinstance(answer, list) and len(answer) <= 1
