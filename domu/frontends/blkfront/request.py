"""Requests and responses of the blkif protocol as they lie in the ring (x86-64 layout). Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

SECTOR = 512
SECTORS_PER_PAGE = 8
ENTRY_BYTES = 112
RESPONSE_BYTES = 16
MAX_SEGMENTS = 11
"""In the ring itself."""
SEGMENTS_PER_PAGE = 512
"""In a page of an indirect request."""
MAX_INDIRECT_PAGES = 8

_HEAD = struct.Struct("<BBHxxxxQQ")  # operation, nr_segments, handle, id, sector_number
_SEGMENT = struct.Struct("<IBBxx")  # gref, first_sect, last_sect
_DISCARD = struct.Struct("<BBHxxxxQQQ")  # operation, flag, handle, id, sector_number, nr_sectors
_INDIRECT = struct.Struct("<BBHxxxxQQHxx8I")  # operation, indirect_op, nr_segments, id, sector, handle, grefs
_RESPONSE = struct.Struct("<QBxhxxxx")  # id, operation, status


class Operation(IntEnum):
    READ = 0
    WRITE = 1
    WRITE_BARRIER = 2
    FLUSH_DISKCACHE = 3
    DISCARD = 5
    INDIRECT = 6


class Status(IntEnum):
    OKAY = 0
    ERROR = -1
    EOPNOTSUPP = -2


class DiskError(Exception):
    """The backend has refused a request. `status` is its answer."""

    def __init__(self, operation: Operation, sector: int, status: int) -> None:
        self.operation = operation
        self.sector = sector
        self.status = status
        name = Status(status).name if status in list(Status) else "no status there is"
        super().__init__(f"{operation.name.lower()} at sector {sector}: {name} ({status})")


class Segment(NamedTuple):
    """Sectors `first` to `last` (0 to 7) of a granted page."""

    gref: int
    first: int
    last: int


class Response(NamedTuple):
    req_id: int
    operation: int
    status: int


def pack_direct(
    operation: int, handle: int, req_id: int, sector: int, segments: Sequence[Segment] = ()
) -> bytes:
    """Read, write, barrier or flush with at most MAX_SEGMENTS pages."""
    head = _HEAD.pack(operation, len(segments), handle, req_id, sector)
    return head + b"".join(_SEGMENT.pack(*segment) for segment in segments)


def pack_indirect(
    operation: int, handle: int, req_id: int, sector: int, nr_segments: int, grefs: Sequence[int]
) -> bytes:
    """The same, with its segments in the pages `grefs`, packed by pack_segments()."""
    padded = (*grefs, *[0] * (MAX_INDIRECT_PAGES - len(grefs)))
    return _INDIRECT.pack(Operation.INDIRECT, operation, nr_segments, req_id, sector, handle, *padded)


def pack_segments(segments: Sequence[Segment]) -> bytes:
    """Contents of an indirect page."""
    return b"".join(_SEGMENT.pack(*segment) for segment in segments)


def pack_discard(handle: int, req_id: int, sector: int, count: int, secure: bool = False) -> bytes:
    return _DISCARD.pack(Operation.DISCARD, int(secure), handle, req_id, sector, count)


def unpack_response(raw: bytes) -> Response:
    return Response(*_RESPONSE.unpack(raw))
