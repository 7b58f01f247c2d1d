"""Request rings, seen from the frontend. Indices are touched in C only (front.c).

    ring = RequestRing(hyp.frames(mfn, 1), entry_bytes=112, response_bytes=16)
    ring.put(request)                  # one or more
    if ring.push():
        port.notify()
    for response in ring.take(): ...
"""

from __future__ import annotations

from enum import IntEnum

from hyper.guest.abi import array_at, ffi, lib
from hyper.guest.rings import Bytes, RingError
from hyper.public.errors import NoFreeSlot


class RingIndex(IntEnum):
    """The four shared indices of a request ring."""

    REQ_PROD = lib.FRONT_REQ_PROD
    REQ_EVENT = lib.FRONT_REQ_EVENT
    RSP_PROD = lib.FRONT_RSP_PROD
    RSP_EVENT = lib.FRONT_RSP_EVENT


class RequestRing:
    """A fresh ring over `view`, whole pages that no backend has seen. Never blocks."""

    def __init__(self, view: memoryview, entry_bytes: int, response_bytes: int) -> None:
        """Raises: ValueError when not one entry fits."""
        self.view = view
        """All of it, indices first."""
        self.entry_bytes = entry_bytes
        self._shared = array_at("uint8_t", view)
        self._ring = ffi.new("struct front_ring *")
        if lib.front_ring_init(self._ring, self._shared, len(view), entry_bytes):
            raise ValueError(f"no ring with entries of {entry_bytes} bytes fits into {len(view)}")
        self._response_bytes = response_bytes
        self._taken = bytearray(response_bytes * self.nr_entries)

    @property
    def nr_entries(self) -> int:
        nr_entries: int = self._ring.nr_entries
        return nr_entries

    @property
    def room(self) -> int:
        """Requests that may be put before a response is taken."""
        room: int = lib.front_ring_room(self._ring)
        return room

    @property
    def next_index(self) -> int:
        """Index, modulo 2^32, of the request that is put next."""
        index: int = self._ring.req_prod_pvt
        return index

    def put(self, request: Bytes) -> None:
        """Copies one request into the ring; push() shows it.

        Raises: NoFreeSlot; ValueError for one longer than an entry.
        """
        if len(request) > self._ring.entry_bytes:
            raise ValueError(f"a request of {len(request)} bytes, entries have {self._ring.entry_bytes}")
        if lib.front_ring_put(self._ring, ffi.from_buffer(request), len(request)):
            raise NoFreeSlot("ring put", nr_entries=self.nr_entries)

    def push(self) -> bool:
        """Shows the backend all that was put. True: it wants to be notified."""
        return bool(lib.front_ring_push(self._ring))

    def take(self) -> list[bytes]:
        """The responses that are there.

        Raises: RingError when there are more than requests were put.
        """
        taken = lib.front_ring_take(
            self._ring, ffi.from_buffer(self._taken), self._response_bytes, self.nr_entries
        )
        if taken < 0:
            raise RingError("responses: the backend has answered more than was asked")
        size = self._response_bytes
        return [bytes(self._taken[at : at + size]) for at in range(0, taken * size, size)]

    def sleep(self) -> bool:
        """Asks to be notified of the next response. True: there is one already, take again before waiting."""
        return bool(lib.front_ring_sleep(self._ring))

    def load(self, index: RingIndex) -> int:
        """A shared index as it is."""
        value: int = lib.front_ring_load(self._ring, index)
        return value

    def store(self, index: RingIndex, value: int) -> None:
        """Writes a shared index, modulo 2^32, past all rules: for those who break the protocol on purpose."""
        lib.front_ring_store(self._ring, index, value & 0xFFFFFFFF)
