"""Dom0's end of byte rings. The guest's half is played here, with the page's layout written out a second
time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.guest.rings import ConsoleRing, RingError, XenstoreRing

U32 = 1 << 32


@dataclass(frozen=True)
class Half:
    """One direction: where its bytes and its two indices lie in the page, and our function on it."""

    make: Callable[[memoryview], Any]
    method: str
    data_at: int
    size: int
    cons_at: int
    prod_at: int


TAKE = [
    Half(XenstoreRing, "read_requests", 0, 1024, 2048, 2052),
    Half(ConsoleRing, "read_output", 1024, 2048, 3080, 3084),
]
PUT = [
    Half(XenstoreRing, "write_responses", 1024, 1024, 2056, 2060),
    Half(ConsoleRing, "write_input", 0, 1024, 3072, 3076),
]


class Guest:
    """The other side of `half`, over a page full of 0xee."""

    def __init__(self, half: Half, start: int = 0) -> None:
        self.half = half
        self.page = memoryview(bytearray(b"\xee" * 4096))
        self.cons = self.prod = start
        self.ours = getattr(half.make(self.page), half.method)

    def _index(at: str) -> Any:  # type: ignore[misc]
        def read(self: Guest) -> int:
            return int(struct.unpack_from("<I", self.page, getattr(self.half, at))[0])

        def write(self: Guest, value: int) -> None:
            struct.pack_into("<I", self.page, getattr(self.half, at), value % U32)

        return property(read, write)

    cons = _index("cons_at")
    prod = _index("prod_at")

    def produce(self, data: bytes) -> bytes:
        """What fits of `data`."""
        data = data[: self.half.size - (self.prod - self.cons) % U32]
        for offset, byte in enumerate(data):
            self.page[self.half.data_at + (self.prod + offset) % self.half.size] = byte
        self.prod += len(data)
        return data

    def consume(self) -> bytes:
        used = (self.prod - self.cons) % U32
        data = bytes(self.page[self.half.data_at + (self.cons + n) % self.half.size] for n in range(used))
        self.cons += used
        return data


starts = st.sampled_from([0, 1, 1023, 1024, 5000, U32 - 1, U32 - 700, U32 - 2048])


@pytest.mark.parametrize("half", TAKE, ids=lambda half: half.method)
@given(start=starts, steps=st.lists(st.tuples(st.binary(max_size=2500), st.integers(0, 3000)), max_size=12))
def test_take_keeps_the_stream(half: Half, start: int, steps: list[tuple[bytes, int]]) -> None:
    guest = Guest(half, start)
    sent, received = b"", b""
    for data, max_bytes in steps:
        sent += guest.produce(data)
        part = guest.ours(max_bytes)
        assert len(part) <= max_bytes
        received += part
    assert received + guest.ours(4096) == sent
    assert guest.cons == guest.prod


@pytest.mark.parametrize("half", PUT, ids=lambda half: half.method)
@given(start=starts, steps=st.lists(st.tuples(st.binary(max_size=2500), st.booleans()), max_size=12))
def test_put_keeps_the_stream(half: Half, start: int, steps: list[tuple[bytes, bool]]) -> None:
    guest = Guest(half, start)
    sent, received = b"", b""
    for data, reads in steps:
        room = half.size - (guest.prod - guest.cons) % U32
        accepted = guest.ours(data)
        assert accepted == min(room, len(data))
        sent += data[:accepted]
        if reads:
            received += guest.consume()
    assert received + guest.consume() == sent


@pytest.mark.parametrize("half", TAKE + PUT, ids=lambda half: half.method)
@given(cons=st.integers(0, U32 - 1), prod=st.integers(0, U32 - 1))
def test_any_indices(half: Half, cons: int, prod: int) -> None:
    """Any indices give a RingError or a copy inside the ring; nothing outside this direction changes."""
    guest = Guest(half)
    guest.cons, guest.prod = cons, prod
    before = bytes(guest.page)
    used = (prod - cons) % U32
    takes = half in TAKE
    if used > half.size:
        with pytest.raises(RingError):
            guest.ours(100 if takes else b"x" * 100)
        assert bytes(guest.page) == before
        return
    if takes:
        assert len(guest.ours(4096)) == used
    else:
        assert guest.ours(b"x" * 4096) == half.size - used
    mine = {*range(half.data_at, half.data_at + half.size), *range(half.cons_at, half.cons_at + 4),
            *range(half.prod_at, half.prod_at + 4)}  # fmt: skip
    assert all(guest.page[at] == before[at] for at in range(4096) if at not in mine)


def test_peek_leaves_the_request() -> None:
    guest = Guest(TAKE[0], U32 - 3)
    ring = XenstoreRing(guest.page)
    guest.produce(b"hello world")
    assert ring.peek_requests(5) == b"hello"
    assert ring.peek_requests(100) == b"hello world"
    ring.consume_requests(6)
    assert ring.read_requests(100) == b"world"
    with pytest.raises(RingError):
        ring.consume_requests(1)


def test_reset_empties_both_directions() -> None:
    guest = Guest(TAKE[0], 77)
    struct.pack_into("<II", guest.page, 2056, 1, 99999)
    ring = XenstoreRing(guest.page)
    with pytest.raises(RingError):
        ring.write_responses(b"x")
    ring.reset()
    assert ring.read_requests(100) == b""
    assert ring.write_responses(b"x") == 1


def test_a_page_too_small_or_read_only_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 2076 bytes"):
        XenstoreRing(memoryview(bytearray(2075)))
    with pytest.raises(BufferError):
        ConsoleRing(memoryview(bytes(4096)))
