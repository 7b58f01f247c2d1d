"""What a disk's frontend may be told, and what it and the backend have agreed on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from domu.frontends.blkfront.request import MAX_INDIRECT_PAGES, MAX_SEGMENTS, SEGMENTS_PER_PAGE
from domu.frontends.xenbus import number

_XVD, _XVD_EXTENDED, _SD, _HDA, _HDC = 202 << 8, 1 << 28, 8 << 8, 3 << 8, 22 << 8
_NAME = re.compile(r"(xvd|sd|hd)([a-z]{1,2})(\d*)")


@dataclass(frozen=True)
class Options:
    """What the frontend would like; the backend may allow less."""

    ring_page_order: int = 2
    """The ring of a queue has 2 ** this pages."""
    queues: int = 1
    max_segments: int = 256
    """Pages of one request; above 11 they are sent indirectly."""
    persistent: bool = True
    """Grants are kept, and the backend may keep its mappings. Otherwise each request has its own grants."""
    buffer_pages: int = 512
    """Memory for data on the way."""


@dataclass(frozen=True)
class Agreed:
    """What is used."""

    ring_page_order: int
    queues: int
    max_segments: int
    indirect: bool
    persistent: bool

    @classmethod
    def between(cls, options: Options, backend: Mapping[str, str]) -> Agreed:
        """`backend` are its nodes before it is connected. Numbers that are none count as absent."""
        indirect = min(
            options.max_segments,
            options.buffer_pages - 1,  # a page says which
            number(backend, "feature-max-indirect-segments"),
            SEGMENTS_PER_PAGE * MAX_INDIRECT_PAGES,
        )
        direct = min(options.max_segments, MAX_SEGMENTS, options.buffer_pages)
        return cls(
            ring_page_order=min(options.ring_page_order, number(backend, "max-ring-page-order")),
            queues=max(1, min(options.queues, number(backend, "multi-queue-max-queues", 1))),
            max_segments=indirect if indirect > MAX_SEGMENTS else direct,
            indirect=indirect > MAX_SEGMENTS,
            persistent=options.persistent and number(backend, "feature-persistent") == 1,
        )


@dataclass(frozen=True)
class Geometry:
    """What the backend says of the disk. Sectors count 512 bytes whatever `sector_size` is."""

    sectors: int
    sector_size: int
    read_only: bool
    cdrom: bool
    flush: bool
    barrier: bool
    discard: bool
    discard_granularity: int

    @classmethod
    def read(cls, backend: Mapping[str, str]) -> Geometry:
        """`backend` are its nodes when it is connected.

        Raises: ValueError when they make no disk.
        """
        sectors, info = int(backend.get("sectors", "")), number(backend, "info")
        sector_size = number(backend, "sector-size", 512)
        if sectors < 0 or sector_size < 512 or sector_size & (sector_size - 1):
            raise ValueError(f"the backend offers {sectors} sectors of {sector_size} bytes")
        return cls(
            sectors=sectors,
            sector_size=sector_size,
            read_only=bool(info & 4),
            cdrom=bool(info & 1),
            flush=number(backend, "feature-flush-cache") == 1,
            barrier=number(backend, "feature-barrier") == 1,
            discard=number(backend, "feature-discard") == 1,
            discard_granularity=number(backend, "discard-granularity"),
        )


def devid_of(name: str) -> int:
    """Xen's number of a device name: xvda, xvda1, xvdaa, sda, hdc2, or a number already.

    Raises: ValueError.
    """
    if name.isdecimal():
        return int(name)
    if not (match := _NAME.fullmatch(name)):
        raise ValueError(f"{name!r} is no name of a disk")
    kind, letters, digits = match.groups()
    disk, part = 0, int(digits or 0)
    for letter in letters:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    disk -= 1
    if kind == "xvd" and (disk > 15 or part > 15):
        return _XVD_EXTENDED | disk << 8 | part
    if kind == "hd" and disk < 4 and part < 64:
        return (_HDA if disk < 2 else _HDC) | (disk & 1) << 6 | part
    if kind == "hd" or disk > 15 or part > 15:
        raise ValueError(f"{name!r}: no such disk or partition")
    return (_XVD if kind == "xvd" else _SD) | disk << 4 | part
