"""Request rings from the frontend's side; the backend is played, its layout written out a second time."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.guest.front import RequestRing, RingIndex
from hyper.guest.rings import RingError
from hyper.public.errors import NoFreeSlot

U32 = 1 << 32
ENTRY, RESPONSE = 112, 16


class Backend:
    """Sees the page only. Request n is answered with its own number."""

    def __init__(self, pages: int = 1) -> None:
        self.page = memoryview(bytearray(b"\xee" * 4096 * pages))
        self.ring = RequestRing(self.page, ENTRY, RESPONSE)
        self.req_cons = self.rsp_prod = 0

    def index(self, at: int) -> int:
        return int(struct.unpack_from("<I", self.page, at)[0])

    def set_index(self, at: int, value: int) -> None:
        struct.pack_into("<I", self.page, at, value % U32)

    def slot(self, index: int) -> int:
        return 64 + ENTRY * (index % self.ring.nr_entries)

    def requests(self) -> list[bytes]:
        found = []
        while self.req_cons != self.index(0):
            found.append(bytes(self.page[self.slot(self.req_cons) :][:ENTRY]))
            self.req_cons = (self.req_cons + 1) % U32
        return found

    def sleep(self) -> None:
        self.set_index(4, self.req_cons + 1)

    def respond(self, data: bytes) -> bool:
        """Whether the frontend wants to be notified."""
        at = self.slot(self.rsp_prod)
        self.page[at : at + RESPONSE] = data
        self.rsp_prod = (self.rsp_prod + 1) % U32
        self.set_index(8, self.rsp_prod)
        return self.index(12) == self.rsp_prod


@pytest.mark.parametrize(("pages", "entries"), [(1, 32), (2, 64), (4, 128), (16, 512)])
def test_size_and_beginning(pages: int, entries: int) -> None:
    backend = Backend(pages)
    assert backend.ring.nr_entries == backend.ring.room == entries
    assert bytes(backend.page) == struct.pack("<IIII", 0, 1, 0, 1) + bytes(4096 * pages - 16)
    with pytest.raises(ValueError, match="no ring"):
        RequestRing(memoryview(bytearray(64)), ENTRY, RESPONSE)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30))
def test_every_request_is_seen_once_and_answered_once(steps: list[tuple[int, int]]) -> None:
    """Like two queues; and who sleeps is woken by the next item, however the steps fall."""
    backend = Backend()
    ring = backend.ring
    put = seen = taken = 0
    owed: list[bytes] = []
    for puts, answers in steps:
        backend.sleep()
        for _ in range(min(puts, ring.room)):
            ring.put(put.to_bytes(16, "little"))
            put += 1
        notify = ring.push()
        new = [request[:16] for request in backend.requests()]
        assert notify == bool(new)
        assert new == [number.to_bytes(16, "little") for number in range(seen, put)]
        seen = put
        owed += new
        assert not ring.sleep()
        wanted = [backend.respond(owed.pop(0)) for _ in range(min(answers, len(owed)))]
        assert wanted == [True, *[False] * (len(wanted) - 1)][: len(wanted)]
        got = ring.take()
        assert got == [number.to_bytes(16, "little") for number in range(taken, taken + len(wanted))]
        taken += len(got)
        assert ring.room == ring.nr_entries - (put - taken)


def test_a_full_ring_and_a_long_request() -> None:
    ring = Backend().ring
    with pytest.raises(ValueError, match="113 bytes"):
        ring.put(bytes(113))
    for _ in range(32):
        ring.put(b"x")
    with pytest.raises(NoFreeSlot):
        ring.put(b"x")


def test_sleep_sees_what_came_meanwhile() -> None:
    backend = Backend()
    backend.ring.put(b"x")
    backend.ring.push()
    backend.respond(bytes(16))
    assert backend.ring.sleep()


@given(st.integers(0, U32 - 1), st.integers(0, 32))
def test_a_backend_that_answers_too_much(rsp_prod: int, asked: int) -> None:
    """Any rsp_prod gives as many responses as were asked at most, or RingError."""
    backend = Backend()
    for _ in range(asked):
        backend.ring.put(b"x")
    backend.ring.push()
    backend.set_index(8, rsp_prod)
    if rsp_prod <= asked:
        assert len(backend.ring.take()) == rsp_prod
    else:
        with pytest.raises(RingError):
            backend.ring.take()


def test_indices_may_be_broken_on_purpose() -> None:
    backend = Backend()
    backend.ring.store(RingIndex.REQ_PROD, -1)
    assert backend.index(0) == U32 - 1 == backend.ring.load(RingIndex.REQ_PROD)
    assert backend.ring.next_index == 0
