"""Any bytes on the socket or in a ring give replies or the end of that connection, nothing else.

Fed whole and byte by byte: both give the same replies. The store stays consistent, and the others are served.
"""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dom0.xenstored.connection import Connection
from dom0.xenstored.domain_requests import check
from dom0.xenstored.xenstore import DomainState, Xenstore
from hyper.public.xs_wire import (
    ERROR_NAMES,
    HEADER,
    HEADER_BYTES,
    PAYLOAD_MAX,
    Decoder,
    Message,
    ProtocolError,
    XsType,
    decode_strings,
)
from tests.xenstore_kit import DirectCaller, Guest, memory_daemon

KINDS = st.sampled_from([*map(int, XsType), 20, 23, 0xFFFF, 0xFFFFFFFF])
PATHS = st.sampled_from(
    [b"/", b"/a", b"/a/b", b"a", b"a/b", b"", b"/a//b", b"@releaseDomain", b"@x", b"/local/domain/1",
     b"/" + b"x" * 3000]
)  # fmt: skip
WORDS = PATHS | st.sampled_from(b"T F n0 r1 b1 w2 0 1 2 -1 99999 help".split())
PAYLOADS = st.one_of(
    st.lists(WORDS, max_size=4).map(lambda words: b"".join(word + b"\0" for word in words)),
    st.tuples(PATHS, st.binary(max_size=40)).map(b"\0".join),
    st.binary(max_size=60),
    st.just(b"/v\0" + b"x" * (PAYLOAD_MAX - 3)),
)
MESSAGES = st.builds(
    lambda kind, req_id, tx_id, payload: Message(kind, req_id, tx_id, payload[:PAYLOAD_MAX]),
    KINDS, st.integers(0, 2**32 - 1), st.sampled_from([0, 0, 0, 1, 2, 0xFFFFFFFF]), PAYLOADS,
)  # fmt: skip
STREAMS = st.lists(
    MESSAGES.map(Message.encode) | st.binary(max_size=40) | st.just(HEADER.pack(2, 1, 0, PAYLOAD_MAX + 1)),
    max_size=12
).map(b"".join)


def answers(domid: int, chunks: list[bytes]) -> tuple[list[Message], bool]:
    """What a client gets for these bytes, and whether it is cut off."""
    xs = Xenstore()
    for introduced in (1, 2):
        xs.introduce(introduced, 1, 1)
    dom0 = DirectCaller(xs, Connection(0))
    trio.run(dom0.ask, XsType.SET_PERMS, b"/", b"b1")
    conn = Connection(0) if domid == 0 else xs.domains[domid].conn
    requests, replies = Decoder(), Decoder()
    nr_asked = 0
    cut_off = False
    for chunk in chunks:
        requests.feed(chunk)
        try:
            for message in requests:
                nr_asked += 1
                xs.request(conn, message)
                while xs.introductions:
                    xs.finish_introduction(xs.introductions.pop())
        except ProtocolError:
            cut_off = True
            break
    replies.feed(conn.output())
    found = list(replies)
    assert replies.rest == b""
    if not conn.closed:
        assert len([reply for reply in found if reply.type != XsType.WATCH_EVENT]) == nr_asked
    for reply in found:
        if reply.type == XsType.ERROR:
            assert reply.payload[:-1].decode() in ERROR_NAMES
    xs.domain_states(dict.fromkeys(xs.known_domids(), DomainState.GONE))
    assert check(xs.store) == []
    assert trio.run(dom0.ask, XsType.CONTROL, b"check") == b"OK\0"
    return found, cut_off


@given(STREAMS, st.sampled_from([0, 1]))
@example(Message(XsType.RM, 1, 0, b"/\0").encode() * 3, 1)
@settings(max_examples=300)
def test_any_bytes_are_answered_or_refused(stream: bytes, domid: int) -> None:
    whole = answers(domid, [stream])
    single = answers(domid, [bytes([byte]) for byte in stream])
    assert whole == single


@given(st.lists(st.binary(max_size=5000), max_size=6))
def test_decoder_gives_messages_or_protocol_error(chunks: list[bytes]) -> None:
    decoder = Decoder()
    received = b""
    taken = 0
    for chunk in chunks:
        decoder.feed(chunk)
        received += chunk
        try:
            for message in decoder:
                encoded = message.encode()
                assert received[taken : taken + len(encoded)] == encoded
                taken += len(encoded)
        except ProtocolError:
            assert HEADER.unpack_from(received, taken)[3] > PAYLOAD_MAX
            return
        assert decoder.rest == received[taken:]
    assert len(received) - taken < HEADER_BYTES + PAYLOAD_MAX


@given(st.binary(max_size=200))
def test_strings_are_text_or_nothing(payload: bytes) -> None:
    strings = decode_strings(payload)
    encoded = b"".join(text.encode(errors="surrogateescape") + b"\0" for text in strings)
    assert encoded in (payload, payload + b"\0")


@given(STREAMS, st.lists(st.integers(1, 200), min_size=1, max_size=20))
@settings(max_examples=100)
def test_any_bytes_in_a_ring(stream: bytes, sizes: list[int]) -> None:
    trio.run(_ring, stream, sizes)


async def _ring(stream: bytes, sizes: list[int]) -> None:
    daemon = memory_daemon(journalled=True)
    async with trio.open_nursery() as nursery:
        bad, other = Guest(daemon, 1, nursery), Guest(daemon, 2, nursery)
        turn = 0
        while stream:
            sent = bad.caller.send_some(stream[: sizes[turn % len(sizes)]])
            stream = stream[sent:]
            bad.caller.receive_some()
            bad.port.kick()
            await trio.testing.wait_all_tasks_blocked()
            turn += 1
            if not sent and daemon.xs.domains[1].conn.closed:
                break
        assert await other.caller.ask(XsType.GET_DOMAIN_PATH, b"1") == b"/local/domain/1\0"
        nursery.cancel_scope.cancel()


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=64))
@settings(max_examples=100)
def test_any_indices_in_a_ring(indices: bytes, data: bytes) -> None:
    trio.run(_indices, indices, data)


async def _indices(indices: bytes, data: bytes) -> None:
    daemon = memory_daemon(journalled=True)
    async with trio.open_nursery() as nursery:
        bad, other = Guest(daemon, 1, nursery), Guest(daemon, 2, nursery)
        bad.page.view[2048:2080] = indices
        bad.page.view[: len(data)] = data
        for _ in range(3):
            bad.port.kick()
            await trio.testing.wait_all_tasks_blocked()
        assert await other.caller.ask(XsType.GET_DOMAIN_PATH, b"1") == b"/local/domain/1\0"
        nursery.cancel_scope.cancel()
