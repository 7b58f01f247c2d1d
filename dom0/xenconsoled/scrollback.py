"""The last 64 KiB of a console, in a memfd that outlives this process.

Layout: 8 bytes, how many bytes were ever written; then the ring of the last BYTES of them. The count is
written last, so a process killed in the middle leaves the text before it whole.
"""

from __future__ import annotations

import mmap
import os
import struct

BYTES = 64 << 10
_COUNT = struct.Struct("<Q")


class Scrollback:
    """Over `fd`, or over a new memfd. Owns it."""

    def __init__(self, fd: int | None = None) -> None:
        """Raises: OSError; ValueError for a file that is no scrollback."""
        self.fd = os.memfd_create("umxen-console", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, _COUNT.size + BYTES)
        elif os.fstat(fd).st_size != _COUNT.size + BYTES:
            raise ValueError("not a scrollback")
        self._map = mmap.mmap(self.fd, _COUNT.size + BYTES)

    @property
    def written(self) -> int:
        """Bytes ever written."""
        count: int = _COUNT.unpack_from(self._map)[0]
        return count

    def append(self, data: bytes) -> None:
        count = self.written + len(data)
        data = data[-BYTES:]
        at = (count - len(data)) % BYTES
        first = min(len(data), BYTES - at)
        start = _COUNT.size + at
        self._map[start : start + first] = data[:first]
        self._map[_COUNT.size : _COUNT.size + len(data) - first] = data[first:]
        _COUNT.pack_into(self._map, 0, count)

    def text(self) -> bytes:
        """What is kept, oldest first."""
        count = self.written
        ring = self._map[_COUNT.size :]
        if count <= BYTES:
            return ring[:count]
        at = count % BYTES
        return ring[at:] + ring[:at]

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)
