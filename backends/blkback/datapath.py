"""The data path in C, as owners in Python. Nothing else of this folder sees ffi or lib."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from backends.blkback._blkback import ffi as _ffi
from backends.blkback._blkback import lib as _lib
from hyper.guest.hcall import HypercallRing

ffi: Any = _ffi
lib: Any = _lib

NR_POOL_THREADS = 8


@dataclass(frozen=True)
class Statistics:
    """Of a queue, or summed up. `*_sect` in sectors of 512 bytes."""

    rd_req: int = 0
    wr_req: int = 0
    oo_req: int = 0
    f_req: int = 0
    ds_req: int = 0
    rd_sect: int = 0
    wr_sect: int = 0
    errors: int = 0
    persistent_grants: int = 0
    in_flight: int = 0
    unflushed: int = 0
    """Writes since the last flush."""

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class State:
    """What a queue has to say."""

    lost: bool
    """Its NBD server is gone; it waits for replace()."""
    fault: str
    """Why it takes nothing more from the frontend; "" while it does."""


class Engine:
    """What all queues of this daemon share: a way to hyper, and threads for where there is no io_uring."""

    def __init__(self, ring: HypercallRing, bank: int, max_mfn: int, *, io_uring: bool | None = None) -> None:
        self.io_uring = bool(lib.blk_uring_works()) if io_uring is None else io_uring
        self._pool = _checked(lib.blk_pool_create(NR_POOL_THREADS), "threads")
        window = ffi.cast("void *", ring.window_address)
        self._ring = _checked(
            lib.hcall_open(ring.memfd, ring.doorbell, window, ring.window_addr, ring.window_bytes), "ring"
        )
        self._keep = ring
        self.hypervisor = _checked(lib.blk_hypervisor_create(self._ring, bank, max_mfn), "hypervisor")
        self.pool = self._pool

    def close(self) -> None:
        """No queue is left."""
        lib.blk_hypervisor_destroy(self.hypervisor)
        lib.hcall_close(self._ring)
        lib.blk_pool_destroy(self._pool)


@contextmanager
def engine(ring: HypercallRing, bank: int, max_mfn: int) -> Iterator[Engine]:
    """Raises: OSError."""
    owner = Engine(ring, bank, max_mfn)
    try:
        yield owner
    finally:
        owner.close()


@dataclass(frozen=True)
class QueueParameters:
    """A ring, who is at its other end, and what is behind it."""

    domid: int
    ring_mfns: Sequence[int]
    protocol: int
    max_persistent: int
    upcall_fd: int
    doorbell_fd: int
    journal_fd: int
    resuming: bool
    kind: str
    """"file", "block device" or "nbd"."""
    file: int
    """A descriptor of the caller's; with "nbd" a socket that becomes the queue's."""
    nr_sectors: int
    sector_bytes: int
    read_only: bool
    discard: bool


_COPIED = (
    "domid protocol max_persistent upcall_fd doorbell_fd journal_fd resuming file nr_sectors sector_bytes"
    " read_only discard"
).split()
_KINDS = {"file": lib.BLK_FILE, "block device": lib.BLK_BLOCK_DEVICE, "nbd": lib.BLK_NBD}


def ring_entries(nr_pages: int, protocol: int) -> int:
    """Requests that fit a ring."""
    entries: int = lib.blk_ring_entries(nr_pages, protocol)
    return entries


def journal_bytes(nr_pages: int, protocol: int) -> int:
    """How long a queue's journal is."""
    nbytes: int = lib.blk_journal_bytes(ring_entries(nr_pages, protocol))
    return nbytes


def journal_unflushed(fd: int) -> int:
    """Writes in a predecessor's journal that no flush has followed."""
    count: int = lib.blk_journal_unflushed(fd)
    return count


class Queue:
    """One ring, served by a C thread from start() to stop()."""

    def __init__(self, shared: Engine, parameters: QueueParameters) -> None:
        """Raises: OSError."""
        self._status_fd = _eventfd()
        config = ffi.new("struct blk_queue_config *")
        config.hypervisor, config.pool = shared.hypervisor, shared.pool
        config.use_uring = shared.io_uring
        config.status_fd = self._status_fd
        config.backing = _KINDS[parameters.kind]
        config.nr_ring_pages = len(parameters.ring_mfns)
        config.ring_mfn[0 : len(parameters.ring_mfns)] = list(parameters.ring_mfns)
        for name in _COPIED:
            setattr(config, name, getattr(parameters, name))
        self._queue = lib.blk_queue_create(config)
        if self._queue == ffi.NULL:
            os.close(self._status_fd)
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        self._open = True
        self.statistics_at_end = Statistics()

    def start(self) -> None:
        """Raises: OSError."""
        if error := -lib.blk_queue_start(self._queue):
            raise OSError(error, os.strerror(error))

    async def wait_state(self) -> State:
        """Returns when there is something to say, or more than before."""
        while True:
            await trio.lowlevel.wait_readable(self._status_fd)
            try:
                os.read(self._status_fd, 8)
                return self.state()
            except BlockingIOError:
                continue

    def state(self) -> State:
        bits = lib.blk_queue_state(self._queue)
        fault = ""
        if bits & lib.BLK_STATE_PRODUCER:
            fault = "the frontend has published more requests than its ring holds"
        elif bits & lib.BLK_STATE_JOURNAL:
            fault = "the frontend's ring is not the one that was served before this daemon was restarted"
        return State(bool(bits & lib.BLK_STATE_LOST), fault)

    def replace(self, sock: int) -> None:
        """Another socket in place of a lost one; it becomes the queue's. What has no reply is sent again."""
        lib.blk_queue_replace(self._queue, sock)

    def resize(self, nr_sectors: int) -> None:
        lib.blk_queue_resize(self._queue, nr_sectors)

    def statistics(self) -> Statistics:
        found = ffi.new("struct blk_statistics *")
        lib.blk_queue_statistics(self._queue, found)
        return Statistics(**{name: int(getattr(found, name)) for name in vars(Statistics())})

    async def stop(self, *, closing: bool) -> None:
        """Ends it once all it has taken is answered; see blk_queue_stop. Not interrupted. May be called
        twice.
        """
        if self._open:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lib.blk_queue_stop, self._queue, int(closing))
                self.statistics_at_end = self.statistics()
                await trio.to_thread.run_sync(lib.blk_queue_destroy, self._queue)
            self._open = False
            os.close(self._status_fd)


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def _checked(pointer: Any, what: str) -> Any:
    if pointer == ffi.NULL:
        raise OSError(errno.ENOMEM, f"no {what} to be had")
    return pointer
