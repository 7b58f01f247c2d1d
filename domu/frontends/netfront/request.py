"""Slots of the netif protocol's two rings as they lie there, and what packets are. Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

TX_ENTRY_BYTES = 12
TX_RESPONSE_BYTES = 4
RX_ENTRY_BYTES = 8
RX_RESPONSE_BYTES = 8
MAX_SLOTS = 18
"""Slots of one packet that every backend takes."""
MAX_PACKET = 65535

_TX_REQUEST = struct.Struct("<IHHHH")  # gref, offset, flags, id, size
_TX_RESPONSE = struct.Struct("<Hh")  # id, status
_RX_REQUEST = struct.Struct("<HHI")  # id, pad, gref
_RX_RESPONSE = struct.Struct("<HHHh")  # id, offset, flags, status (bytes, or an error)
_EXTRA_GSO = struct.Struct("<BBHBBH")  # type, flags, size, gso type, pad, features


class Flag(IntFlag):
    """Of requests and of received slots (NETTXF_*, NETRXF_*)."""

    TX_CSUM_BLANK = 1
    TX_DATA_VALIDATED = 2
    TX_MORE_DATA = 4
    TX_EXTRA_INFO = 8
    RX_DATA_VALIDATED = 1
    RX_CSUM_BLANK = 2
    RX_MORE_DATA = 4
    RX_EXTRA_INFO = 8


class ExtraType(IntEnum):
    GSO = 1
    MCAST_ADD = 2
    MCAST_DEL = 3
    HASH = 4


EXTRA_MORE = 1


class TxStatus(IntEnum):
    DROPPED = -2
    ERROR = -1
    OKAY = 0
    NULL = 1
    """Of a slot that held an extra."""


@dataclass(frozen=True)
class Gso:
    """The packet is to be cut into TCP segments of `size` bytes. `kind` 1: IPv4, 2: IPv6."""

    size: int
    kind: int = 1


@dataclass(frozen=True)
class Packet:
    """An Ethernet frame. `csum_blank`: its TCP or UDP checksum is missing; `validated`: it was checked."""

    data: bytes
    csum_blank: bool = False
    validated: bool = False
    gso: Gso | None = None


class TxSlot(NamedTuple):
    """Part of a packet: `size` bytes at `offset` of a granted page. The first one says the whole size."""

    gref: int
    offset: int
    flags: int
    slot_id: int
    size: int

    def pack(self) -> bytes:
        return _TX_REQUEST.pack(*self)


class RxSlot(NamedTuple):
    """A filled page, or an extra when `extra` is set."""

    slot_id: int
    offset: int
    flags: int
    status: int


class BadPacket(Exception):
    """The backend has delivered what is no packet."""


def pack_extra_gso(gso: Gso, more: bool = False) -> bytes:
    return _EXTRA_GSO.pack(ExtraType.GSO, EXTRA_MORE if more else 0, gso.size, gso.kind, 0, 0)


def unpack_extra_gso(raw: bytes) -> tuple[int, int, Gso]:
    """Type, flags and, if it is one, the segmentation."""
    kind, flags, size, gso_kind, _, _ = _EXTRA_GSO.unpack(raw)
    return kind, flags, Gso(size, gso_kind)


def unpack_tx_response(raw: bytes) -> tuple[int, int]:
    """Id and status."""
    slot_id, status = _TX_RESPONSE.unpack(raw)
    return slot_id, status


def pack_rx_request(slot_id: int, gref: int) -> bytes:
    return _RX_REQUEST.pack(slot_id, 0, gref)


def unpack_rx_response(raw: bytes) -> RxSlot:
    return RxSlot(*_RX_RESPONSE.unpack(raw))


def tx_flags(packet: Packet) -> int:
    """Flags of a packet's first slot, without MORE_DATA and EXTRA_INFO."""
    blank = Flag.TX_CSUM_BLANK | Flag.TX_DATA_VALIDATED if packet.csum_blank or packet.gso else 0
    return int(blank | (Flag.TX_DATA_VALIDATED if packet.validated else 0))


def received(parts: Sequence[bytes], flags: int, gso: Gso | None) -> Packet:
    """The packet whose slots held `parts`; `flags` are those of the first."""
    return Packet(
        b"".join(parts),
        csum_blank=bool(flags & Flag.RX_CSUM_BLANK),
        validated=bool(flags & Flag.RX_DATA_VALIDATED),
        gso=gso,
    )
