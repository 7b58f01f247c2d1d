"""Both ends of the xenstore and console rings of a guest. Indices are touched in C only (rings.c).

XenstoreRing and ConsoleRing are Dom0's ends, GuestXenstoreRing and GuestConsoleRing the guest's.
"""

from __future__ import annotations

from typing import Any

from hyper.guest.abi import ffi, lib, struct

Bytes = bytes | bytearray | memoryview


class RingError(Exception):
    """The other side has put impossible indices into a ring: its fault."""


class XenstoreRing:
    """`view` is the guest's xenstore page (struct xenstore_domain_interface), mapped writable. Never blocks.

    Who reads or writes here notifies the port afterwards.
    """

    def __init__(self, view: memoryview) -> None:
        self._page = struct("struct xenstore_domain_interface", view)

    def peek_requests(self, max_bytes: int) -> bytes:
        """Up to `max_bytes` of what the guest has written, left in the ring. Not cut at message borders.

        Raises: RingError.
        """
        return _take(lib.ring_xenstore_peek, self._page, max_bytes, "xenstore requests")

    def consume_requests(self, nbytes: int) -> None:
        """Gives `nbytes`, already peeked and safely kept, back to the guest.

        Raises: RingError when there are fewer in the ring.
        """
        _checked(lib.ring_xenstore_consume(self._page, nbytes), "xenstore requests")

    def read_requests(self, max_bytes: int) -> bytes:
        """peek_requests() and consume_requests() in one.

        Raises: RingError.
        """
        data = self.peek_requests(max_bytes)
        self.consume_requests(len(data))
        return data

    def write_responses(self, data: Bytes) -> int:
        """Bytes of `data` accepted, from its beginning; 0 when the ring is full.

        Raises: RingError.
        """
        return _put(lib.ring_xenstore_write, self._page, data, "xenstore responses")

    def progress(self) -> tuple[int, int]:
        """Bytes consumed and bytes written so far, each modulo 2^32, from where the guest began to count.

        For a daemon that follows a killed one: what it noted against what had really been done.
        """
        return lib.ring_xenstore_req_cons(self._page), lib.ring_xenstore_rsp_prod(self._page)

    def reset(self) -> None:
        """Empties both directions; only while the guest does not use them."""
        lib.ring_xenstore_reset(self._page)


class ConsoleRing:
    """`view` is the guest's console page (struct xencons_interface), mapped writable. Never blocks.

    Who reads or writes here notifies the port afterwards.
    """

    def __init__(self, view: memoryview) -> None:
        self._page = struct("struct xencons_interface", view)

    def read_output(self, max_bytes: int) -> bytes:
        """Up to `max_bytes` of what the guest has printed, taken out of the ring.

        Raises: RingError.
        """
        return _take(lib.ring_console_read, self._page, max_bytes, "console output")

    def write_input(self, data: Bytes) -> int:
        """Bytes of `data` accepted, from its beginning; 0 when the guest does not read.

        Raises: RingError.
        """
        return _put(lib.ring_console_write, self._page, data, "console input")


class GuestXenstoreRing:
    """The guest's end of `view`, its xenstore page. Never blocks.

    Who writes or reads here notifies the port afterwards.
    """

    def __init__(self, view: memoryview) -> None:
        self._page = struct("struct xenstore_domain_interface", view)

    def write(self, data: Bytes) -> int:
        """Bytes of requests accepted, from the beginning of `data`; 0 when the ring is full.

        Raises: RingError.
        """
        return _put(lib.ring_xenstore_ask, self._page, data, "xenstore requests")

    def read(self, max_bytes: int) -> bytes:
        """Up to `max_bytes` of replies and events, taken out of the ring.

        Raises: RingError.
        """
        return _take(lib.ring_xenstore_answer, self._page, max_bytes, "xenstore responses")

    @property
    def problem(self) -> int:
        """Why xenstored no longer serves this ring (RingProblem); 0 while it does."""
        problem: int = self._page.error
        return problem


class GuestConsoleRing:
    """The guest's end of `view`, its console page. Never blocks.

    Who writes or reads here notifies the port afterwards.
    """

    def __init__(self, view: memoryview) -> None:
        self._page = struct("struct xencons_interface", view)

    def write(self, data: Bytes) -> int:
        """Bytes printed, from the beginning of `data`; 0 when the ring is full.

        Raises: RingError.
        """
        return _put(lib.ring_console_print, self._page, data, "console output")

    def read(self, max_bytes: int) -> bytes:
        """Up to `max_bytes` of what was typed.

        Raises: RingError.
        """
        return _take(lib.ring_console_type, self._page, max_bytes, "console input")


def _take(read: Any, page: Any, max_bytes: int, what: str) -> bytes:
    buffer = bytearray(min(max_bytes, 4096))  # no ring is longer
    return bytes(buffer[: _checked(read(page, ffi.from_buffer(buffer), len(buffer)), what)])


def _put(write: Any, page: Any, data: Bytes, what: str) -> int:
    return _checked(write(page, ffi.from_buffer(data), len(data)), what)


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise RingError(f"{what}: the ring indices make no sense")
    return result
