"""XenStore's wire protocol (public/io/xs_wire.h): messages, errors, limits. Sans-io, for both sides.

A message is a 16-byte header and at most 4096 bytes of payload, the same over the socket and over a guest's
ring.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct("<IIII")
"""type, req_id, tx_id, length of the payload."""
HEADER_BYTES = HEADER.size
PAYLOAD_MAX = 4096
ABS_PATH_MAX = 3072
REL_PATH_MAX = 2048
RING_BYTES = 1024
"""Of each direction of a guest's ring."""

RING_ERROR_OFFSET = 2072
"""Where in a guest's ring page the daemon says why it has given up."""


class RingProblem(IntEnum):
    """Values of the ring's error field."""

    NONE = 0
    COMM = 1
    RINGIDX = 2
    PROTO = 3


class XsType(IntEnum):
    """Message types. A reply has its request's type, or ERROR."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


ERROR_NAMES = frozenset(
    "EINVAL EACCES EEXIST EISDIR ENOENT ENOMEM ENOSPC EIO ENOTEMPTY ENOSYS EROFS EBUSY EAGAIN EISCONN E2BIG "
    "EPERM".split()
)
"""What an ERROR message may carry (xsd_errors)."""


class Message(NamedTuple):
    """One message. `type` is a plain int: a peer may send any number."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes

    def encode(self) -> bytes:
        return HEADER.pack(self.type, self.req_id, self.tx_id, len(self.payload)) + self.payload


class ProtocolError(Exception):
    """The peer announced a payload above PAYLOAD_MAX: the stream cannot be followed any further."""


class Decoder:
    """Cuts a stream of bytes, in chunks of any size, into messages.

        decoder.feed(chunk)
        for message in decoder: ...

    Raises ProtocolError on iteration, then and ever after, once a header announces too much. What came before
    the bad header is delivered first.
    """

    def __init__(self, rest: bytes = b"") -> None:
        self._buffer = bytearray(rest)

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        self._buffer += chunk

    @property
    def rest(self) -> bytes:
        """The bytes of the message that is not complete yet, and of those not yet taken out."""
        return bytes(self._buffer)

    def __iter__(self) -> Iterator[Message]:
        while (message := self.next_message()) is not None:
            yield message

    def next_message(self) -> Message | None:
        """The next complete message, or None when more bytes are needed.

        Raises: ProtocolError.
        """
        buffer = self._buffer
        if len(buffer) < HEADER_BYTES:
            return None
        kind, req_id, tx_id, length = HEADER.unpack_from(buffer)
        if length > PAYLOAD_MAX:
            raise ProtocolError(f"a payload of {length} bytes is announced, the limit is {PAYLOAD_MAX}")
        end = HEADER_BYTES + length
        if len(buffer) < end:
            return None
        payload = bytes(buffer[HEADER_BYTES:end])
        del buffer[:end]
        return Message(kind, req_id, tx_id, payload)


def encode_strings(*strings: str | bytes) -> bytes:
    """Each string with a NUL behind it, as almost every payload is made.

    Raises: ValueError when a string holds a NUL.
    """
    parts = [text.encode() if isinstance(text, str) else text for text in strings]
    if any(b"\0" in part for part in parts):
        raise ValueError("a string of the xenstore protocol may not hold a NUL")
    return b"".join(part + b"\0" for part in parts)


def decode_strings(payload: bytes) -> list[str]:
    """The NUL-terminated strings of a payload; bytes that are not UTF-8 survive as surrogates. A last one may
    lack its NUL.
    """
    return payload.removesuffix(b"\0").decode(errors="surrogateescape").split("\0") if payload else []


def domain_path(domid: int) -> str:
    """The domain's folder, against which it names relative paths."""
    return f"/local/domain/{domid}"
