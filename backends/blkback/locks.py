"""Locks on images: QEMU's protocol, so that qemu-img and QEMU's guests respect them and are respected.

A byte stands for a permission. Who uses one holds a shared lock on byte 100 + n, who does not want others to
use it a shared lock on byte 200 + n; each then looks whether anybody holds the opposite byte. Locks belong to
the open file (OFD locks), not to the process: they go with the last descriptor *and the last I/O under way*,
which keeps the file open. So one byte more, of the device's own, tells a successor of a killed daemon when
the last late write of its predecessor is over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib

PERM_BASE, SHARED_BASE = 100, 200
READ, WRITE, WRITE_UNCHANGED, RESIZE = range(4)
_LIFE_BASE = 1 << 62
_FLOCK = struct.Struct("@hhqqi4x")
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class ImageLocked(Exception):
    """Somebody else uses the image. The text says how."""


def lock_image(fd: int, *, read_only: bool, exclusive: bool) -> bool:
    """Locks the open image. False: this file system has no locks.

    `exclusive` False takes the locks that tell of us, and does not look who else is there ("w!").
    Raises: ImageLocked.
    """
    used = [READ] if read_only else [READ, WRITE, RESIZE]
    refused = [WRITE, RESIZE] if exclusive else []
    try:
        for byte in [PERM_BASE + bit for bit in used] + [SHARED_BASE + bit for bit in refused]:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, byte))
        if exclusive:
            try:
                _look(fd, used, refused)
            except ImageLocked:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, PERM_BASE, 200))
                raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _look(fd: int, used: list[int], refused: list[int]) -> None:
    if any(held(fd, PERM_BASE + bit) for bit in refused):
        raise ImageLocked("is written by another user of it")
    if any(held(fd, SHARED_BASE + bit) for bit in used):
        raise ImageLocked("is used by somebody who does not want it written")


def held(fd: int, byte: int) -> bool:
    """Whether another open file holds a lock on `byte`."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def life_byte(name: str) -> int:
    """The byte of one device, by a name of its own."""
    return _LIFE_BASE + zlib.crc32(os.fsencode(name))


def take_life(fd: int, byte: int) -> bool:
    """Takes the device's byte; False while a predecessor, or I/O it has left under way, still has it."""
    try:
        if held(fd, byte):
            return False
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, byte))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _flock(kind: int, byte: int, count: int = 1) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, count, 0)
