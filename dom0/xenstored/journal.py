"""The journal: how a killed daemon's successor finds the store, the guests' watches and their half-served
rings.

A memfd that hyper keeps for us (the fd store), so it lives as long as the guests do. Records are only
appended: 4 bytes of length and that many bytes of msgpack, a list of operations `[name, argument, ...]`.
Doing all operations of all records again gives the state at the last record.

One record is what one piece of work changed: a chunk of bytes from a ring or a socket, with all requests in
it. It is written (one pwrite) before anything of it can be seen from outside: before the ring's bytes are
given back to the guest, before a reply or an event is sent. A record cut short by SIGKILL never happened; its
requests are still in the ring. Nothing is lost by SIGKILL once written: it is memory, not a disk.

Rings. For each, the journal knows how many bytes have been consumed, the bytes of a request that is not
complete (`rest`), and every reply and event queued since the ring was connected. After SIGKILL the ring's own
indices say how far that had really come:
- req_cons behind the journal: these bytes have been served, so they are consumed now and never served again;
- rsp_prod ahead of the journal's starting point: that much of what was queued is in the ring already.
Open transactions are open again, but can only end with EAGAIN. Every watch of a guest fires once more
(restart.py). Clients on the socket lose their connection, and with it their watches, as with Xen.

When the file has doubled, the state is written to a new memfd, as the operations that make it, and hyper is
given that. Until hyper has it, records go to both.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

import msgpack

_LENGTH = struct.Struct("<I")
MIN_COMPACT_BYTES = 4 << 20
Operation = tuple[Any, ...]


class JournalError(Exception):
    """The journal can't be written or read."""


class Journal:
    """Collects operations and appends them as one record. Call it with an operation's name and arguments."""

    def __init__(self) -> None:
        self.files: list[int] = []
        self.bytes = 0
        self.compact_at = MIN_COMPACT_BYTES
        self._operations: list[Operation] = []
        self._packer = msgpack.Packer()
        self._muted = False
        self._broken = False

    def __call__(self, *operation: Any) -> None:
        if not self._muted:
            self._operations.append(operation)

    def mute(self, muted: bool) -> None:
        """Muted while the state is being restored."""
        self._muted = muted

    @property
    def due(self) -> bool:
        """It has grown enough to be compacted."""
        return self.bytes >= self.compact_at

    def commit(self) -> None:
        """Appends what has been collected.

        Raises: JournalError: no memory left. The state is then ahead of the journal: the daemon must end.
        """
        if self._broken:
            raise JournalError("the journal can't be written any more")
        if not self._operations:
            return
        record = encode(self._operations, self._packer)
        self._broken = True  # part of the record may be there: nothing may follow it
        try:
            for fd in self.files:
                append(fd, record)
        except OSError as error:
            raise JournalError(f"the journal can't be written: {error}") from error
        self._broken = False
        self.bytes += len(record)
        self._operations.clear()

    def begin(self, fd: int, nbytes: int) -> None:
        """From now on records go to `fd` as well, which holds the present state in `nbytes`."""
        self.files.append(fd)
        self.bytes = nbytes
        self.compact_at = max(MIN_COMPACT_BYTES, 2 * nbytes)

    def end(self, fd: int) -> None:
        """No more records to `fd`, which is closed."""
        self.files.remove(fd)
        os.close(fd)

    def close(self) -> None:
        for fd in self.files:
            os.close(fd)
        self.files.clear()


def encode(operations: list[Operation], packer: msgpack.Packer | None = None) -> bytes:
    """A record."""
    body: bytes = (packer or msgpack.Packer()).pack(operations)
    return _LENGTH.pack(len(body)) + body


def append(fd: int, record: bytes) -> None:
    """Raises: OSError."""
    at = os.lseek(fd, 0, os.SEEK_END)
    while record:
        written = os.pwrite(fd, record, at)
        record, at = record[written:], at + written


def read_back(fd: int) -> Iterator[Operation]:
    """The operations of every whole record. What is behind the last one is cut off."""
    data = memoryview(os.pread(fd, os.fstat(fd).st_size, 0))
    at = 0
    while at + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        end = at + _LENGTH.size + length
        if end > len(data):
            break
        yield from msgpack.unpackb(data[at + _LENGTH.size : end], use_list=False)
        at = end
    os.ftruncate(fd, at)


def new_file(operations: list[Operation]) -> tuple[int, int]:
    """A memfd with one record, and its size.

    Raises: OSError.
    """
    fd = os.memfd_create("umxen-xenstored", os.MFD_CLOEXEC)
    record = encode(operations)
    append(fd, record)
    return fd, len(record)
