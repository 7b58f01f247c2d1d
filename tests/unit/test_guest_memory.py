"""The guest kit's own memory: the window of banks, arenas, RAM and grant tables. No hypervisor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hyper.guest import abi
from hyper.guest.arena import Arena, ArenaFull
from hyper.guest.bank import Window
from hyper.guest.grant_table import RESERVED_GREFS, GrantTable
from hyper.guest.memory import Memory
from hyper.public.errors import NoFreeSlot, OutOfFrames, OutOfRange

PAGE = 4096


@pytest.fixture
def banks() -> Iterator[list[int]]:
    """Three memfds of four pages, each filled with its number."""
    fds = []
    for number in (1, 2, 3):
        fd = os.memfd_create("bank")
        os.write(fd, bytes([number]) * 4 * PAGE)
        fds.append(fd)
    yield fds
    for fd in fds:
        os.close(fd)


def test_banks_in_one_window(banks: list[int]) -> None:
    window = Window(0, 1 << 24)
    window.map(0, banks[0], 4 * PAGE)
    window.map(1000, banks[1], 4 * PAGE, serial=7)
    assert (window.frames(3, 1)[0], window.frames(1000, 4)[-1]) == (1, 2)
    address = abi.ffi.cast("uint8_t *", window.address)
    assert address[1003 << 12] == 2
    for mfn, count in ((4, 1), (3, 2), (999, 1), (1004, 1), (-1, 1), (0, -1), (1 << 24, 1)):
        with pytest.raises(OutOfRange):
            window.frames(mfn, count)
    with pytest.raises(OutOfRange):
        window.map((1 << 24) - 3, banks[2], 4 * PAGE)


def test_a_later_bank_takes_the_place_of_an_earlier_one(banks: list[int]) -> None:
    window = Window(0, 4096)
    window.map(1000, banks[0], 4 * PAGE, serial=1)
    window.map(1000, banks[1], 4 * PAGE, serial=1)  # the same: known
    assert window.frames(1000, 1)[0] == 1
    window.map(1002, banks[1], 4 * PAGE, serial=2)
    assert window.frames(1002, 1)[0] == 2
    assert not window.has(1000)
    window.map(1000, banks[2], 2 * PAGE, serial=3)
    assert (window.frames(1001, 1)[0], window.frames(1002, 1)[0]) == (3, 2)


def test_a_window_that_begins_later_and_views_that_outlive_it(banks: list[int]) -> None:
    window = Window(5000, 5004)
    window.map(5000, banks[0], 4 * PAGE)
    view = window.frames(5002, 1)
    assert abi.ffi.cast("uint8_t *", window.address + (5002 << 12))[0] == 1
    del window
    assert view[0] == 1
    assert Window(0, 0).address == 0


def test_aligned_buffers() -> None:
    with Arena(8 * PAGE) as arena:
        free = arena.free_bytes
        small = arena.alloc(100)
        page = arena.alloc(PAGE, align=PAGE)
        assert page.addr % PAGE == 0 and small.addr < page.addr
        between = arena.alloc(64)
        assert small.addr < between.addr < page.addr
        with pytest.raises(ArenaFull):
            arena.alloc(7 * PAGE, align=PAGE)
        with pytest.raises(ValueError):
            arena.alloc(1, align=100)
        for buffer in (page, small, between):
            buffer.free()
        assert arena.free_bytes == free
        arena.alloc(free).free()


def test_memory() -> None:
    store = bytearray(b"x" * 16 * PAGE)
    memory = Memory(100, 16, lambda mfn, n: memoryview(store)[(mfn - 100) * PAGE : (mfn - 100 + n) * PAGE])
    first, second = memory.alloc(10), memory.alloc()
    assert (first.mfn, second.mfn, memory.free_frames) == (100, 110, 5)
    assert not any(first.view) and len(first.page(9)) == PAGE
    with pytest.raises(IndexError):
        first.page(10)
    with pytest.raises(OutOfFrames):
        memory.alloc(6)
    with pytest.raises(ValueError):
        memory.alloc(0)
    first.free()
    first.free()
    second.free()
    assert memory.alloc(16).mfn == 100


def test_grant_table() -> None:
    view = memoryview(bytearray(PAGE))
    table = GrantTable(view)
    entries = abi.struct("struct grant_entry_v1", view)
    first, second = table.grant_access(3, 77), table.grant_access(0, 78, readonly=True)
    assert (first, second) == (RESERVED_GREFS, RESERVED_GREFS + 1)
    entry = entries[first]
    assert (entry.flags, entry.domid, entry.frame) == (abi.lib.GTF_permit_access, 3, 77)
    assert entries[second].flags == abi.lib.GTF_permit_access | abi.lib.GTF_readonly
    entry.flags |= abi.lib.GTF_reading
    assert table.is_used(first) and not table.end_access(first)
    entry.flags &= ~abi.lib.GTF_reading
    assert table.end_access(first) and entry.flags == 0
    with pytest.raises(ValueError):
        table.end_access(first)
    with pytest.raises(ValueError):
        table.is_used(512)
    assert table.grant_access(1, 1) == second + 1  # not the one that was just in use
    while table.free:
        table.grant_access(1, 1)
    with pytest.raises(NoFreeSlot):
        table.grant_access(1, 1)
