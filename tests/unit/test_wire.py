"""Frames of the control socket: what is encoded decodes to itself, what is no frame is refused with a
reason.
"""

from __future__ import annotations

import msgpack
import pytest

from hyper.public import wire

REQUESTS = [
    wire.Hello(1),
    wire.Arena(1 << 24),
    wire.Hypercall(0, ()),
    wire.Hypercall(36, (0, 1, 2, 3, 4, (1 << 64) - 1)),
    wire.Port(4095),
    wire.FdPut("xenstored/tree"),
    wire.FdGet("x" * wire.MAX_NAME),
    wire.FdDel("ü"),
    wire.Statistics(),
    wire.EngineStatistics(7),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_round_trip(request_: wire.Request) -> None:
    packet = wire.encode_request(request_)
    assert len(packet) <= wire.MAX_FRAME
    assert wire.decode_request(packet, request_.nr_fds) == request_


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([], "not a map"),
        ({}, "unknown operation"),
        ({1: 2}, "not msgpack"),
        ({b"op": "hello"}, "string keys"),
        ({"op": "reboot"}, "unknown operation"),
        ({"op": ["hello"]}, "unknown operation"),
        ({"op": "hello"}, "fields"),
        ({"op": "hello", "version": 1, "more": 1}, "fields"),
        ({"op": "hello", "version": True}, "version: want an integer"),
        ({"op": "hello", "version": -1}, "version: want an integer"),
        ({"op": "port", "port": 1 << 32}, "port: want an integer"),
        ({"op": "port", "port": 1.0}, "port: want an integer"),
        ({"op": "hypercall", "nr": 1, "args": [0] * 7}, "at most 6"),
        ({"op": "hypercall", "nr": 1, "args": [-1]}, "args: want an integer"),
        ({"op": "hypercall", "nr": 1, "args": {"a": 1}}, "args: want a list"),
        ({"op": "fd_get", "name": ""}, "name: want a string"),
        ({"op": "fd_get", "name": "x" * 129}, "name: want a string"),
        ({"op": "fd_get", "name": b"x"}, "name: want a string"),
        ({"op": "fd_put", "name": "x"}, "want 1 file descriptors, got 0"),
        ({"op": "arena", "bytes": 4096}, "want 1 file descriptors, got 0"),
    ],
)
def test_refused(fields: object, reason: str) -> None:
    with pytest.raises(wire.WireError, match=reason):
        wire.decode_request(msgpack.packb(fields))


@pytest.mark.parametrize(
    "packet", [b"", b"\xc1", b"\x81", b"\xff" * 5000, b"\x80\x80", b"\x91" * 4096], ids=repr
)
def test_not_msgpack(packet: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode_request(packet)


def test_unwanted_descriptor() -> None:
    with pytest.raises(wire.WireError, match="want 0 file descriptors, got 1"):
        wire.decode_request(wire.encode_request(wire.Statistics()), 1)


def test_too_long() -> None:
    with pytest.raises(wire.WireError, match="at most 4096"):
        wire.encode_request(wire.FdGet("x" * 5000))
    with pytest.raises(wire.WireError, match="at most 4096"):
        wire.encode_reply(0, text="x" * 5000)


def test_replies() -> None:
    assert wire.decode_reply(wire.encode_reply(-22)) == {"ret": -22}
    assert wire.decode_reply(wire.encode_reply(0, domid=0)) == {"ret": 0, "domid": 0}
    assert wire.decode_reply(wire.encode_error("because")) == {"error": "because"}
    for fields in ({}, {"ret": "0"}, {"error": 1}, [0]):
        with pytest.raises(wire.WireError):
            wire.decode_reply(msgpack.packb(fields))
