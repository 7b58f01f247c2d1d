"""Invariant: any bytes decode to a Request or raise WireError; sent to hyper, any packet is answered with a
result or a refusal, and the next client is served.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import msgpack
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper.binding import CoreConfig
from hyper.guest import abi
from hyper.machine import Machine
from hyper.public import wire
from hyper.public.packets import as_packet_socket, close_fds, receive_packet, send_packet
from hyper.server import Server, listen
from tests.conftest import open_fds
from tests.fake_core import FAILS, FakeCore
from tests.process_kit import process_host

OPS = ["hello", "arena", "hypercall", "port", "fd_put", "fd_get", "fd_del", "statistics",
       "ring", "make_arena", "adopt", "bank"]  # fmt: skip
KEYS = ["op", "version", "bytes", "nr", "args", "port", "name", "domid", "bank_bytes"]
leaves = (
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.binary() | st.text()
)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
numbers = st.sampled_from([0, 1, 32, 64, FAILS, 4096, 1 << 32, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
almost = st.fixed_dictionaries(
    {"op": st.sampled_from(OPS)},
    optional={
        "version": numbers | values,
        "bytes": numbers | values,
        "nr": numbers | values,
        "args": st.lists(numbers, max_size=8) | values,
        "port": numbers | values,
        "name": st.text(max_size=200) | values,
        "domid": numbers | values,
        "bank_bytes": numbers | values,
    },
)
packets = (
    st.binary(max_size=5000)
    | values.map(msgpack.packb)
    | st.dictionaries(st.sampled_from(KEYS), values).map(msgpack.packb)
    | almost.map(msgpack.packb)
    | st.tuples(almost.map(msgpack.packb), st.integers(0, 60), st.binary(max_size=3)).map(
        lambda row: row[0][: row[1]] + row[2] + row[0][row[1] + len(row[2]) :]
    )
)


@given(packet=packets, nr_fds=st.integers(0, 3))
def test_decode(packet: bytes, nr_fds: int) -> None:
    try:
        request = wire.decode_request(packet, nr_fds)
    except wire.WireError as error:
        assert str(error)
    else:
        assert wire.decode_request(wire.encode_request(request), nr_fds) == request


@given(packet=packets)
def test_decode_reply(packet: bytes) -> None:
    try:
        fields = wire.decode_reply(packet)
    except wire.WireError:
        return
    assert type(fields.get("ret")) is int or type(fields.get("error")) is str


@settings(max_examples=25)
@given(
    conversations=st.lists(
        st.tuples(st.booleans(), st.lists(st.tuples(packets.filter(len), st.integers(0, 3)), max_size=6)),
        max_size=6,
    )
)
def test_server(conversations: list[tuple[bool, list[tuple[bytes, int]]]]) -> None:
    trio.run(_talk, conversations)


async def _talk(conversations: list[tuple[bool, list[tuple[bytes, int]]]]) -> None:
    config = CoreConfig(1, 64 << 20, 0, "", "credit")
    with tempfile.TemporaryDirectory() as folder, Machine(FakeCore(), config) as machine:
        path = Path(folder) / "control"
        spare = os.memfd_create("spare")
        before = open_fds()
        with listen(path) as listener, trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Server(machine).serve, listener)
                for greets, frames in conversations:
                    await _converse(path, greets, [(packet, [spare] * nr) for packet, nr in frames])
                await _converse(path, True, [(wire.encode_request(wire.Statistics()), [])])
                nursery.cancel_scope.cancel()
        assert open_fds() == before
        assert machine.statistics()["nr_conns"] == 0
        os.close(spare)


@settings(max_examples=15)
@given(frames=st.lists(packets.filter(len), max_size=10))
def test_process_domain(frames: list[bytes]) -> None:
    """The same of a process DomU, whose frames mean something: its connection at most is ended."""
    trio.run(_talk_as_domain, frames)


async def _talk_as_domain(frames: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder, trio.fail_after(20):
        async with process_host(Path(folder) / "control") as host:
            _, sock = await host.create(64)
            sock.setblocking(False)
            with sock:
                await _exchange(sock, wire.encode_request(wire.Hello(1)))
                for packet in frames:
                    if "error" in await _exchange(sock, packet):
                        break
            assert await host.hyp.hypercall(abi.nr.xen_version, 0, 0) == 4 << 16 | 17


async def _exchange(sock: socket.socket, packet: bytes) -> dict[str, object]:
    await send_packet(sock, packet)
    answer, answer_fds = await receive_packet(sock)
    close_fds(answer_fds)
    return wire.decode_reply(answer)


async def _converse(path: Path, greets: bool, frames: list[tuple[bytes, list[int]]]) -> None:
    connecting = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    await connecting.connect(os.fspath(path))
    with as_packet_socket(connecting) as sock:
        if greets:
            frames = [(wire.encode_request(wire.Hello(1)), []), *frames]
        for packet, fds in frames:
            await send_packet(sock, packet, fds)
            answer, answer_fds = await receive_packet(sock)
            close_fds(answer_fds)
            if "error" in wire.decode_reply(answer):
                assert await receive_packet(sock) == (b"", [])
                return
