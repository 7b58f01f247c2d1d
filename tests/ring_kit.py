"""Hypercall rings of a connection without a control socket, and a domain whose grants they use."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hyper.guest import abi
from hyper.guest.arena import Buffer
from hyper.guest.hcall import HypercallRing
from tests.core_kit import Process, lib

WINDOW_BYTES = 8192
FIRST_GREF = 8
NR_FRAMES = 16


class _Window(Buffer):
    """A piece of a Process's arena, which is never freed."""

    def __init__(self, addr: int, view: memoryview) -> None:
        self.addr = addr  # type: ignore[assignment]
        self.view = view

    def free(self) -> None:
        pass


def _descriptors(process: Process) -> tuple[int, int]:
    ret, memfd, doorbell = process.connection.open_ring()
    assert ret == 0, ret
    return memfd, doorbell


@contextmanager
def open_ring(process: Process, window_bytes: int = WINDOW_BYTES) -> Iterator[HypercallRing]:
    ring = HypercallRing(*_descriptors(process), _Window(*process.buffer(window_bytes)))
    try:
        yield ring
    finally:
        ring.close()


def raw_ring(process: Process) -> tuple[mmap.mmap, socket.socket]:
    """Its page (struct hcall_page) and the client's half of the doorbell."""
    memfd, doorbell = _descriptors(process)
    page = mmap.mmap(memfd, 4096)
    os.close(memfd)
    return page, socket.socket(fileno=doorbell)


class Granter:
    """A domain that grants NR_FRAMES frames to Dom0, from FIRST_GREF on."""

    def __init__(self, dom0: Process, to: int = 0) -> None:
        self.dom0 = dom0
        self.domid = dom0.create()
        self.gfns = dom0.populate(self.domid, NR_FRAMES)
        self.table = abi.struct("struct grant_entry_v1", dom0.grant_frame(self.domid))
        for index, gfn in enumerate(self.gfns):
            entry = self.table[FIRST_GREF + index]
            entry.frame, entry.domid, entry.flags = gfn, to, lib.GTF_permit_access

    def used(self) -> int:
        """Entries that somebody uses."""
        used = lib.GTF_reading | lib.GTF_writing
        return sum(bool(self.table[FIRST_GREF + index].flags & used) for index in range(NR_FRAMES))

    def page(self, index: int) -> memoryview:
        return self.dom0.frame(self.gfns[index])


class copies:
    """GNTTABOP_copy. Each side: (domid, gref or gmfn)."""

    @staticmethod
    def fill(op: Any, source: tuple[int, int], dest: tuple[int, int], length: int, flags: int) -> None:
        op.len, op.flags = length, flags
        for side, (domid, what), is_gref in (
            (op.source, source, flags & lib.GNTCOPY_source_gref),
            (op.dest, dest, flags & lib.GNTCOPY_dest_gref),
        ):
            side.domid = domid
            if is_gref:
                side.u.ref = what
            else:
                side.u.gmfn = what

    @staticmethod
    def one(
        ring: HypercallRing,
        source: tuple[int, int],
        dest: tuple[int, int],
        length: int,
        *,
        from_gref: bool = False,
        to_gref: bool = False,
    ) -> int:
        """The operation's status."""
        ops = abi.ffi.new("struct gnttab_copy[1]")
        flags = from_gref * lib.GNTCOPY_source_gref | to_gref * lib.GNTCOPY_dest_gref
        copies.fill(ops[0], source, dest, length, flags)
        assert lib.hcall_grant_copy(ring._ring(), ops, 1) == 0
        status: int = ops[0].status
        return status
